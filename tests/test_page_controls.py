"""Every control of the page, taken from the document itself, by mouse and by keyboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from browsing import BROWSER, SIZES, SMALL, Tab
from served import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = BROWSER

#: What is typed with the mouse's help and without it, for each field; a new field must be named.
TYPED = {
    "llm": ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
    "find_gpu": ("mi3", "v100"),
    "rate": ("2", "2.5"),
    "input_tokens": ("700", "600"),
    "output_tokens": ("200", "250"),
    "tpot": ("40", "45"),
    "ttft": ("900", "800"),
    "meet": ("0.8", "0.85"),
    "current": ("TP1 B32", "vllm serve x -tp 2 --max-num-seqs 16"),
    "price": ("0.3", "0.2"),
    "carbon": ("0.05", "0.1"),
    "pue": ("1.1", "1.2"),
    "gpu_hour": ("2.5", "3"),
    "cached_share": ("0.3", "0.2"),
    "node_gpus": ("8", "4"),
    "input_cv": ("0.5", "0.7"),
    "output_cv": ("0.5", "0.7"),
    "images": ("1", "2"),
    "frames": ("8", "4"),
    "filter": ("h200", "h200"),
    "filter-forms": ("cache", "cache"),
}
#: By share of its width, where half would ask for what cannot be served.
DRAGGED = {"rate": 0.55, "tpot": 0.6, "ttft": 0.7}
#: Where the next choice in the list is the same by another name.
CHOSEN = {"precision": "fp8", "model": "datasheet"}
#: Names of what is not in view until the summary is opened, and of elements without an id.
LISTED = """() => {
  for (const part of document.querySelectorAll("details")) part.open = false;
  const all = "a[href], button, input, select, textarea, summary, [tabindex]:not([tabindex='-1'])";
  const shown = [...document.querySelectorAll(all)].filter((e) => e.closest("[hidden]") === null);
  return shown.map((e) => {
    // Named, not numbered: other controls may be shown when this is asked again.
    const name = e.id || e.getAttribute("aria-label") || e.textContent.trim().slice(0, 40);
    e.dataset.control = `${e.tagName} ${name}`.replaceAll(/['"\\\\]/g, "");
    return {at: e.dataset.control, tag: e.tagName.toLowerCase(), type: e.type ?? "", id: e.id,
            of: e.dataset.for ?? "", row: e.sectionRowIndex ?? null,
            name: e.dataset.control};
  });
}"""
#: What is answered: words, numbers and marks, but for the chances, which come when it rests.
ANSWERED = r"""() => {
  const words = document.querySelectorAll("#run, #facts dd, #saved dt, #saved dd, #problem");
  const chance = /^(\.\.\.|> 0\.99|< 0\.01|\d\.\d\d)(?=prob)/;
  const marks = energylens.views.front.data("points").map((p) => p.j.toPrecision(4) + p.gpu);
  const said = [...words].map((e) => e.hidden ? "" : e.textContent.replace(chance, ""));
  return said.concat(marks).join();
}"""


class Driver:
    """Uses one control by mouse or by keyboard, and looks for what it must change."""

    def __init__(self, tab: Tab) -> None:
        self.tab, self.page = tab, tab.page

    def use(self, control: dict[str, Any], *, keyboard: bool) -> None:
        """Act, and wait for the effect."""
        one = self.page.locator(f"[data-control='{control['at']}']")
        if control["row"] is not None:  # rows are made anew where the table is sorted
            one = self.page.locator("#ranking tbody tr").nth(control["row"])
        one.evaluate("e => e.scrollIntoView({block: 'center'})")
        if keyboard:
            one.focus()
            assert one.evaluate("e => e === document.activeElement"), control
        kind = control["type"] if control["tag"] == "input" else control["tag"]
        self.__getattribute__(f"_{kind}")(one, control, keyboard)

    def _effect(self, act: Callable[[], object], read: str, what: object) -> None:
        before = self.page.evaluate(read)
        act()
        self.tab.until(lambda: self.page.evaluate(read) != before, f"{what} changes nothing")

    def _asks(self, act: Callable[[], object], control: dict[str, Any]) -> None:
        """The address holds another question, and another answer is shown."""
        before = self.page.evaluate("location.search")
        self._effect(act, ANSWERED, control)
        self.tab.until(
            lambda: self.page.evaluate("location.search") != before, "the address is the old one"
        )
        self.tab.quick()
        assert self.page.is_hidden("#problem"), (control, self.page.inner_text("#problem"))

    def _range(self, one: Locator, control: dict[str, Any], keyboard: bool) -> None:
        if keyboard:
            self._asks(lambda: [self.page.keyboard.press("ArrowLeft") for _ in range(12)], control)
            return
        box = one.bounding_box()
        assert box is not None
        middle = box["y"] + box["height"] / 2
        held = float(one.evaluate("e => (e.value - e.min) / (e.max - e.min)"))
        share = DRAGGED.get(control["of"], 0.5)

        def drag() -> None:
            self.page.mouse.move(box["x"] + 8 + held * (box["width"] - 16), middle)
            self.page.mouse.down()
            self.page.mouse.move(box["x"] + box["width"] * share, middle, steps=3)
            self.page.mouse.up()

        self._asks(drag, control)
        field = f"#{control['of']}"
        assert float(self.page.input_value(field)) == pytest.approx(
            float(one.evaluate("e => 'linear' in e.dataset ? +e.value : 10 ** e.value")), rel=0.01
        )

    def _text(self, one: Locator, control: dict[str, Any], keyboard: bool) -> None:
        def write() -> None:
            if keyboard:
                self.page.keyboard.press("ControlOrMeta+a")
            else:
                one.click(click_count=3)
            self.page.keyboard.insert_text(TYPED[control["id"]][keyboard])

        seen = {
            "find_gpu": "document.querySelectorAll('#gpus label:not([hidden])').length",
            "filter": "document.querySelector('#count').textContent",
            "filter-forms": "document.querySelector('#count-forms').textContent",
        }.get(control["id"])
        if seen is None:
            self._asks(write, control)
        else:
            self._effect(write, seen, control)
            one.fill("")

    _number = _search = _text

    def _checkbox(self, one: Locator, control: dict[str, Any], keyboard: bool) -> None:
        act = (lambda: self.page.keyboard.press("Space")) if keyboard else one.click
        if one.is_checked() and self.page.locator("[name=gpu]:checked").count() == 1:
            act()
            self.tab.until(lambda: "GPU type" in self.page.inner_text("#problem"), "none is said")
            act()
            self.tab.until(lambda: self.page.is_hidden("#problem"), "no answer again")
        else:
            self._asks(act, control)

    def _select(self, one: Locator, control: dict[str, Any], keyboard: bool) -> None:
        chosen = int(one.evaluate("e => e.selectedIndex"))
        options = one.evaluate("e => [...e.options].map((o) => o.disabled ? null : o.value)")
        wanted = CHOSEN.get(control["id"])
        others = [i for i, each in enumerate(options) if each is not None and i != chosen]
        goal = options.index(wanted) if wanted else min(others, key=lambda i: abs(i - chosen))

        def act() -> None:
            if not keyboard:  # the list that a click opens is the system's own
                one.select_option(index=goal)
                return
            usable = [i for i, each in enumerate(options) if each is not None]
            steps = usable.index(goal) - usable.index(chosen)
            for _ in range(abs(steps)):
                self.page.keyboard.press("ArrowDown" if steps > 0 else "ArrowUp")

        if control["id"] == "engine":
            self._effect(act, "document.querySelector('#line').textContent", control)
        else:
            self._asks(act, control)

    def _summary(self, one: Locator, control: dict[str, Any], keyboard: bool) -> None:
        at = f"document.querySelector('[data-control=\"{control['at']}\"]').parentElement.open"
        for _ in range(1 if keyboard else 2):  # left open
            act = (lambda: self.page.keyboard.press("Enter")) if keyboard else one.click
            self._effect(act, at, control)
        if not one.evaluate("e => e.parentElement.open"):
            one.click()

    def _button(self, one: Locator, control: dict[str, Any], keyboard: bool) -> None:
        act = (lambda: self.page.keyboard.press("Enter")) if keyboard else one.click
        if control["id"] == "theme":
            self._effect(act, "document.documentElement.dataset.theme", control)
        elif control["id"] == "copy":
            self.page.wait_for_function(
                "() => document.querySelector('#copy').textContent === 'Copy'"
            )
            self._effect(act, "document.querySelector('#copy').textContent", control)
        elif one.evaluate("e => e.closest('th') !== null"):
            self._effect(
                act,
                "(() => { const h = document.querySelector('#ranking [aria-sort]');"
                " return h.textContent + h.ariaSort; })()",
                control,
            )
        else:
            with self.page.expect_download() as waited:
                act()
            assert waited.value.suggested_filename.startswith(("energylens-", "decision"))
            assert waited.value.path().stat().st_size > 20
            self.page.wait_for_timeout(200)  # Chromium takes no more than ten in a second

    def _a(self, one: Locator, _: dict[str, Any], keyboard: bool) -> None:
        here, href = self.page.url, one.get_attribute("href") or ""
        act = (lambda: self.page.keyboard.press("Enter")) if keyboard else one.click
        if href.startswith("#"):
            one.focus()  # it is shown where the keyboard has come to it
            act()
            assert self.page.evaluate("document.activeElement.id") == href[1:]
            return
        with self.page.expect_navigation():
            act()
        assert urlsplit(self.page.url).path == urlsplit(href).path
        self.tab.open(here)
        self.page.evaluate(LISTED)

    def _tr(self, one: Locator, control: dict[str, Any], keyboard: bool) -> None:
        """A row of the ranking: the chart shows which mark it is."""
        chosen = "() => JSON.stringify(energylens.views.front.data('chosen').map((d) => d.name))"
        self.page.mouse.move(1, 1)  # it must come in from outside
        one.evaluate("e => e.blur()")
        self.page.evaluate("void energylens.views.front.data('chosen', []).run()")
        self._effect(one.focus if keyboard else one.hover, chosen, control)

    def _div(self, one: Locator, control: dict[str, Any], _: bool) -> None:
        """What scrolls is reached by the keyboard, and has a name."""
        assert one.get_attribute("aria-label"), control
        assert one.evaluate(
            "e => e.scrollWidth > e.clientWidth || getComputedStyle(e).overflowX === 'auto'"
        )

    _pre = _div


def all_of_them(page: Page) -> list[dict[str, Any]]:
    """Controls in the order of the document; of the rows of a table the first two."""
    found = page.evaluate(LISTED)
    rows = [each for each in found if each["row"] is not None]
    boxes = [each for each in found if each["type"] == "checkbox"]
    left_out = [*rows[2:], *boxes[3:]]
    return [each for each in found if each not in left_out]


SCREENS = [
    ("/", "wide", "light", False),
    ("/", "narrow", "dark", True),
    ("/rows", "wide", "dark", True),
    ("/rows", "narrow", "light", False),
]
EVERY = [(view, size, scheme, keyboard) for view in ("/", "/rows") for size in SIZES
         for scheme in ("light", "dark") for keyboard in (False, True)]  # fmt: skip


@pytest.mark.parametrize(
    ("view", "size", "scheme", "keyboard"),
    [
        *SCREENS,
        *(pytest.param(*each, marks=pytest.mark.soak) for each in EVERY if each not in SCREENS),
    ],
)
def test_every_control(
    chromium: Browser,
    server_with_rows: Server,
    view: str,
    size: str,
    scheme: Any,
    keyboard: bool,
) -> None:
    context = chromium.new_context(
        viewport={"width": SIZES[size], "height": 900}, color_scheme=scheme, accept_downloads=True
    )
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    # Limits that the simulated rows meet, so that each answer is one.
    tab = Tab(context).open(
        server_with_rows.url + (SMALL.replace("0.9", "0.5") if view == "/" else view)
    )
    if view == "/rows":
        tab.until(lambda: "scenarios" in tab.page.inner_text("#learning-says"), "no curve")
    driver = Driver(tab)
    used = []
    for control in all_of_them(tab.page):
        driver.use(control, keyboard=keyboard)
        used.append(control["name"])
    assert len(used) == len(set(used)) > (60 if view == "/" else 12), used
    tab.settle()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]
    context.close()
    assert not tab.said
    assert not tab.outside


def test_tab_goes_through_them_in_their_order(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL).page
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    wanted = [each["at"] for each in page.evaluate(LISTED.replace("part.open = false", ""))]
    page.evaluate("document.body.focus()")
    reached = []
    for _ in range(len(wanted) + 5):
        page.keyboard.press("Tab")
        at = page.evaluate("document.activeElement.dataset.control ?? ''")
        if reached and at == reached[0]:
            break
        reached.append(at)
    assert [at for at in reached if at] == wanted
