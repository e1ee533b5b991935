"""How fast the page and the API answer: ``python -m benchmarks.page [--seconds 60]``.

Every time stands beside that of the bare answer, the same ranking of about 1,000 candidates without
HTTP in the same run, so that figures of different machines can be compared: where the rate moves,
beside that of another rate; where the lengths move, beside that of other lengths, of which nothing
is known yet. Beside wall time stands that of the processor, which others on the machine hardly
change.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

os.environ["OPENBLAS_NUM_THREADS"] = "1"

from energylens.schemas import Question
from energylens.web import answers
from energylens.web.models import Loaded

QUESTION: dict[str, Any] = {
    "llm": "meta-llama/Llama-3.3-70B-Instruct", "precision": "fp8",
    "gpu": ["H100-SXM-80GB", "H200-SXM-141GB"], "max_gpus": 8, "rate": 3, "input_tokens": 2000,
    "output_tokens": 300, "tpot": "50ms", "ttft": "1s", "current": "TP8 B256",
}  # fmt: skip
STEPS = 60  # of a slider
#: Is done when the next picture by means has been painted.
NEXT = """() => {
  const all = (energylens.timings ??= []);
  return { done: new Promise((told) => {
    all.push = (...more) => {
      const length = Array.prototype.push.apply(all, more);
      if (more.some((each) => !each.sure)) told();
      return length;
    };
  }) };
}"""


def ms(times: list[float], share: float) -> float:
    """A percentile, in milliseconds."""
    return 1e3 * sorted(times)[min(int(share * len(times)), len(times) - 1)]


def said(what: str, times: list[float], bare: float, bars: str) -> None:
    """Print median, p95, p99 and the ratio to the bare answer."""
    p50, p95, p99 = (ms(times, share) for share in (0.5, 0.95, 0.99))
    print(
        f"{what:44} p50 {p50:6.1f}  p95 {p95:6.1f}  p99 {p99:6.1f} ms   "
        f"{p50 / bare:5.2f} x bare   ({bars})",
        flush=True,
    )


def answered(what: str, moved: list[dict[str, float]], *, certain: bool = False) -> float:
    """Answer questions one after another without HTTP, print it; the median, in milliseconds."""
    loaded = Loaded()
    wall, cpu = [], []
    for change in moved:
        question = Question(**{**QUESTION, "precision": ["fp8"], **change}).document()
        start, worked = time.perf_counter(), time.process_time()
        answers.select(loaded, question, certain=certain)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - worked)
    middle = ms(wall[5:], 0.5)
    said(what, wall[5:], middle, f"of the processor {ms(cpu[5:], 0.5):.1f} ms")
    return middle


@contextlib.contextmanager
def served() -> Iterator[tuple[int, float]]:
    """Start a server; its port, and the seconds from start to first answer."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "energylens", "serve", "--port", "0", "--rate", "100000"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r":(\d+)/", process.stdout.readline())
        assert found, "the server did not start"
        port = int(found[1])
        ask(port, {**QUESTION, "certain": "false"})
        yield port, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(timeout=60)


def ask(port: int, question: dict[str, Any]) -> bytes:
    """Ask once on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/v1/select?{urlencode(question, doseq=True)}")
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {body[:300]!r}")
    return body


async def load(port: int, rate: float, seconds: float) -> tuple[list[float], int]:
    """Ask at an even rate, whether answers come or not; times from when each was due."""
    times: list[float] = []
    errors = 0

    async def once(due: float, n: int) -> None:
        nonlocal errors
        question = {**QUESTION, "rate": round(2 + n / 1000, 4), "certain": "false"}
        target = f"/v1/select?{urlencode(question, doseq=True)}"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        answer = await reader.read()
        writer.close()
        times.append(time.perf_counter() - due)
        errors += not answer.startswith(b"HTTP/1.1 200")

    begun = time.perf_counter() + 0.2
    tasks = []
    for n in range(int(rate * seconds)):
        due = begun + n / rate
        await asyncio.sleep(max(due - time.perf_counter(), 0.0))
        tasks.append(asyncio.create_task(once(due, n)))
    await asyncio.gather(*tasks)
    return times, errors


def slider(port: int, name: str) -> list[float]:
    """Move a slider of the page step by step; seconds from the event to the painted picture."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        return []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"http://127.0.0.1:{port}/?{urlencode(QUESTION, doseq=True)}&meet=0.9")
        knob = page.get_by_role("slider", name=f"{name}, slider")
        while "certain=true" not in str(page.evaluate("window.energylens?.shown")):
            page.wait_for_timeout(100)
        knob.focus()
        for _ in range(STEPS):
            # Asked every few milliseconds, the page would answer the question and not the slider.
            painted = page.evaluate_handle(NEXT)
            page.keyboard.press("ArrowRight")
            painted.evaluate("(next) => next.done")
        found = page.evaluate("energylens.timings.filter((t) => !t.sure).map((t) => t.all_ms)")
        browser.close()
    return [each / 1e3 for each in found[-STEPS:]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=20.0)
    arguments = parser.parse_args()
    cpu = next((x for x in _cpuinfo() if x.startswith("model name")), platform.processor())
    considered = answers.select(
        Loaded(), Question(**{**QUESTION, "precision": ["fp8"]}).document(), certain=False
    )["considered"]
    print(
        f"{cpu.rpartition(': ')[2]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"{considered:,} candidates"
    )
    by_rate = answered("bare answer, the rate moves", [{"rate": 2 + n / 100} for n in range(60)])
    by_tokens = answered(
        "bare answer, the lengths move", [{"input_tokens": 2000 + n} for n in range(60)]
    )
    answered("with probabilities", [{"rate": 2 + n / 100} for n in range(25)], certain=True)
    with served() as (port, first):
        print(f"{'start to first answer':44} {first:10.2f} s   (at most 2.5 s)")
        times, errors = asyncio.run(load(port, arguments.rate, arguments.seconds))
        said(
            f"API, {arguments.rate:g}/s for {arguments.seconds:g} s, {errors} errors",
            times,
            by_rate,
            "p50 <= 30, p99 <= 150 ms, none",
        )
        for name, bare in (("Prompt tokens", by_tokens), ("Requests a second", by_rate)):
            if moved := slider(port, name):
                said(f"slider to picture, {name}", moved, bare, "p50 <= 70, p95 <= 110 ms")
        kept = len(json.loads(ask(port, {**QUESTION, "certain": "false"}))["configurations"])
    print(f"{kept} configurations in an answer")


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
