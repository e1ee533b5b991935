"""One look at a Prometheus endpoint: text over HTTP, parsed by Prometheus's own client library."""

from __future__ import annotations

import http.client
import math
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from energylens.errors import MeasurementError, MissingExtraError, UsageError
from energylens.foreign import printable, without_secrets

#: An engine with hundreds of adapters exports some hundreds of kB.
LONGEST_ANSWER_BYTES = 1 << 24
PATIENCE_S = 5.0


class ScrapeError(MeasurementError):
    """An endpoint did not answer, or with something that is no metrics."""


@dataclass(frozen=True)
class Series:
    """One value of a metric with its labels."""

    name: str
    labels: Mapping[str, str]
    value: float


def endpoint(url: str, path: str = "/metrics") -> str:
    """Complete an address: ``host:8000`` becomes ``http://host:8000/metrics``.

    Raises
    ------
    UsageError
        If it is no address of HTTP.
    """
    full = url.strip() if "://" in url else f"http://{url.strip()}"
    try:
        parts = urlsplit(full)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UsageError(
            f"an endpoint must be an address as http://host:8000/metrics, not "
            f"{printable(url, 80)!r}"
        )
    return full if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}{path}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Whoever was named is asked, and nobody else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        return None


# Metrics are of machines nearby: a proxy of the environment has no part in it.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)


def fetch(url: str, *, token: str = "", patience_s: float = PATIENCE_S) -> str:
    """Fetch the text of an endpoint.

    Parameters
    ----------
    token : str
        Sent as a bearer token where given.
    patience_s : float
        For each piece of the answer.

    Raises
    ------
    ScrapeError
        If there is no answer, an error, or one too long.
    """
    headers = {"Accept": "text/plain; version=0.0.4", "User-Agent": "energylens-watch"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, headers=headers)
    shown = without_secrets(url)
    try:
        with _OPENER.open(request, timeout=patience_s) as answer:
            body: bytes = answer.read(LONGEST_ANSWER_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise ScrapeError(
                f"{shown} answered {error.code} {printable(error.reason, 80)}."
            ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ScrapeError(f"{shown} does not answer: {printable(reason, 120)}.") from None
    if len(body) > LONGEST_ANSWER_BYTES:
        raise ScrapeError(f"{shown} sent more than {LONGEST_ANSWER_BYTES >> 20} MiB of metrics.")
    return body.decode("utf-8", errors="replace")


def parse(text: str, prefixes: tuple[str, ...], where: str = "the endpoint") -> list[Series]:
    """Parse metrics whose names start with one of some prefixes.

    Values that are NaN or infinite are left out: they say nothing.

    Raises
    ------
    ScrapeError
        If the text is no metrics in Prometheus's format.
    MissingExtraError
        If prometheus-client is not installed.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError:
        raise MissingExtraError("prometheus-client", "watch", "reading metrics") from None
    # Only what is asked for is parsed: an engine's other histograms are long. Without their types,
    # under which the client library would call some counters by other names.
    kept = "\n".join(line for line in text.splitlines() if line.startswith(prefixes))
    found = []
    try:
        for family in text_string_to_metric_families(kept + "\n"):
            found += [
                Series(sample.name, sample.labels, float(sample.value))
                for sample in family.samples
                if math.isfinite(sample.value)
            ]
    except (ValueError, KeyError, IndexError) as error:
        raise ScrapeError(
            f"{where} answers, but not with metrics of Prometheus: {printable(error, 120)}."
        ) from None
    return found


def total(series: Iterable[Series], *names: str) -> float | None:
    """Add up all series of the first of some names that there is; None where there is none."""
    by_name: dict[str, list[float]] = {name: [] for name in names}
    for one in series:
        if one.name in by_name:
            by_name[one.name].append(one.value)
    return next((math.fsum(values) for values in by_name.values() if values), None)
