"""The page in Chromium on the real server: every control, by mouse and by keyboard."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from served import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

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
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page in"),
]
SCREENS = Path(__file__).resolve().parents[1] / "build" / "screens"
WAIT_S = 120.0  # for something to happen at all: nothing is timed here
SIZES = {"wide": 1280, "narrow": 390}
#: A question of few candidates.
SMALL = (
    "/?llm=Qwen%2FQwen3-8B&gpu=H100-SXM-80GB&max_gpus=2&rate=3&input_tokens=500"
    "&output_tokens=300&tpot=50ms&ttft=1s&meet=0.9&current=TP2+B64&price=0.13&carbon=0.37&pue=1.56"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        yield browser
        browser.close()


class Tab:
    """One page: what it logs, what it asks for, and what it shows."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.said: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.outside.append(request.url)

    def shown(self) -> str:
        return str(self.page.evaluate("window.energylens?.shown ?? ''"))

    def until(self, met: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + WAIT_S
        while not met():
            assert time.monotonic() < end, f"{what}: {self.shown()}; {self.said}"
            self.page.wait_for_timeout(30)

    def settle(self) -> str:
        """Wait for the certain answer to the question in the address."""

        def settled() -> bool:
            query = str(self.page.evaluate("location.search.slice(1)"))
            return self.shown() in (f"{query}&certain=true", "problem", "rows")

        self.until(settled, "no answer")
        return self.shown()

    def quick(self) -> str:
        """Wait for an answer to the question in the address, certain or not."""

        def answered() -> bool:
            query = str(self.page.evaluate("location.search.slice(1)"))
            return self.shown() == "problem" or self.shown().startswith(f"{query}&certain=")

        self.until(answered, "no answer")
        return self.shown()

    def open(self, url: str) -> Tab:
        self.page.goto(url)
        self.settle()
        return self

    def answer(self) -> str:
        return self.page.inner_text("#answer")

    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.page.url).query)

    def changes(self, act: Callable[[], object], read: Callable[[], object] | None = None) -> None:
        """An act changes what is shown, and nothing is logged."""
        read = read or self.answer
        before = read()
        act()
        self.until(lambda: read() != before, f"nothing changed: {before!r}")
        self.quick()


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Tab]:
    context = chromium.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme="light", accept_downloads=True
    )
    opened = Tab(context)
    yield opened
    context.close()
    assert not opened.outside
    assert not opened.said


def drag(page: Page, name: str, share: float) -> None:
    """Drag a slider's thumb with the mouse."""
    box = page.get_by_role("slider", name=name).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()


SLIDERS = {
    "Requests a second, slider": ("rate", 0.75),
    "Prompt tokens, slider": ("input_tokens", 0.9),
    "Output tokens, slider": ("output_tokens", 0.85),
    "TPOT limit, slider": ("tpot", 0.4),
    "TTFT limit, slider": ("ttft", 0.2),
    "Met with probability, slider": ("meet", 0.2),
}


def test_every_slider_by_mouse_and_by_keyboard(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL).page
    for name, (field, share) in SLIDERS.items():
        for act in (
            lambda name=name, share=share: drag(page, name, share),
            lambda name=name: page.get_by_role("slider", name=name).press("ArrowLeft"),
        ):
            tab.changes(act, lambda field=field: page.input_value(f"#{field}"))
            assert field in tab.query()
            assert float(tab.query()[field][0].removesuffix("ms")) == float(
                page.input_value(f"#{field}")
            )


def test_a_rate_moves_the_whole_answer(tab: Tab, server: Server) -> None:
    page = tab.open(server.url).page
    joules = page.inner_text("#facts")
    tab.changes(lambda: page.fill("#rate", "2"), lambda: page.inner_text("#facts"))
    tab.settle()
    assert "Run " in page.inner_text("#run")
    assert page.inner_text("#facts") != joules
    for part in ("J", "W", "TPOT", "TTFT", "meets the limits"):
        assert part in page.inner_text("#facts")
    for part in ("less than today", "kWh a month", "USD a month", "kg CO2 a month"):
        assert part in page.inner_text("#saved")
    assert "binds" in page.inner_text("#binds")
    assert page.inner_text("#line").startswith("vllm serve")
    assert "requests/s" in page.inner_text("#curve-says")
    assert "published" in page.inner_text("#behind")


def test_fields_and_choices(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL).page

    def search() -> str:
        return str(page.evaluate("location.search"))

    acts: list[Callable[[], object]] = [
        lambda: page.get_by_label("H200-SXM-141GB").check(),
        lambda: page.get_by_label("A100-SXM-80GB").press("Space"),
        lambda: page.select_option("#precision", "bf16"),
        lambda: page.select_option("#precision", "fp8"),
        lambda: page.select_option("#max_gpus", "4"),
        lambda: page.select_option("#tpot_of", "p90"),
        lambda: page.select_option("#ttft_of", "p99"),
        lambda: page.fill("#tpot", ""),
        lambda: page.fill("#current", "TP4 B64"),
        lambda: page.fill("#current", ""),
        lambda: page.get_by_text("Prices", exact=True).click(),
        lambda: page.fill("#price", "0.3"),
        lambda: page.fill("#carbon", "0.05"),
        lambda: page.fill("#pue", "1.1"),
        lambda: page.fill("#gpu_hour", "2.5"),
        lambda: page.get_by_text("More", exact=True).press("Enter"),
        lambda: page.select_option("#model", "datasheet"),
        lambda: page.select_option("#model", ""),
        lambda: page.fill("#cached_share", "0.3"),
        lambda: page.fill("#node_gpus", "8"),
        lambda: page.fill("#input_cv", "0.5"),
        lambda: page.fill("#output_cv", "0.5"),
        lambda: page.fill("#llm", "Qwen/Qwen3-4B"),
    ]
    for act in acts:
        before = search()
        act()
        tab.quick()
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            continue
        assert search() != before
        assert page.is_hidden("#problem"), page.inner_text("#problem")


def test_an_error_is_shown_and_goes_away(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL).page
    page.fill("#llm", "<img src=x onerror=alert(1)>")
    tab.until(lambda: page.is_visible("#problem"), "no error")
    assert "unknown LLM" in page.inner_text("#problem")
    assert "<img" in page.inner_text("#problem")
    assert page.is_hidden("#choice")
    page.fill("#llm", "Qwen/Qwen3-8B")
    tab.until(lambda: page.is_visible("#choice"), "no answer again")
    page.fill("#tpot", "0.5")
    tab.until(lambda: page.is_visible("#problem"), "no error")
    assert "Relax a limit" in page.inner_text("#problem")
    page.fill("#tpot", "60")
    tab.settle()
    # Chromium itself logs that an answer was a 422.
    tab.said[:] = [line for line in tab.said if "status of 422" not in line]


def test_the_address_holds_the_question(tab: Tab, server: Server, chromium: Browser) -> None:
    page = tab.open(server.url + SMALL).page
    page.fill("#rate", "1.5")
    page.fill("#current", "TP2 B64")
    page.get_by_label("H200-SXM-141GB").check()
    tab.settle()
    again = Tab(chromium.new_context(viewport={"width": 1280, "height": 900}))
    again.open(page.url)
    assert again.page.inner_text("#answer") == page.inner_text("#answer")
    assert again.page.input_value("#rate") == "1.5"
    assert again.page.get_by_label("H200-SXM-141GB").is_checked()
    again.page.context.close()
    # The same question to the API, and to the command through the decision file.
    answer = json.loads(server.ask(f"/v1/select?{urlsplit(page.url).query}")[2])
    assert answer["question"]["rate_per_s"] == 1.5
    assert f"TP{answer['configurations'][0]['tensor_parallel']}" in page.inner_text("#run")


def test_downloads_and_the_line_to_copy(tab: Tab, server: Server, tmp_path: Path) -> None:
    page = tab.open(server.url + SMALL).page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])

    def saved(act: Callable[[], object]) -> tuple[str, bytes]:
        with page.expect_download() as waited:
            act()
        path = tmp_path / waited.value.suggested_filename
        waited.value.save_as(path)
        return path.name, path.read_bytes()

    name, data = saved(lambda: page.click("#csv"))
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert name == "energylens-ranking.csv"
    assert len(rows) == int(page.inner_text("#count").split()[-1])
    assert float(rows[0]["energy_per_request_j"]) > 0
    _, data = saved(lambda: page.press("#csv-all", "Enter"))
    candidates = list(csv.DictReader(io.StringIO(data.decode())))
    assert len(candidates) > 40
    for chart in ("front", "joules", "seconds", "curve-energy"):
        tools = page.locator(f".tools[data-chart={chart}]")
        name, data = saved(tools.get_by_role("button", name="SVG").click)
        assert name == f"energylens-{chart}.svg"
        assert data.startswith(b"<svg")
    _, data = saved(lambda: page.locator(".tools[data-chart=front] button").nth(1).press("Enter"))
    assert data.startswith(b"\x89PNG")
    name, data = saved(lambda: page.click("#decision-file"))
    assert tomllib.loads(data.decode())["load"]["rate_per_s"] == 3.0
    done = subprocess.run(
        [sys.executable, "-m", "energylens", "select", str(tmp_path / name), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    best = json.loads(done.stdout)["configurations"][0]
    assert float(rows[0]["energy_per_request_j"]) == pytest.approx(best["energy_per_request_j"])

    page.click("#copy")
    tab.until(lambda: page.inner_text("#copy") == "Copied", "not copied")
    assert page.evaluate("navigator.clipboard.readText()").startswith("vllm serve")
    page.select_option("#engine", "sglang")
    assert "sglang.launch_server" in page.inner_text("#line")
    page.locator("#engine").press("ArrowDown")
    assert "trtllm-serve" in page.inner_text("#line")


def test_the_ranking_sorts_and_filters(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL).page
    page.get_by_label("H200-SXM-141GB").check()
    tab.settle()

    def column(k: int) -> list[str]:
        return page.locator(f"#ranking tbody tr > :nth-child({k})").all_inner_texts()

    def gpus() -> list[int]:
        return [int(cell) for cell in column(4)]

    for press in (lambda head: head.click(), lambda head: head.press("Enter")):
        head = page.locator("#ranking thead button", has_text="GPUs")
        press(head)
        order = page.locator("#ranking th[aria-sort]").get_attribute("aria-sort")
        assert gpus() == sorted(gpus(), reverse=order == "descending")
    assert order == "descending"
    page.fill("#filter", "h200")
    assert set(column(2)) == {"H200-SXM-141GB"}
    page.fill("#filter", "nothing like it")
    assert page.inner_text("#count").startswith("0 of")
    page.fill("#filter", "")
    page.locator("#ranking tbody tr").nth(1).focus()
    assert page.evaluate("energylens.views.front.data('chosen').length") == 1


def test_a_hover_names_a_point_of_the_front(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL).page
    page.locator("#front").scroll_into_view_if_needed()
    named = 0
    front = page.evaluate("energylens.views.front.data('top').map((d) => d.name)")
    points = len(front)
    for k in range(points):
        place = page.evaluate(
            """(k) => { const v = energylens.views.front, d = v.data('top')[k];
            const [x, y] = v.origin(), p = v.padding();
            const box = document.querySelector('#front canvas').getBoundingClientRect();
            return [box.x + x + (p.left ?? p) + v.scale('x')(d.tpot_ms),
                    box.y + y + (p.top ?? p) + v.scale('y')(d.j), d.name]; }
            """,
            k,
        )
        page.mouse.move(place[0], place[1])
        tip = page.locator("#vg-tooltip-element.visible")
        tip.wait_for()
        # Where two lie on each other the one drawn last answers: of the front all the same.
        named += any(name in tip.inner_text() for name in front)
        page.mouse.move(5, 5)
    assert named == points >= 1


def test_themes_change_by_button_and_are_kept(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL).page
    page.click("#theme")
    tab.until(lambda: page.evaluate("document.documentElement.dataset.theme") == "dark", "not dark")
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    page.press("#theme", "Enter")
    tab.until(
        lambda: page.evaluate("document.documentElement.dataset.theme") == "light", "not light"
    )


def test_the_keyboard_reaches_everything(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL).page
    page.evaluate("document.body.focus()")
    reached = []
    for _ in range(150):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(() => { const e = document.activeElement; return e.id || e.name || "
                "e.getAttribute('aria-label') || e.textContent.trim().slice(0, 30); })()"
            )
        )
        if reached[-1] == "Coefficients of time":
            break
    for name in ("llm", "precision", "gpu-0", "rate", "Requests a second, slider", "tpot_of",
                 "current", "Prices", "More", "engine", "copy", "decision-file", "as-json",
                 "filter", "csv", "csv-all", "Coefficients of time"):  # fmt: skip
        assert name in reached, reached
    order = [reached.index(name) for name in ("theme", "llm", "rate", "tpot", "current", "engine")]
    assert order == sorted(order)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_every_reader_can_use_it(chromium: Browser, server_with_rows: Server, every: bool) -> None:
    axe = pytest.importorskip("axe_core_python.sync_playwright")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    SCREENS.mkdir(parents=True, exist_ok=True)
    context = chromium.new_context(color_scheme="light")
    for view, path in (("decide", SMALL), ("rows", "/rows")):
        tab = Tab(context).open(server_with_rows.url + path)
        page = tab.page
        if view == "rows":
            tab.until(lambda: "scenarios" in page.inner_text("#learning-says"), "no curve")  # noqa: B023
        page.evaluate(source)
        for scheme in ("light", "dark"):
            if page.evaluate("document.documentElement.dataset.theme") != scheme:
                page.click("#theme")
            for size, width in SIZES.items():
                if not every and (size, scheme) not in (("wide", "light"), ("narrow", "dark")):
                    continue
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_timeout(300)  # charts follow the width
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                found = page.evaluate("axe.run()")["violations"]
                assert not [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found]
                page.screenshot(path=SCREENS / f"{view}-{size}-{scheme}.png", full_page=True)
        assert not tab.said
        assert not tab.outside
        page.evaluate("localStorage.clear()")
        page.close()
    context.close()


def test_rows_are_audited_filtered_and_saved(tab: Tab, server_with_rows: Server) -> None:
    page = tab.open(f"{server_with_rows.url}/rows").page
    assert re.search(r"\d+ rows", page.inner_text("#h-audit"))
    assert page.locator("#audit li").count() >= 2
    assert "no accuracy claim" in page.inner_text("#warning")
    everything = page.inner_text("#count")
    page.fill("#filter", "tp4")
    assert page.inner_text("#count") != everything
    shown = page.evaluate("energylens.views.residuals.data('rows').length")
    assert 0 < shown < int(everything.split()[0])
    with page.expect_download() as waited:
        page.click("#csv")
    text = Path(waited.value.path()).read_text(encoding="utf-8")
    assert len(text.splitlines()) == shown + 1
    tab.until(lambda: "scenarios" in page.inner_text("#learning-says"), "no learning curve")
    assert page.evaluate("energylens.views.learning.data('curve').length") > 3
    assert "serve --front" in page.inner_text("#forms-says")
    page.get_by_role("link", name="What to run").click()
    tab.settle()
    assert "simulated" in page.inner_text("#notes")
    page.click("#to-rows")
    tab.settle()


def test_without_rows_the_second_view_says_how(tab: Tab, server: Server) -> None:
    page = tab.open(f"{server.url}/rows").page
    assert "--data" in page.inner_text("#problem")
    tab.said[:] = [line for line in tab.said if "status of 404" not in line]
