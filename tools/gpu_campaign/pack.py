"""Packs what a GPU machine without internet lacks, in parts small enough to be copied.

``small``: nothing but energylens' own needs; the machine has torch, transformers and NVML.
``vllm``: vLLM for the machine's torch (2.11, CUDA 13) with the Python packages it lacks, slimmed
to what a GPU of compute capability 9.0 runs.

Unpack with ``cat DIR/part.* | tar xJ -C SITE`` and put SITE in front of PYTHONPATH.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PYTHON = "3.12"
GLIBC = (39, 34, 31, 28, 27, 24, 17)
SMALL = ("scipy>=1.12",)
# Resolved with what they need; the machine has their heavier needs already.
VLLM_WITH_NEEDS = (
    *("pydantic>=2.12", "fastapi>=0.115,<0.137", "openai>=2,<3", "email-validator"),
    *("pyzmq>=25", "loguru", "cachetools", "cbor2", "msgspec", "pybase64", "python-multipart"),
)
VLLM_ALONE = (
    *("vllm==0.23.0", "apache-tvm-ffi==0.1.9", "xgrammar>=0.2,<1", "compressed-tensors==0.17.0"),
    *("llguidance>=1.7,<1.8", "gguf", "openai-harmony", "partial-json-parser"),
    *("pydantic-extra-types", "dill", "depyf==0.20.0", "astor", "blake3", "setproctitle"),
    *("diskcache==5.6.3", "py-cpuinfo"),
)
# What compute capability 9.0 does not use: FA2 (FA3 runs there), a front end, other Pythons.
UNUSED = (
    "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
    "vllm/vllm-rs",
    *(f"vllm/third_party/deep_gemm/_C.cpython-31{minor}*" for minor in (0, 1, 3, 4)),
)


def pack(kind: str, folder: Path, part_mib: int) -> list[Path]:
    """Download, unpack, slim and split; return the parts in order."""
    wheels, site, parts = folder / "wheels", folder / "site", folder / "parts"
    for made in (wheels, site, parts):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
    if kind == "vllm":
        _download(wheels, VLLM_WITH_NEEDS)
        _download(wheels, VLLM_ALONE, "--no-deps")
    else:
        _download(wheels, SMALL, "--no-deps")
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    for pattern in UNUSED:
        for path in site.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    archive_file = folder / "site.tar.xz"
    command = f"tar c -C '{site}' . | xz -T2 -6 > '{archive_file}'"
    subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], check=True)
    return split(archive_file, parts, part_mib * 2**20)


def _download(folder: Path, packages: tuple[str, ...], *flags: str) -> None:
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC]
    platforms += ["manylinux2014_x86_64", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(folder)]
    for platform in platforms:
        command += ["--platform", platform]
    subprocess.run([*command, *flags, *packages], check=True)


def split(file: Path, folder: Path, part_bytes: int) -> list[Path]:
    """Cut a file into numbered parts of at most ``part_bytes``."""
    parts: list[Path] = []
    with file.open("rb") as whole:
        while data := whole.read(part_bytes):
            part = folder / f"part.{len(parts):02d}"
            part.write_bytes(data)
            parts.append(part)
    return parts
