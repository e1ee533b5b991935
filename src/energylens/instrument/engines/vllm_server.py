"""A ``vllm serve`` that we start: on loopback, in a process group of its own, and stop again."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from energylens.instrument.engine import EngineError, Reason

# Errors by which vLLM says that it cannot, a kernel missing from its build among them.
_UNSUPPORTED = ("ValueError", "NotImplementedError", "ValidationError", "AttributeError")
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
STOP_S = 20.0  # after which a server that was asked to stop is killed


class VllmServer:
    """Starts the server and waits until it answers.

    Parameters
    ----------
    arguments : mapping
        Engine arguments by their Python names.
    environment : mapping of str to str
        Set in the server's process besides ours.
    start_limit_s : float
        How long loading may take.

    Raises
    ------
    EngineError
        If the server dies or does not answer in time; the last lines of its log say why.
    """

    def __init__(
        self, arguments: Mapping[str, Any], environment: Mapping[str, str], start_limit_s: float
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--host", "127.0.0.1", "--port", str(port)),
            *command_line(arguments),
        ]
        handle, log = tempfile.mkstemp(prefix="energylens-vllm-", suffix=".log")
        self._log = Path(log)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                start_new_session=True,  # so that stopping it stops its workers
                preexec_fn=end_with_parent,
            )
        finally:
            os.close(handle)
        try:
            self._wait_until_ready(start_limit_s)
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self, limit_s: float) -> None:
        began = time.monotonic()
        while time.monotonic() - began < limit_s:
            if self._process.poll() is not None:
                raise start_failure(self._tail(), f"exit status {self._process.returncode}")
            with (
                suppress(OSError, urllib.error.URLError),
                urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer,
            ):
                if answer.status == 200:
                    return
            time.sleep(0.25)
        raise EngineError(
            f"vllm serve did not answer within {limit_s:g} s: raise start_limit_s; its last words "
            f"were: {self._tail()[-300:]}",
            reason=Reason.TIMED_OUT,
        )

    def _tail(self) -> str:
        with suppress(OSError):
            return self._log.read_text(errors="replace")[-20000:]
        return ""

    def call_workers(self, method: str) -> list[Any]:
        """Call a method of the worker extension on every rank.

        Raises
        ------
        EngineError
            If the server does not offer it.
        """
        request = urllib.request.Request(
            f"{self.url}/collective_rpc",
            json.dumps({"method": method}).encode(),
            {"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return list(json.loads(answer.read())["results"])
        except (OSError, ValueError, KeyError) as error:
            raise EngineError(
                f"the server would not call {method} on its workers: {error}",
                reason=Reason.CRASHED,
            ) from None

    def close(self) -> None:
        """Stop the server and everything that it started."""
        process = self._process
        # The group outlives its leader when the server died but its workers did not.
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S if number is signal.SIGTERM else 5.0)
        self._log.unlink(missing_ok=True)


def end_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it is gone.

    A sweep that is killed takes its process group along; a server has a group of its own.
    Runs in the child, between fork and exec. Linux only: elsewhere it does nothing.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)


def command_line(arguments: Mapping[str, Any]) -> Sequence[str]:
    """Write engine arguments as vLLM's flags.

    Examples
    --------
    >>> command_line({"max_num_seqs": 8, "enforce_eager": True, "enable_prefix_caching": False})
    ['--max-num-seqs', '8', '--enforce-eager', '--no-enable-prefix-caching']
    """
    words: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, dict | list):
            words += [f"--{flag}", json.dumps(value)]
        else:
            words += [f"--{flag}", str(value)]
    return words


def start_failure(log: str, what: str) -> EngineError:
    """Translate why vLLM did not start; ``log`` is what it said."""
    lines = [line.strip() for line in log.splitlines() if "Error" in line]
    # The first error is the cause; what follows are the processes that noticed.
    told = next((line for line in lines if "core initialization" not in line), "")
    last = log.strip().splitlines()[-1:]
    cause = (told or "".join(last) or what)[-300:]
    lower = log.lower()
    if "out of memory" in lower:
        reason, advice = Reason.OUT_OF_MEMORY, "lower the batch size or take more GPUs"
    elif "kv cache" in lower and ("no available memory" in lower or "larger than" in lower):
        reason = Reason.DOES_NOT_FIT
        advice = "there is no room for the cache: lower max_sequence_tokens or take more GPUs"
    elif any(word in told for word in _UNSUPPORTED):
        reason, advice = Reason.UNSUPPORTED, "this vLLM cannot serve this LLM so"
    else:
        reason, advice = Reason.CRASHED, "set VLLM_LOGGING_LEVEL=INFO to see more"
    return EngineError(f"vLLM did not start ({cause}): {advice}", reason=reason)
