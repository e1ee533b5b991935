"""The page in Chromium on the real server: what it answers, shows and saves."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from browsing import BROWSER, SCREENS, SIZES, SMALL, Tab
from served import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = BROWSER


def test_a_rate_moves_the_whole_answer(tab: Tab, server: Server) -> None:
    page = tab.open(server.url).page
    joules = page.inner_text("#facts")
    tab.changes(lambda: page.fill("#rate", "2"), lambda: page.inner_text("#facts"))
    tab.settle()
    assert "Run " in page.inner_text("#run")
    assert page.inner_text("#facts") != joules
    for part in ("J", "W", "TPOT", "TTFT", "limits met", "limit 50 ms"):
        assert part in page.inner_text("#facts")
    for part in ("less", "kWh saved a month", "USD saved", "kg CO2 saved", "limits met today"):
        assert part in page.inner_text("#saved")
    assert "binds" in page.inner_text("#binds")
    assert page.inner_text("#line").startswith("vllm serve")
    assert "requests/s" in page.inner_text("#curve-says")
    assert "published" in page.inner_text("#behind")


def test_nothing_is_saved_against_what_does_not_serve_the_load(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL.replace("TP2+B64", "TP1+B1")).page
    saved = page.inner_text("#saved")
    assert "not counted" in saved
    assert "TP1, batch limit 1 does not keep up" in saved
    assert "kWh a month" in saved
    assert "saved" not in saved


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
    for chart in ("front", "joules", "seconds", "curve-energy", "curve-tpot"):
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
    page.click("#theme")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_page_shows_the_law_the_limit_and_what_a_limit_costs(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL.replace("tpot=50ms", "tpot=9ms")).page
    tab.settle()
    asked = str(page.get_attribute("#as-json", "href"))
    answer = json.loads(server.ask(asked)[2])
    best = answer["configurations"][0]
    terms = [
        text.split("\t") for text in page.inner_text("#law tbody").splitlines() if "\t" in text
    ]
    assert len(terms) == page.locator("#law tbody tr").count() >= 10
    limits = page.evaluate("energylens.views.front.data('limit')")
    assert [value for row in limits for value in row.values()] == [pytest.approx(9.0)]
    for view in ("curve-energy", "curve-tpot"):
        breaks = page.evaluate(f"energylens.views['{view}'].data('break')")
        values = [value for row in breaks for value in row.values()]
        assert values == pytest.approx([answer["breaks_at_rate_per_s"]], rel=1e-3), view
    bars = page.evaluate("energylens.views.joules.data('bars')")
    first = [bar["j"] for bar in bars if bar["rank"] == 0]
    assert len(first) > 3
    assert sum(first) == pytest.approx(best["energy_per_request_j"], rel=0.01)
    (price,) = (p for p in answer["shadow_prices"] if p["saving_ratio"] >= 0.005)
    assert f"saves {100 * price['saving_ratio']:.0f} %" in page.inner_text("#binds")


def test_what_is_saved_in_a_month_is_the_difference_of_the_months(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL).page
    tab.settle()
    month = json.loads(server.ask(str(page.get_attribute("#as-json", "href")))[2])["month"]
    shown = page.inner_text("#saved") + page.inner_text("#facts")
    for name in ("kwh_per_month", "cost_per_month", "co2_kg_per_month"):
        saved = month["current"][name] - month["best"][name]
        assert saved > 1
        assert f"{saved:.0f}" in shown.replace(",", ""), (name, shown)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_every_reader_can_use_it(chromium: Browser, server_with_rows: Server, every: bool) -> None:
    axe = pytest.importorskip("axe_core_python.sync_playwright")
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    SCREENS.mkdir(parents=True, exist_ok=True)
    context = chromium.new_context(color_scheme="light")
    views = (("decide", SMALL.replace("0.9", "0.5")), ("none", SMALL), ("rows", "/rows"))
    for view, path in views:
        tab = Tab(context).open(server_with_rows.url + path)
        page = tab.page
        if view == "rows":
            tab.until(lambda: "scenarios" in page.inner_text("#learning-says"), "no curve")  # noqa: B023
        page.evaluate(source)
        # What is out of sight is looked at too.
        page.add_style_tag(content="section{content-visibility:visible!important}")
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
    assert page.evaluate("energylens.views.learning.scenegraph().toJSON().length") > 1000
    forms = page.locator("#listed tbody tr").count()
    assert forms > 3
    assert "to take" in page.inner_text("#listed .knee")
    assert page.evaluate("energylens.views.forms.scenegraph().toJSON().length") > 1000
    page.fill("#filter-forms", "cache")
    kept = page.locator("#listed tbody tr")
    assert 0 < kept.count() < forms
    assert all("cache" in text for text in kept.all_inner_texts())
    assert page.inner_text("#count-forms") == f"{kept.count()} of {forms}"
    page.get_by_role("link", name="What to run").click()
    tab.settle()
    assert "simulated" in page.inner_text("#notes")
    page.click("#to-rows")
    tab.settle()


def test_without_rows_the_second_view_says_how(tab: Tab, server: Server) -> None:
    page = tab.open(f"{server.url}/rows").page
    assert "--data" in page.inner_text("#problem")
    tab.said[:] = [line for line in tab.said if "status of 404" not in line]


def test_a_link_with_part_of_a_question_is_completed(tab: Tab, server: Server) -> None:
    link = "/?llm=Qwen/Qwen3-8B&gpu=H100&gpu=L40S&max_gpus=3&rate=2&tpot=80ms:p75"
    page = tab.open(server.url + link).page
    assert page.is_hidden("#problem"), page.inner_text("#problem")
    query = tab.query()
    assert query["gpu"] == ["H100", "L40S"] or query["gpu"] == ["L40S", "H100"]
    assert (query["max_gpus"], query["tpot"]) == (["3"], ["80ms:p75"])
    assert (query["input_tokens"], query["output_tokens"]) == (["2000"], ["300"])
    assert "ttft" not in query
    assert page.inner_text("#facts").count("p75") == 1


def test_images_are_asked_for_where_an_llm_sees(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL).page
    assert page.is_hidden("#images")
    page.fill("#llm", "Qwen/Qwen3-VL-8B-Instruct")
    tab.settle()
    joules = page.inner_text("#facts")
    page.fill("#images", "3")
    tab.until(lambda: "images" in tab.query(), "not asked")
    tab.settle()
    assert page.inner_text("#facts") != joules


def test_an_old_answer_beside_an_error_is_called_one(tab: Tab, server: Server) -> None:
    page = tab.open(server.url + SMALL).page
    page.get_by_label("H100-SXM-80GB").uncheck()
    assert page.inner_text("#problem") == "Choose a GPU type, or more than one."
    assert page.is_visible("#stale")
    page.get_by_label("H100-SXM-80GB").check()
    tab.settle()
    assert page.is_hidden("#problem")
    assert page.is_hidden("#stale")
    page.fill("#find_gpu", "mi3")
    assert page.locator("#gpus label:visible").all_inner_texts() == [
        "MI300X", "MI325X", "MI355X", "MI300A", "MI350X"
    ]  # fmt: skip


def test_the_page_says_what_the_command_says(tab: Tab, server: Server, tmp_path: Path) -> None:
    """What stands on the page is what ``energylens select --json`` prints for its question."""
    asked = {
        "a line": "&current=vllm+serve+Qwen/Qwen3-8B+-tp+2+--max-num-seqs+64",
        "no table": "&gpu=L40S&current=TP1+B32&cached_share=0.3",
    }
    for name, rest in asked.items():
        base = SMALL.split("&current")[0] if name == "a line" else "/?llm=Qwen/Qwen3-8B&rate=1"
        page = tab.open(server.url + base + rest).page
        with page.expect_download() as waited:
            page.click("#decision-file")
        file = tmp_path / "decision.toml"
        waited.value.save_as(file)
        command = [sys.executable, "-m", "energylens", "select", str(file), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        best = json.loads(done.stdout)["configurations"][0]
        shown = json.loads(server.ask(str(page.get_attribute("#as-json", "href")))[2])
        fields = ("energy_per_request_j", "power_w", "tpot_s", "ttft_s", "lower_j", "upper_j")
        more = ("probability_of_meeting_ratio", "gpus", "batch_limit_per_replica")
        for field in (*fields, *more):
            assert shown["configurations"][0][field] == pytest.approx(best[field]), (name, field)
        assert f"{best['energy_per_request_j']:.3g} J" in page.inner_text("#facts")
        assert f"TP{best['tensor_parallel']}" in page.inner_text("#run")
