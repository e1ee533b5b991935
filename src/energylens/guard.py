"""A dead man's switch: a process that undoes what another one had set and did not put back.

    python -m energylens.guard LEASE_S

It is told on standard input, a JSON document a line: ``{"undo": NAME, "steps": [...]}`` before
something is set, ``{"beat": 1}`` while the controller lives, ``{"done": NAME}`` where it has put
something back itself. When the lines end, or none came for the lease, everything not put back is.
A step is ``{"http": [METHOD, URL, HEADERS, BODY]}``, ``{"run": [PROGRAM, ...]}`` or
``{"file": [PATH, TEXT or null]}``. It needs nothing but Python, and outlives its controller.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STEP_TIMEOUT_S = 60.0  # waking an engine takes its time
SETTLE_S = 0.3  # for a request that the controller had under way when it died
TRIES = 4


def undo(step: dict[str, Any]) -> None:
    """Do one step; it may be done again without harm.

    Raises
    ------
    OSError
        If it fails.
    """
    if "http" in step:
        method, url, headers, body = step["http"]
        data = None if body is None else body.encode()
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=STEP_TIMEOUT_S) as answer:
            answer.read()
    elif "run" in step:
        done = subprocess.run(step["run"], capture_output=True, timeout=STEP_TIMEOUT_S, check=False)
        if done.returncode:
            raise OSError(f"{step['run'][0]} ended with {done.returncode}")
    else:
        path, text = Path(step["file"][0]), step["file"][1]
        if text is None:
            path.unlink(missing_ok=True)
        else:
            beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)


def undo_all(held: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Undo everything, the last first; return what could not be."""
    failed = []
    for name in reversed(list(held)):
        for step in held[name]:
            for attempt in range(TRIES):
                try:
                    undo(step)
                    break
                except (OSError, subprocess.SubprocessError, ValueError) as error:
                    if attempt == TRIES - 1:
                        failed.append(f"{name}: {error}")
                    else:
                        time.sleep(0.2 * 2**attempt)
    return failed


class Guard:
    """The guard process, as whoever sets something talks to it.

    Parameters
    ----------
    lease_s : float
        After which it undoes everything if it hears nothing.
    """

    def __init__(self, lease_s: float) -> None:
        # A session of its own: what ends the terminal of its owner does not end the guard.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "energylens.guard", f"{lease_s:g}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip

    def tell(self, told: Mapping[str, Any], *, answered: bool = False) -> None:
        """Say a line of what it understands.

        Raises
        ------
        OSError
            If it does not answer.
        """
        pipe, answers = self._process.stdin, self._process.stdout
        assert pipe is not None
        assert answers is not None
        pipe.write(json.dumps(told).encode() + b"\n")
        pipe.flush()
        if answered and answers.readline() != b"held\n":
            raise OSError("it has ended")

    def hold(self, name: str, steps: Sequence[Mapping[str, Any]]) -> None:
        """Leave with it how something is put back, before it is set."""
        self.tell({"undo": name, "steps": list(steps)}, answered=True)

    def close(self) -> None:
        """Let it go: it undoes what it still holds, and ends."""
        pipe, answers = self._process.stdin, self._process.stdout
        assert pipe is not None
        pipe.close()
        self._process.wait(timeout=60)
        if answers is not None:
            answers.close()


def main() -> int:
    """Watch standard input."""
    lease_s = float(sys.argv[1])
    for name in (signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    held: dict[str, list[dict[str, Any]]] = {}
    rest, last, stream = b"", time.monotonic(), sys.stdin.fileno()
    while not ended and time.monotonic() - last < lease_s:
        ready, _, _ = select.select([stream], [], [], min(0.2, lease_s))
        if not ready:
            continue
        piece = os.read(stream, 65536)
        if not piece:
            break
        last = time.monotonic()
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "undo" in told:
                # What was there before the first change is what is put back.
                held.setdefault(told["undo"], told["steps"])
                os.write(sys.stdout.fileno(), b"held\n")
            elif "done" in told:
                held.pop(told["done"], None)
    if held:
        time.sleep(SETTLE_S)
    return 1 if undo_all(held) else 0


if __name__ == "__main__":
    sys.exit(main())
