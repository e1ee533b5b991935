"""A page in Chromium, for tests that look at what a reader sees."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

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
BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page in"),
]
SCREENS = Path(__file__).resolve().parents[1] / "build" / "screens"
WAIT_S = 300.0  # for something to happen at all: nothing is timed here
SIZES = {"wide": 1280, "narrow": 390}
#: A question of few candidates.
SMALL = (
    "/?llm=Qwen%2FQwen3-8B&gpu=H100-SXM-80GB&max_gpus=2&rate=3&input_tokens=500"
    "&output_tokens=300&tpot=50ms&ttft=1s&meet=0.9&current=TP2+B64&price=0.13&carbon=0.37&pue=1.56"
)


# Not for the whole session: playwright holds the event loop of the thread for as long as it lives.
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
