"""What may change something outside: each refuses until it is named, its target and bounds allowed.

What was there before is read first and left with a guard process, then the change is made; so
whatever ends the controller, what it had set is put back (:mod:`energylens.guard`).
"""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from energylens.errors import EnergyLensError, UsageError
from energylens.guard import TRIES, Guard, undo
from energylens.online.proxy import LONGEST_LEASE_S
from energylens.watching.counters import read_counters

TIMEOUT_S = 5.0
SLEEP_TIMEOUT_S = 60.0  # weights go to the host's memory and back
LEASE_S = 10.0

Step = dict[str, Any]


class ActuatorError(EnergyLensError):
    """Something could not be read or set; what had been set was put back."""


class NotNowError(ActuatorError):
    """It may be set later; nothing is wrong, and nothing has been touched."""


class RefusedError(UsageError):
    """Nobody allowed that."""


@dataclass(frozen=True, kw_only=True)
class Consent:
    """What may be done: by default nothing.

    Attributes
    ----------
    actuator : str
        The one that is allowed; empty: none.
    targets : frozenset of str
        What it may change.
    low, high : float
        Within which a value must lie.
    """

    actuator: str = ""
    targets: frozenset[str] = frozenset()
    low: float = math.inf
    high: float = -math.inf

    def check(self, actuator: str, target: str, value: float) -> None:
        """Refuse what is not allowed.

        Raises
        ------
        RefusedError
            If the actuator is not named, the target not listed, or the value out of bounds.
        """
        if actuator != self.actuator:
            raise RefusedError(
                f"{actuator} must be named before it changes anything: give --act {actuator}"
            )
        if target not in self.targets:
            raise RefusedError(
                f"{target} is on no list of what may be changed: give --allow {target}"
            )
        if not (math.isfinite(value) and self.low <= value <= self.high):
            raise RefusedError(
                f"{actuator} may set {target} to {self.low:g} to {self.high:g}, not {value:g}: "
                "give other --bounds"
            )


class Actuator(Protocol):
    """One way to change something. Never called but by a :class:`Hand`."""

    @property
    def name(self) -> str:
        """What ``--act`` calls it."""

    @property
    def knob(self) -> str:
        """What it sets: power_cap_w, batch_limit, replicas, or awake (1 or 0 of one engine)."""

    def before(self, target: str) -> list[Step]:
        """Read what is there, and say how it is put back."""

    def set(self, target: str, value: float) -> None:
        """Change it."""


def _http(
    method: str, url: str, headers: Mapping[str, str], body: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> bytes:  # fmt: skip
    request = urllib.request.Request(
        url, data=None if body is None else body.encode(), headers=dict(headers), method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            found: bytes = answer.read(1 << 22)
    except (OSError, ValueError) as error:
        raise ActuatorError(f"{method} {url.split('?')[0]} failed: {error}") from None
    return found


def _document(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise ActuatorError(f"{where} must answer with JSON") from None


@dataclass(frozen=True)
class Zeusd:
    """Power limits of GPUs through the daemon of Zeus; a target is the index of a GPU.

    The limit from before is asked of the daemon; one too old to tell needs ``default_w``.
    """

    url: str
    token: str = ""
    default_w: float | None = None
    name: str = "zeusd"
    knob: str = "power_cap_w"

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def _set(self, target: str, milliwatts: int) -> tuple[str, str, dict[str, str], None]:
        asked = {"gpu_ids": target, "power_limit_mw": str(milliwatts), "block": "true"}
        where = f"{self.url.rstrip('/')}/gpu/set_power_limit?{urlencode(asked)}"
        return "POST", where, self._headers, None

    def before(self, target: str) -> list[Step]:
        """Ask for the limit that holds."""
        if not target.isdigit():
            raise ActuatorError(f"a target of zeusd is the index of a GPU, not {target!r}")
        milliwatts = None if self.default_w is None else round(1000 * self.default_w)
        if milliwatts is None:
            where = f"{self.url.rstrip('/')}/gpu/get_power_limit?gpu_ids={target}"
            told = _document(_http("GET", where, self._headers), "zeusd")
            milliwatts = _limit_mw(told, target)
        if milliwatts is None:
            raise ActuatorError(
                f"zeusd does not tell the power limit of GPU {target}: give --default W"
            )
        return [{"http": list(self._set(target, milliwatts))}]

    def set(self, target: str, value: float) -> None:
        """Set the limit, in watts."""
        method, url, headers, _ = self._set(target, round(1000 * value))
        _http(method, url, headers)


def _limit_mw(told: Any, target: str) -> int | None:
    """Find a GPU's limit in an answer as ``{"0": {"power_limit_mw": 700000}}``."""
    of_gpu = told.get(target) if isinstance(told, Mapping) else None
    value = of_gpu.get("power_limit_mw") if isinstance(of_gpu, Mapping) else None
    return round(value) if isinstance(value, int | float) and 1e3 < value < 1e7 else None


@dataclass(frozen=True)
class NvidiaSmi:
    """Power limits of GPUs by nvidia-smi, which needs root; a target is the index of a GPU."""

    program: str = "nvidia-smi"
    name: str = "nvidia-smi"
    knob: str = "power_cap_w"

    def _run(self, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [self.program, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise ActuatorError(f"{self.program} cannot be run: {error}") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no word"]
            raise ActuatorError(f"{self.program} refused: {said[-1][:200]}")
        return done.stdout

    def before(self, target: str) -> list[Step]:
        """Ask for the limit that holds."""
        if not target.isdigit():
            raise ActuatorError(f"a target of nvidia-smi is the index of a GPU, not {target!r}")
        said = self._run(
            "-i", target, "--query-gpu=power.limit", "--format=csv,noheader,nounits"
        ).strip()
        try:
            watts = float(said)
        except ValueError:
            raise ActuatorError(f"nvidia-smi tells no power limit of GPU {target}") from None
        return [{"run": [self.program, "-i", target, "-pl", f"{watts:g}"]}]

    def set(self, target: str, value: float) -> None:
        """Set the limit, in watts."""
        self._run("-i", target, "-pl", f"{value:g}")


@dataclass(frozen=True)
class Sglang:
    """The live limit on sequences of an SGLang server; a target is its address."""

    headers: Mapping[str, str] = field(default_factory=dict)
    name: str = "sglang"
    knob: str = "batch_limit"

    def _set(self, target: str, value: int) -> tuple[str, str, dict[str, str], str]:
        body = json.dumps({"server_args": {"pp_max_micro_batch_size": value}})
        headers = {"Content-Type": "application/json", **self.headers}
        return "POST", f"{target.rstrip('/')}/set_internal_state", headers, body

    def before(self, target: str) -> list[Step]:
        """Ask for the limit that holds."""
        told = _document(
            _http("GET", f"{target.rstrip('/')}/get_server_info", self.headers), target
        )
        places: list[Any] = [told] if isinstance(told, Mapping) else []
        states = told.get("internal_states") if isinstance(told, Mapping) else None
        places = [*(states if isinstance(states, list) else []), *places]
        names = ("pp_max_micro_batch_size", "max_micro_batch_size", "max_running_requests")
        for name in names:
            for place in places:
                value = place.get(name) if isinstance(place, Mapping) else None
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return [{"http": list(self._set(target, value))}]
        raise ActuatorError(f"{target} does not tell its limit on running requests")

    def set(self, target: str, value: float) -> None:
        """Set the limit."""
        _http(*self._set(target, int(value)))


@dataclass(frozen=True)
class VllmSleep:
    """Whether one vLLM is awake (1) or asleep (0); a target is its address.

    The endpoints are there where vLLM runs with ``--enable-sleep-mode`` and
    ``VLLM_SERVER_DEV_MODE=1``. An engine that has requests is not put to sleep: what routes
    requests to it must have left it alone first.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    name: str = "vllm-sleep"
    knob: str = "awake"

    def _step(self, target: str, *, awake: bool) -> tuple[str, str, dict[str, str], str]:
        path = "/wake_up" if awake else "/sleep?level=1"
        return "POST", f"{target.rstrip('/')}{path}", dict(self.headers), ""

    def _asleep(self, target: str) -> bool:
        try:
            told = _document(
                _http("GET", f"{target.rstrip('/')}/is_sleeping", self.headers), target
            )
        except ActuatorError as error:
            raise ActuatorError(
                f"{error}: vLLM answers it where it runs with --enable-sleep-mode and "
                "VLLM_SERVER_DEV_MODE=1"
            ) from None
        asleep = told.get("is_sleeping") if isinstance(told, Mapping) else None
        if not isinstance(asleep, bool):
            raise ActuatorError(f"{target} does not tell whether it sleeps")
        return asleep

    def before(self, target: str) -> list[Step]:
        """Ask whether it sleeps."""
        return [{"http": list(self._step(target, awake=not self._asleep(target)))}]

    def set(self, target: str, value: float) -> None:
        """Wake it, or put it to sleep where it has no requests."""
        if value not in (0.0, 1.0):
            raise ActuatorError(f"an engine is awake, 1, or asleep, 0, not {value:g}")
        awake = value == 1.0
        if self._asleep(target) != awake:
            return
        if not awake:
            text = _http("GET", f"{target.rstrip('/')}/metrics", self.headers)
            counted = read_counters(text.decode("utf-8", "replace"), where=target)
            if counted.running is None or counted.waiting is None:
                raise ActuatorError(f"{target} does not tell its requests: it stays awake")
            if left := counted.running + counted.waiting:
                raise NotNowError(f"{target} has {left:.0f} requests and stays awake")
        _http(*self._step(target, awake=awake), timeout_s=SLEEP_TIMEOUT_S)


@dataclass(frozen=True)
class Proxy:
    """The admission proxy; a target is its address. It forgets a limit by itself after a lease."""

    lease_s: float = LEASE_S
    name: str = "proxy"
    knob: str = "batch_limit"

    def _set(self, target: str, value: int | None) -> tuple[str, str, dict[str, str], str]:
        body = json.dumps({"limit": value, "lease_s": self.lease_s})
        headers = {"Content-Type": "application/json"}
        return "PUT", f"{target.rstrip('/')}/_energylens/limit", headers, body

    def before(self, target: str) -> list[Step]:
        """No limit is what is put back."""
        _http("GET", f"{target.rstrip('/')}/_energylens/limit", {})
        return [{"http": list(self._set(target, None))}]

    def set(self, target: str, value: float) -> None:
        """Set the limit for a lease."""
        _http(*self._set(target, int(value)))


@dataclass(frozen=True)
class ValueFile:
    """Replicas in a JSON file that a scaler reads: of KEDA, WVA or Ray; a target is its path.

    ``expires_at_s`` tells the reader until when it holds.
    """

    name: str = "keda"
    lease_s: float = LEASE_S
    knob: str = "replicas"

    def before(self, target: str) -> list[Step]:
        """Keep what the file holds; no file where there is none."""
        path = Path(target)
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else None
        except (OSError, ValueError) as error:
            raise ActuatorError(f"{target} cannot be read: {error}") from None
        return [{"file": [str(path.resolve()), text]}]

    def set(self, target: str, value: float) -> None:
        """Write the file."""
        document = {"replicas": int(value), "expires_at_s": round(time.time() + self.lease_s, 3)}
        try:
            undo({"file": [str(Path(target).resolve()), json.dumps(document) + "\n"]})
        except OSError as error:
            raise ActuatorError(f"{target} cannot be written: {error}") from None


def make(
    name: str, *, url: str = "", token: str = "", default: float | None = None,
    lease_s: float = LEASE_S,
) -> Actuator:  # fmt: skip
    """Make an actuator by its name; what runs out by itself does after the lease.

    Raises
    ------
    UsageError
        If there is none of that name, or it lacks something.
    """
    if name == "zeusd":
        if not url:
            raise UsageError("zeusd needs the address of its daemon: give --url http://HOST:4938")
        return Zeusd(url, token, default)
    if name == "nvidia-smi":
        return NvidiaSmi()
    if name == "sglang":
        return Sglang({"Authorization": f"Bearer {token}"} if token else {})
    if name == "vllm-sleep":
        return VllmSleep({"Authorization": f"Bearer {token}"} if token else {})
    if name == "proxy":
        return Proxy(min(lease_s, LONGEST_LEASE_S))
    if name in ("keda", "wva", "ray"):
        return ValueFile(name, lease_s)
    raise UsageError(f"no actuator is called {name!r}; there are {', '.join(ACTUATORS)}")


ACTUATORS = ("zeusd", "nvidia-smi", "keda", "wva", "ray", "sglang", "vllm-sleep", "proxy")


class Hand:
    """Changes things by one actuator, as far as consent goes, and puts everything back.

    Parameters
    ----------
    consent : Consent
        By default nothing is allowed.
    log : callable
        Told of every change as a document: what, to what, and why in joules and milliseconds.
    dry : bool
        Check consent and read what is there, change nothing, log what would be.
    lease_s : float
        After which the guard puts everything back if it does not hear from this process.
    """

    def __init__(
        self,
        actuator: Actuator,
        consent: Consent = Consent(),
        log: Callable[[dict[str, Any]], None] = lambda _: None,
        lease_s: float = LEASE_S,
        *,
        dry: bool = False,
    ) -> None:
        self.actuator, self.consent, self.log, self.lease_s = actuator, consent, log, lease_s
        self.dry = dry
        self._held: dict[str, list[Step]] = {}
        self._guard: Guard | None = None

    def __enter__(self) -> Hand:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def act(self, target: str, value: float, reason: Mapping[str, Any]) -> None:
        """Set a value.

        Raises
        ------
        RefusedError
            If it is not allowed: then nothing has been touched.
        NotNowError
            If it must wait: then everything stays as it is.
        ActuatorError
            If it fails: then everything set so far has been put back.
        """
        self.consent.check(self.actuator.name, target, value)
        what = {"actuator": self.actuator.name, "target": target, "knob": self.actuator.knob}
        if self.dry:
            self.actuator.before(target)
            self.log({"dry_run": True, **what, "value": value, **reason})
            return
        try:
            if target not in self._held:
                steps = self.actuator.before(target)
                self._tell({"undo": target, "steps": steps}, answered=True)
                self._held[target] = steps
            self.actuator.set(target, value)
        except NotNowError as error:
            self.log({"later": target, "why": str(error)})
            raise
        except EnergyLensError as error:
            self.log({"failed": target, "why": str(error)})
            self.restore("an actuator failed")
            raise
        self.log({**what, "value": value, **reason})

    def beat(self) -> None:
        """Tell the guard that this process lives."""
        if self._guard is not None:
            self._tell({"beat": 1})

    def restore(self, why: str) -> None:
        """Put everything back.

        Raises
        ------
        ActuatorError
            If something could not be, after several tries; the guard goes on trying.
        """
        failed = []
        for target in reversed(list(self._held)):
            for attempt in range(TRIES):
                try:
                    for step in self._held[target]:
                        undo(step)
                except (OSError, subprocess.SubprocessError) as error:
                    if attempt == TRIES - 1:
                        failed.append(f"{target}: {error}")
                    else:
                        time.sleep(0.1 * 2**attempt)
                else:
                    del self._held[target]
                    self._tell({"done": target})
                    self.log({"restored": target, "why": why})
                    break
        if failed:
            raise ActuatorError(f"not put back: {'; '.join(failed)}")

    def close(self) -> None:
        """Put everything back, and let the guard go."""
        try:
            self.restore("the end")
        finally:
            if self._guard is not None:
                self._guard.close()
                self._guard = None

    def _tell(self, told: Mapping[str, Any], *, answered: bool = False) -> None:
        self._guard = self._guard or Guard(self.lease_s)
        try:
            self._guard.tell(told, answered=answered)
        except OSError as error:
            raise ActuatorError(f"the guard does not answer: {error}") from None
