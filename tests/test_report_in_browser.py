"""The report in a real browser: headless Chromium, spoken to over a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from energylens.charts.theme import PALETTE
from energylens.records import Source
from energylens.report.content import gather
from energylens.report.html import page as page_of
from report_sample import FIGURES, sample

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the report in"),
]
TIMEOUT_S = 600.0

# Chromium reads commands from descriptor 3 and answers on 4.
WIRE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """A tab, by the DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        commands, self._out = _pipe()
        self._in, answers = _pipe()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", WIRE, str(commands), str(answers), CHROMIUM),
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--disable-background-networking", "--disable-component-update"),
                *("--disable-sync", "--no-first-run", "--remote-debugging-pipe"),
                *(f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._buffer, self._number, self._tab = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._tab = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._tab:
            message["sessionId"] = self._tab
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(until - time.monotonic(), 0))
            part = os.read(self._in, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError("the browser does not answer")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def open(
        self, page: Path, *, width: int = 1280, scheme: str = "light", js: bool = True
    ) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Emulation.setScriptExecutionDisabled", value=not js)
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def ask(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode={"Tab": 9, "Enter": 13}[key],
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._in)
        os.close(self._out)


def _pipe() -> tuple[int, int]:
    """Open a pipe whose descriptors are not among those that Chromium wants."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("vl_convert", reason="figures need the extra report")
    s = sample(Source.SIMULATED)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(
        page_of(
            gather(
                s.model,
                s.dataset,
                diagnostics=s.diagnostics,
                evaluations=s.evaluations,
                ranking=s.ranking,
            )
        ),
        encoding="utf-8",
    )
    return path


def complaints(browser: Browser) -> list[dict[str, Any]]:
    """Whatever the console shows, and dialogs that a script in a name would open."""
    return [
        event
        for event in browser.events
        if event.get("method")
        in (
            "Log.entryAdded",
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Page.javascriptDialogOpening",
        )
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_seen_and_the_console_is_silent(
    browser: Browser, page: Path, scheme: str
) -> None:
    browser.open(page, scheme=scheme)
    browser.ask("document.querySelectorAll('details.more').forEach(d => { d.open = true })")
    seen = browser.ask(
        "[...document.querySelectorAll('figure')].map(f => {"
        "  const box = f.querySelector('svg').getBoundingClientRect();"
        "  return [f.id, box.width > 400 && box.height > 100,"
        "          f.querySelectorAll('svg path, svg use').length > 5] })"
    )
    assert seen == [[name, True, True] for name in FIGURES]
    assert complaints(browser) == []


def test_nothing_is_asked_of_any_network(browser: Browser, page: Path) -> None:
    browser.open(page)
    asked = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event.get("method") == "Network.requestWillBeSent"
    ]
    assert asked == [page.as_uri()]


def test_the_page_is_six_screens_until_more_is_asked_for(browser: Browser, page: Path) -> None:
    browser.open(page, width=1280)
    assert browser.ask("document.documentElement.scrollHeight") <= 6 * 900


@pytest.mark.parametrize("width", [320, 390, 400])
def test_a_narrow_page_does_not_scroll_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    browser.ask("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert browser.ask("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("width", "media"), [(1200, "screen"), (700, "print")])
def test_no_table_hides_columns_on_a_desk_or_on_paper(
    browser: Browser, page: Path, width: int, media: str
) -> None:
    # On a desk, a name of the sample that is one long word may scroll.
    spared = "yyyyyyyy" if media == "screen" else "nothing is spared"
    browser.open(page, width=width)
    browser.call("Emulation.setEmulatedMedia", media=media)
    browser.ask("document.querySelectorAll('details.more').forEach(d => { d.open = true })")
    hidden = browser.ask(
        "[...document.querySelectorAll('.scroll:has(table)')]"
        f".filter(d => !d.textContent.includes('{spared}'))"
        ".filter(d => d.scrollWidth > d.clientWidth + 1)"
        ".map(d => [d.getAttribute('aria-label'), d.scrollWidth, d.clientWidth])"
    )
    browser.call("Emulation.setEmulatedMedia", media="")
    assert hidden == []


def test_figures_follow_the_theme_and_the_button_turns_it(browser: Browser, page: Path) -> None:
    colours = (
        "[getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('#ranking svg text')).fill]"
    )

    def expected(theme: int) -> list[str]:
        hexes = (PALETTE["paper"][theme], PALETTE["muted"][theme])
        return [f"rgb({', '.join(str(int(h[i : i + 2], 16)) for i in (1, 3, 5))})" for h in hexes]

    browser.open(page, scheme="dark")
    assert browser.ask(colours) == expected(1)
    browser.ask("document.getElementById('theme').click()")
    assert browser.ask(colours) == expected(0)
    assert browser.ask("document.getElementById('theme').textContent") == "Dark page"
    browser.open(page, scheme="light")
    assert browser.ask(colours) == expected(0)


def test_without_scripts_only_the_button_is_missing(browser: Browser, page: Path) -> None:
    browser.open(page, js=False)
    assert browser.ask("document.getElementById('theme').hidden") is True
    assert browser.ask("document.querySelectorAll('figure svg').length") == len(FIGURES)
    assert complaints(browser) == []


def test_the_keyboard_reaches_what_there_is_to_reach(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.press("Tab")
    assert browser.ask("document.activeElement.textContent") == "Skip to the report"
    assert browser.ask("document.activeElement.getBoundingClientRect().top") >= 0
    browser.press("Enter", text="\r")
    assert browser.ask("document.activeElement.id") == "main"
    browser.ask("document.querySelector('summary').focus()")
    browser.press("Enter", text="\r")
    assert browser.ask("document.querySelector('details').open") is True
    style = "getComputedStyle(document.activeElement).outlineStyle"
    assert browser.ask(style) not in ("none", "")


def test_a_screen_reader_hears_the_figures_and_the_banner(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.ask("document.querySelectorAll('details.more').forEach(d => { d.open = true })")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    heard: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            role = str(node["role"]["value"])
            heard.setdefault(role, []).append(str(node.get("name", {}).get("value", "")))
    assert len(heard["figure"]) == len(FIGURES)
    assert all(heard["figure"])
    images = heard.get("image", []) + heard.get("img", [])
    assert len(images) == len(FIGURES)
    assert len(heard.get("math", []) + heard.get("MathMLMath", [])) == 2
    assert all(images)
    assert "Where the numbers come from" in heard["complementary"]
    assert {"main", "banner", "contentinfo", "navigation"} <= set(heard)
    assert browser.ask("document.querySelector('.banner.loud strong').textContent") == (
        "This rests on simulated rows: no accuracy claim rests on these."
    )


def live(browser: Browser) -> None:
    """Open everything, bring each figure into view, and wait until all are drawn anew."""
    browser.ask("document.querySelectorAll('details.more').forEach(d => { d.open = true })")
    until = time.monotonic() + TIMEOUT_S
    for name in FIGURES:
        browser.ask(f"document.getElementById('{name}').scrollIntoView({{behavior: 'instant'}})")
        while not browser.ask(f"'live' in document.getElementById('{name}').dataset"):
            assert time.monotonic() < until, f"{name} stays still"
            time.sleep(0.02)


@pytest.mark.parametrize("width", [1280, 390])
def test_drawings_answer_the_pointer_and_the_console_stays_silent(
    browser: Browser, page: Path, width: int
) -> None:
    browser.open(page, width=width)
    heard = browser.ask(
        "[...document.querySelectorAll('figure svg')].map(s => s.getAttribute('aria-label'))"
    )
    live(browser)
    seen = browser.ask(
        "[...document.querySelectorAll('figure svg')].map(s => [s.getAttribute('aria-label'),"
        " s.getBoundingClientRect().width <= s.closest('.drawing').clientWidth])"
    )
    assert seen == [[words, True] for words in heard]
    # The first point of the ranking.
    place = browser.ask(
        "(() => { document.getElementById('ranking').scrollIntoView({behavior: 'instant'});"
        " const marks = document.querySelectorAll('#ranking svg .mark-symbol.role-mark path');"
        " const box = marks[0].getBoundingClientRect();"
        " return [box.left + box.width / 2, box.top + box.height / 2] })()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    said = "document.querySelector('#vg-tooltip-element.visible')?.innerText ?? ''"
    until = time.monotonic() + TIMEOUT_S
    while "J a request" not in browser.ask(said):
        assert time.monotonic() < until, "no tooltip"
        time.sleep(0.02)
    assert "configuration" in browser.ask(said)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert complaints(browser) == []


def test_drawings_drawn_anew_follow_the_theme(browser: Browser, page: Path) -> None:
    browser.open(page, scheme="dark")
    live(browser)
    paint = "getComputedStyle(document.querySelector('#ranking svg .mark-text text')).fill"
    dark = browser.ask(paint)
    browser.ask("document.getElementById('theme').click()")
    assert browser.ask(paint) != dark


def test_a_still_page_has_the_same_drawings_and_less_to_carry(page: Path) -> None:
    s = sample(Source.SIMULATED)
    report = gather(
        s.model,
        s.dataset,
        diagnostics=s.diagnostics,
        evaluations=s.evaluations,
        ranking=s.ranking,
    )
    whole = page.read_text(encoding="utf-8")
    still = page_of(report, interactive=False)
    assert 'id="drawer"' in whole
    assert 'id="drawer"' not in still
    main = slice(whole.index("<main"), whole.index("</main>"))
    assert whole[main] == still[still.index("<main") : still.index("</main>")]
    assert len(still) < 300_000 < len(whole) < 900_000
