"""Whether this processor really has the matrix unit (AMX) that it advertises.

Virtual machines may show AMX in CPUID and not let a process use it: the first tile instruction
then ends the process (SIGILL). So it is tried once, in a child process that may die of it.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from enum import StrEnum
from functools import cache

#: Set for vLLM's processes where AMX is advertised and cannot be used.
NO_AMX_VARIABLE = "ENERGYLENS_NO_AMX"
_PATIENCE_S = 60.0


class Amx(StrEnum):
    """What trying it showed."""

    ABSENT = "absent"
    WORKS = "works"
    REFUSED = "advertised, but not granted"


# CPUID leaf 7: bit 24 of EDX is amx-tile. Then ask Linux for the tile registers (arch_prctl
# ARCH_REQ_XCOMP_PERM, feature 18), load a configuration of three tiles, and multiply.
_PROBE = r"""
import ctypes, mmap, struct, sys
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
at = ctypes.addressof(ctypes.c_char.from_buffer(code))
def call(hex_code, result, *arguments):
    code.seek(0)
    code.write(bytes.fromhex(hex_code))
    return ctypes.CFUNCTYPE(result, *[ctypes.c_void_p] * len(arguments))(at)(*arguments)
leaf_7 = call("53 b8 07000000 31c9 0fa2 89d0 5b c3", ctypes.c_uint32)
if not leaf_7 >> 24 & 1:
    sys.exit(3)
ctypes.CDLL(None).syscall(158, 0x1023, 18)
tiles = ctypes.create_string_buffer(
    struct.pack("<BB14x", 1, 0)
    + struct.pack("<16H", *[64] * 3, *[0] * 13)
    + struct.pack("<16B", *[16] * 3, *[0] * 13)
)
# ldtilecfg [rdi]; tilezero 0, 1, 2; tdpbf16ps 0, 1, 2; tilerelease; ret
call(
    "c4e2784907 c4e27b49c0 c4e27b49c8 c4e27b49d0 c4e26a5cc1 c4e27849c0 c3",
    None,
    ctypes.addressof(tiles),
)
"""
_ABSENT_STATUS = 3


@cache
def amx() -> Amx:
    """Try AMX once, in a child process; other processes and later calls remember."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        return Amx.ABSENT
    if os.environ.get(NO_AMX_VARIABLE):
        return Amx.REFUSED
    return _tried(_PROBE)


def _tried(program: str) -> Amx:
    """Run a program that uses AMX if there is any, and say how it ended."""
    try:
        status = subprocess.run(
            [sys.executable, "-I", "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_S,
            check=False,
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        return Amx.REFUSED  # not shown to work, and the other kernels run anywhere
    if status == _ABSENT_STATUS:
        return Amx.ABSENT
    return Amx.WORKS if status == 0 else Amx.REFUSED
