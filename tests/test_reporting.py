from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import energylens
from energylens import files
from energylens.cases import Cases
from energylens.charts import render
from energylens.charts.theme import PALETTE
from energylens.cli import main
from energylens.discovery import Expression, Front, FrontPoint, FrontTerm, Reference
from energylens.errors import MissingExtraError, UsageError
from energylens.evaluation import judge
from energylens.fitting import FitOptions, diagnose, fit
from energylens.formula import NAMES, TERMS, datasheet
from energylens.model import EnergyModel
from energylens.records import Boundary, Configuration, Engine, Source
from energylens.report import figures, judged, naming
from energylens.report.content import gather
from energylens.report.document import Equation, Facts, Figure, Report, Table
from energylens.report.drawing import Picture
from energylens.report.html import page
from energylens.report.text import lines_of
from energylens.scenarios import Candidates
from energylens.selection import Ranking, select
from energylens.table import read, write
from energylens.words import likelihood, percent, si
from report_sample import (
    A100,
    CHOOSE,
    DENSE,
    FIGURES,
    H100,
    HOSTILE,
    WORKLOAD,
    Sample,
    ranking,
    rows,
    sample,
)

VOID = {"meta", "link", "br", "img", "hr", "input", "rect", "path", "use"}


class Page(HTMLParser):
    """Elements in order, with the text inside each tag that matters."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        shown = (data for tag, data in self.texts if tag not in ("script", "style"))
        return " ".join(" ".join(shown).split())


def written(s: Sample, **changes: object) -> str:
    return page(gathered(s, **changes))


def in_words(s: Sample, *, brief: bool = False, **changes: object) -> str:
    return lines_of(gathered(s, **changes), brief=brief)


def gathered(s: Sample, **changes: object) -> Report:
    return gather(**_arguments(s, changes))  # type: ignore[arg-type]


def _arguments(s: Sample, changes: dict[str, object]) -> dict[str, object]:
    return {
        "model": s.model,
        "dataset": s.dataset,
        "diagnostics": s.diagnostics,
        "evaluations": s.evaluations,
        "ranking": s.ranking,
    } | changes


@pytest.fixture(scope="module")
def full() -> Sample:
    pytest.importorskip("vl_convert", reason="figures need the extra report")
    return sample()


@pytest.fixture(scope="module")
def html(full: Sample) -> str:
    return written(full)


@pytest.fixture(scope="module")
def text(full: Sample) -> str:
    return in_words(full)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawings out of a page: they take the time."""
    monkeypatch.setattr(Picture, "svg", lambda _: "<svg></svg>")
    monkeypatch.setattr(Equation, "mathml", lambda _: ["<math></math>"])
    monkeypatch.setattr(render, "bundle", str)


def tables(report: Report) -> list[Table]:
    blocks = [block for section in report.sections for block in section.blocks]
    return [b for b in blocks if isinstance(b, Table)] + [
        b.table for b in blocks if isinstance(b, Figure) and b.table
    ]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


# ----------------------------------------------------------------------------- what must be there


def test_every_figure_is_there_once_with_a_title_and_a_text_alternative(html: str) -> None:
    page = Page(html)
    figures = page.all("figure")
    assert [f["id"] for f in figures] == list(FIGURES)
    drawings = page.all("svg")
    assert len(drawings) == len(FIGURES)
    for figure in figures:
        assert f'<h3 id="{figure["id"]}-title">' in html
    for drawn in drawings:
        assert drawn["role"] == "img"
        assert len(drawn["aria-label"]) > 60


def test_axes_are_labelled_with_units(html: str) -> None:
    words = [data.strip() for tag, data in Page(html).texts if tag == "text"]
    for label in (
        "measured (J per request)",
        "predicted (J per request)",
        "energy (J per request)",
        "predicted energy (J per request)",
        "best in (% of draws)",
        "training rows",
        "mean regret (%)",
        "request latency (s)",
    ):
        assert label in words


def test_the_text_holds_every_fact_and_every_cell_of_the_page(full: Sample, text: str) -> None:
    report, letters = gathered(full), squeezed(text)
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Facts):
                for label, value, note in block.facts:
                    assert squeezed(value) in letters, label
                    assert squeezed(note) in letters, label
    words = set(text.split())
    for table in tables(report):
        for row in table.rows:
            for cell in row[1:]:
                assert all(word in words or len(word) > 12 for word in cell.split()), cell


def test_the_page_holds_every_fact_and_every_cell(full: Sample, html: str) -> None:
    shown = squeezed(Page(html).text)
    for table in tables(gathered(full)):
        for row in table.rows:
            for cell in row:
                assert squeezed(re.sub(r"^([α-ω])_(\w)$", r"\1\2", cell)) in shown


def test_text_keeps_to_eighty_columns(text: str) -> None:
    assert max(map(len, text.splitlines())) <= 80


def test_the_brief_text_is_the_beginning_of_the_full_one(full: Sample, text: str) -> None:
    brief = in_words(full, brief=True).rstrip()
    assert text.startswith(brief)
    assert "IN BRIEF" in brief
    assert "THE LAW" not in brief


def test_the_summary_gives_the_numbers_of_the_ranking(full: Sample, text: str) -> None:
    best = full.ranking.served()[0]
    head = squeezed(text[: text.index("THE CHOICE")])
    assert squeezed(f"Run {naming.configuration_name(best.configuration)}") in head
    assert squeezed(si(best.energy_per_request_j, "J")) in head
    assert full.ranking.saving_against_reference_ratio is not None
    assert squeezed(f"{percent(full.ranking.saving_against_reference_ratio, 0)} less") in head
    assert best.probability_best_ratio is not None
    assert squeezed(likelihood(best.probability_best_ratio)) in head
    assert f"{best.energy_per_request_j / 3.6:,.1f} kWh" in text
    ours = full.evaluations[0].estimators["energylens"].metrics
    assert squeezed(percent(ours.top1_within_noise_ratio)) in head
    assert squeezed(percent(ours.mape_ratio)) in head


def test_the_law_shows_theta_and_its_product_with_the_datasheet(full: Sample) -> None:
    model = fit(full.dataset, FitOptions(per=()))
    report = gathered(full, model=model, ranking=None)
    (law,) = (t for t in tables(report) if t.title == "The 12 coefficients")
    assert [row[1] for row in law.rows] == [naming.term_title(term) for term in TERMS]
    theta = model.pooled.theta
    assert law.columns[2:4] == ("θD on A100", "θD on H100")
    for j, gpu in ((2, A100), (3, H100)):
        expected = theta * datasheet((gpu,))[0]
        for k, row in enumerate(law.rows):
            assert row[j] == si(float(expected[k]), TERMS[k].unit)
            assert row[4] == f"{theta[k]:.2f}"


def test_groups_have_coefficients_of_their_own(full: Sample) -> None:
    model = fit(full.dataset, FitOptions(per=("gpu",)))
    report = gathered(full, model=model, ranking=None)
    law, groups = (t for t in tables(report) if t.title.startswith(("The 12", "θ for each")))
    assert [row[0] for row in groups.rows] == ["A100", "H100"]
    own = model.groups["A100"].theta * datasheet((A100,))[0]
    assert [row[2] for row in law.rows] == [
        si(float(v), t.unit) for v, t in zip(own, TERMS, strict=True)
    ]


def test_what_rows_leave_open_is_said_of_each_coefficient(full: Sample) -> None:
    k = NAMES.index("decode_weights")
    theta = full.model.pooled.theta.copy()
    theta[k] = 0.0
    model = replace(full.model, pooled=replace(full.model.pooled, theta=theta))
    report = gathered(full, model=model, ranking=None)
    (law,) = (t for t in tables(report) if t.title.startswith("What they stand for"))
    assert law.rows[k][-1].startswith("at its bound of 0")
    assert law.rows[NAMES.index("vision")][-1].startswith("not determined")
    assert "images or video" in law.rows[NAMES.index("vision")][-1]


def test_the_equation_is_typeset_and_spoken(html: str) -> None:
    spoken = [a["aria-label"] for a in Page(html).all("math")]
    assert any(label.startswith("E = sum of e_k") for label in spoken)


def test_an_explanation_that_is_given_is_said(full: Sample, undrawn: None) -> None:
    class Told:
        sentences = ("It is so because of <reasons>.",)

    assert "It is so because of <reasons>." in in_words(full, explanation=Told())
    assert "because of &lt;reasons&gt;." in written(full, explanation=Told())


def test_estimators_stand_in_order_of_regret_and_ours_where_it_falls(full: Sample) -> None:
    for table in tables(gathered(full)):
        if table.columns[0] == "Estimator" and "Mean regret" in table.columns:
            regrets = [float(row[5].removesuffix(" %").removeprefix("> ")) for row in table.rows]
            assert regrets == sorted(regrets)
            assert table.highlight == "energylens"


def test_configurations_ruled_out_come_with_a_reason(full: Sample) -> None:
    scenario = replace(full.ranking.scenario, gpu=replace(H100, memory_bytes=24e9))
    tight = select(full.model, scenario, choose=("tensor_parallel", "batch_size"))
    (table,) = (t for t in tables(gathered(full, ranking=tight)) if t.title == "What was ruled out")
    assert f"{len(tight.ruled_out)} configurations" in table.caption
    assert all("GB" in row[-1] for row in table.rows)


# ------------------------------------------------------------------------ what a search found


def found(**changes: object) -> Front:
    """A front of two expressions, with a term that is not settled."""
    weights = FrontTerm(
        expression=Expression("step_weight_bytes"),
        coefficient=1.5e-10,
        unit="J/byte",
        meaning="reading <weights>",
        share_ratio=0.8,
        stability_ratio=0.9,
    )
    hops = FrontTerm(
        expression=Expression("gpus * (pipeline_parallel - 1) * (passes + steps)"),
        coefficient=0.25,
        unit="J/pass",
        share_ratio=0.2,
        stability_ratio=0.4,
        stand_ins={"output_tokens": 0.5},
    )
    simple = FrontPoint(
        terms=(weights,),
        size=1,
        complexity=3,
        criterion=-10.0,
        in_sample_mape_ratio=0.31,
        held_out_mape_ratio=0.333,
        held_out_error_ratio=0.021,
        top1_ratio=None,
        regret_mean_ratio=None,
    )
    knee = replace(
        simple, terms=(weights, hops), size=2, complexity=14, held_out_mape_ratio=0.123,
        top1_ratio=0.912, regret_mean_ratio=0.0034, knee=True,
    )  # fmt: skip
    front = Front(
        engine="own",
        points=(simple, knee),
        reference=Reference(
            name="frozen law",
            terms=12,
            in_sample_mape_ratio=0.1,
            held_out_mape_ratio=0.111,
            top1_ratio=0.9,
            regret_mean_ratio=0.01,
        ),
        rows=60,
        candidates=99,
        groups="workload",
        folds=4,
        samples=20,
        seed=7,
        choose=("tensor_parallel",),
        dataset_digest=rows().digest,
        sources={"published": 60},
        notes=("A note with <b>markup</b>.",),
    )
    return replace(front, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def with_front(full: Sample) -> str:
    return written(full, front=found())


def test_a_front_is_shown_with_its_knee_errors_choices_and_stability(full: Sample) -> None:
    (front,) = (t for t in tables(gathered(full, front=found())) if t.title == "The front")
    assert front.columns[2:] == (
        "Held-out error", "In sample", "Top-1", "Mean regret", "Stability", "Expression",
    )  # fmt: skip
    assert front.rows == (
        ("3", "1", "33.3 % ± 2.1", "31.0 %", "-", "-", "90 %", "E = 1.5e-10 * step_weight_bytes"),
        (
            "14 (knee)", "2", "12.3 % ± 2.1", "31.0 %", "91.2 %", "0.34 %", "40 %",
            "E = 1.5e-10 * step_weight_bytes"
            " + 0.25 * gpus * (pipeline_parallel - 1) * (passes + steps)",
        ),
    )  # fmt: skip
    assert front.highlight == "14 (knee)"


def test_the_formula_of_the_knee_is_typeset_and_its_letters_explained(
    full: Sample, with_front: str
) -> None:
    spoken = [a["aria-label"] for a in Page(with_front).all("math")]
    assert "E = 1.5e-10 * step_weight_bytes" in spoken
    assert "+ 0.25 * gpus * (pipeline_parallel - 1) * (passes + steps)" in spoken
    assert "<var>W</var><sub>d</sub>" in with_front
    shown = gathered(full, front=found())
    (letters,) = (t for t in tables(shown) if t.title == "What its letters stand for")
    assert {row[1] for row in letters.rows} == {
        "step_weight_bytes", "gpus", "pipeline_parallel", "passes", "steps",
    }  # fmt: skip


def test_the_front_is_drawn_with_the_knee_and_the_frozen_law(with_front: str) -> None:
    page = Page(with_front)
    assert "front" in [f["id"] for f in page.all("figure")]
    words = [data.strip() for tag, data in page.texts if tag == "text"]
    assert "the knee: 2 terms" in words
    assert "frozen law, 12 terms" in words
    assert "complexity (names, numbers and operators)" in words


def test_what_the_search_leaves_open_is_said_in_page_and_text(
    full: Sample, with_front: str
) -> None:
    said = in_words(full, front=found())
    for shown in (Page(with_front).text, " ".join(said.split())):
        assert "is not settled: only 40 % of the resamples have it" in shown
        assert "'output_tokens' (50 %) in its place" in shown
        assert "A note with <b>markup</b>." in shown
        assert "the frozen law, with 12 terms, is off by 11.1 %" in shown
    assert "<b>markup" not in with_front
    assert max(map(len, said.splitlines())) <= 80


def test_ids_stay_unique_with_two_formulas_on_the_page(with_front: str) -> None:
    ids = [a["id"] for _, a in Page(with_front).elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_a_front_of_other_or_simulated_rows_says_so(full: Sample) -> None:
    assert "saw other rows" not in in_words(full, front=found())
    assert "saw other rows" in " ".join(
        in_words(full, front=found(dataset_digest="0" * 64)).split()
    )
    assert not gathered(full, front=found()).banner.loud
    assert gathered(full, front=found(sources={"simulated": 60})).banner.loud


def test_a_front_without_resamples_or_reference_is_shown_all_the_same(full: Sample) -> None:
    terms = tuple(replace(t, stability_ratio=None, stand_ins={}) for t in found().knee.terms)
    bare = found(points=(replace(found().knee, terms=terms),), reference=None, samples=0, notes=())
    report = gathered(full, front=bare)
    (front,) = (t for t in tables(report) if t.title == "The front")
    assert front.rows[0][6] == "-"
    assert "frozen" not in _picture(report, "front").svg()


def test_the_command_shows_a_front_and_refuses_what_is_none(
    full: Sample,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    undrawn: None,
) -> None:
    monkeypatch.setattr(judge, "evaluate", lambda *_, **__: full.evaluations[0])
    measured = Path(figures.__file__).parents[1] / "data" / "simulated-demo.csv"
    page = tmp_path / "page.html"
    asked = ["report", str(measured), "-o", str(page), "--text", "--front"]
    files.write_json(tmp_path / "model.json", {"format": "energylens-model"})
    assert main([*asked, str(tmp_path / "model.json")]) == 1
    assert "must be a front written by energylens discover" in capsys.readouterr().err
    assert not page.exists()
    files.write_json(tmp_path / "front.json", found().to_json())
    assert main([*asked, str(tmp_path / "front.json")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for shown in (said, Page(page.read_text(encoding="utf-8")).text):
        assert "found 2 expressions in 60 rows" in shown
        assert "saw other rows than those shown" in shown


# ------------------------------------------------------------------------------ only what is known


def test_a_model_and_one_row_make_a_report(full: Sample, undrawn: None) -> None:
    one = full.dataset.take(slice(0, 1))
    one = replace(one, cases=one.cases.replace(request_latency_s=np.nan))
    alone = page(gather(full.model, one))
    assert [f["id"] for f in Page(alone).all("figure")] == [
        "breakdown",
        "predicted-measured",
        "residuals",
    ]
    assert "The model was not judged" in alone


def test_no_latency_figure_without_latencies(full: Sample, undrawn: None) -> None:
    silent = replace(full.dataset, cases=full.dataset.cases.replace(request_latency_s=np.nan))
    assert "latency-energy" not in written(full, dataset=silent)


def test_rows_are_thinned_out_and_that_is_said(full: Sample) -> None:
    many = full.dataset.take(np.arange(judged.POINTS + 60) % len(full.dataset))
    picture = judged.predicted_against_measured(full.model, many, in_sample=False)
    assert f"{judged.POINTS:,} of {len(many):,} rows are drawn" in picture.caption
    worst = judged.residuals_by_scenario(many, np.zeros(len(many)), held_out=True)
    trade = figures.latency_against_energy(many.take(np.arange(1500) % 15), ("batch_size",))
    for thinned in (picture, worst, trade):
        assert thinned is not None
        assert thinned.svg().count("<use") < judged.POINTS + 60


def test_errors_are_those_of_fits_without_the_row_where_there_are_any(full: Sample) -> None:
    evaluation = full.evaluations[1]
    worst = _picture(gathered(full, evaluations=(evaluation,)), "residuals")
    assert "predicted by fits that had not seen it" in worst.caption
    errors = evaluation.estimators["energylens"].row_error_ratio
    expected = judged.residuals_by_scenario(full.dataset, errors, held_out=True)
    assert expected is not None
    assert worst.rows == expected.rows
    alone = _picture(gathered(full, evaluations=()), "residuals")
    assert "The model has seen these rows" in alone.caption


def _picture(report: Report, name: str) -> Picture:
    blocks = (block for section in report.sections for block in section.blocks)
    return next(b.picture for b in blocks if isinstance(b, Figure) and b.picture.name == name)


def test_bars_of_very_different_length_get_a_second_panel(full: Sample) -> None:
    model, cases = full.model, full.dataset.cases.take(slice(0, 3))  # batch 1, 8 and 64
    assert "share of the prediction (%)" in figures.energy_breakdown(model, cases).svg()
    alike = figures.energy_breakdown(model, cases.take(slice(0, 1)))
    assert "share of the prediction (%)" not in alike.svg()


def test_a_bar_that_dwarfs_the_rest_leaves_the_frame_and_says_how_long_it_is(full: Sample) -> None:
    order = np.argsort(full.model.predict_energy_j(full.dataset.cases))
    near = full.dataset.cases.take(order[:5])
    far = full.dataset.cases.take(np.append(order[:5], order[-1]))
    longest_j = float(full.model.predict_energy_j(far)[-1])
    assert longest_j > 6 * float(full.model.predict_energy_j(near).max())
    drawn = figures.energy_breakdown(full.model, far)
    assert "leaves the frame" in drawn.caption
    assert f">{figures.si(longest_j, 'J')} →<" in drawn.svg()
    assert "leaves the frame" not in figures.energy_breakdown(full.model, near).caption


def test_parts_of_the_breakdown_add_up_to_the_prediction(full: Sample) -> None:
    picture = figures.energy_breakdown(full.model, full.dataset.cases.take(slice(0, 12)))

    def joules(cell: str) -> float:
        value, unit = cell.split()
        return float(value) * {"mJ": 1e-3, "J": 1.0, "kJ": 1e3}[unit]

    for row in picture.rows:
        assert sum(map(joules, row[2:])) == pytest.approx(joules(row[1]), rel=0.02)


def test_a_reference_far_off_is_told_instead_of_drawn(full: Sample) -> None:
    far = figures.ranking_with_intervals(full.ranking)
    assert "TP4 B8, compared with, lies beyond the frame" in far.caption
    assert "compared with<" not in far.svg()
    near_j = 1.1 * float(full.ranking.energy_per_request_j[0])
    near = figures.ranking_with_intervals(
        replace(full.ranking, reference_energy_per_request_j=near_j)
    )
    assert "The dashed line is TP4 B8" in near.caption
    assert "compared with<" in near.svg()


def test_a_long_name_leaves_room_for_the_figure(full: Sample) -> None:
    drawn = _picture(gathered(full), "residuals").svg()
    assert "y…" in drawn
    assert "y" * naming.LABEL not in Page(drawn).text


def test_both_optima_of_a_scenario_are_named(full: Sample) -> None:
    picture = figures.latency_against_energy(full.dataset, ("batch_size",))
    assert picture is not None
    energy, latency = full.dataset.energy_per_request_j, full.dataset.cases.request_latency_s
    scenarios = full.dataset.scenarios(("batch_size",))
    apart = sum(r[energy[r].argmin()] != r[latency[r].argmin()] for r in scenarios)
    assert f"In {apart} of {len(scenarios)} scenarios" in picture.caption
    drawn = Page(picture.svg()).texts
    assert any("fewest joules: " in data and "B64" in data for _, data in drawn)
    assert any("fastest: " in data and "B1" in data for _, data in drawn)


def test_learning_curves_of_another_protocol_are_refused(full: Sample) -> None:
    with pytest.raises(UsageError, match="learning-curve"):
        judged.learning_curves(full.evaluations[1])


def test_a_ranking_by_another_model_is_refused(full: Sample) -> None:
    other = fit(full.dataset, FitOptions(prior="none", per=()))
    with pytest.raises(UsageError, match="ranking by the model it shows"):
        written(full, ranking=ranking(other))


def test_no_row_makes_no_report(full: Sample) -> None:
    with pytest.raises(UsageError, match="one row or more"):
        lines_of(gather(full.model, full.dataset.take(slice(0, 0))))


# --------------------------------------------------------------------------------------- the banner


@pytest.mark.parametrize("source", list(Source))
def test_the_banner_is_loud_unless_every_row_was_measured_or_published(source: Source) -> None:
    dataset = rows(source)
    banner = gather(fit(dataset), dataset).banner
    claims = (Source.MEASURED, Source.SELF_MEASURED, Source.PUBLISHED)
    assert banner.loud == (source not in claims)
    assert f"{len(dataset)} {source.value}" in " ".join(banner.lines)
    if banner.loud:
        assert banner.headline == (
            f"This rests on {source.value} rows: no accuracy claim rests on these."
        )


def test_one_simulated_row_is_enough(undrawn: None) -> None:
    source = rows().source.copy()
    source[3] = "simulated"
    dataset = replace(rows(), source=source)
    model = fit(rows())
    assert gather(model, dataset).banner.loud
    assert lines_of(gather(model, dataset)).count("! ") >= 2
    assert 'class="banner loud"' in page(gather(model, dataset))
    assert 'class="banner loud"' not in page(gather(model, rows()))


def test_a_model_of_simulated_rows_is_not_quiet_about_measured_ones() -> None:
    banner = gather(fit(rows(Source.SIMULATED)), rows()).banner
    assert banner.loud
    assert "fitted to other rows than those shown: 60 simulated" in " ".join(banner.lines)


def test_an_evaluation_of_simulated_rows_makes_no_claim(full: Sample) -> None:
    simulated = sample(Source.SIMULATED)
    report = gathered(full, evaluations=simulated.evaluations[1:])
    assert report.banner.loud
    (table,) = (t for t in tables(report) if t.title.startswith("Unseen hardware"))
    assert "No accuracy claim rests on these figures." in table.caption
    assert "other rows than those shown" in table.caption


def test_the_banner_names_assumptions_boundaries_and_the_digest() -> None:
    assumed = rows().assumed.copy()
    assumed[:7] = "input_tokens"
    node = np.zeros(len(assumed), dtype=np.bool_)
    node[::2] = True
    cases = rows().cases.replace(node_boundary=node, node_gpus=8.0)
    dataset = replace(rows(), assumed=assumed, cases=cases)
    said = " ".join(gather(fit(dataset), dataset).banner.lines)
    assert "Assumed in 7 of 60 rows" in said
    assert all(f"{boundary.value}: " in said for boundary in (Boundary.ACTIVE_GPUS, Boundary.NODE))
    assert f"{Boundary.WALL.value}: " not in said
    assert dataset.digest[:16] in said


@pytest.mark.parametrize("source", [Source.SIMULATED, Source.ESTIMATED, Source.MEASURED])
def test_figures_and_tables_call_joules_what_they_are(source: Source, full: Sample) -> None:
    s = sample(source)
    report = gathered(s)
    said = [word for t in tables(report) for word in (t.title, t.caption, *t.columns)]
    words = " ".join(said)
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Figure):
                p = block.picture
                words += " ".join((p.title, p.caption, p.alternative, *p.columns))
                words += Page(p.svg()).text
    measured = source is Source.MEASURED
    assert ("measured" in words.lower()) == measured
    assert f"predicted against {source.value} energy" in words.lower()
    assert source.value.capitalize() in said
    assert f"predicted / {source.value} energy (ratio)" in words


# ------------------------------------------------------------------------- what a choice costs


def _own_ranking(full: Sample, **changes: object) -> Ranking:
    """A ranking of a scenario that is among the rows, against its fastest configuration."""
    cases = full.dataset.cases
    mine = np.flatnonzero((full.dataset.llm_ids == DENSE.id) & (full.dataset.gpu_ids == "H100"))
    fastest = int(mine[np.argmin(cases.request_latency_s[mine])])
    asked = replace(full.ranking.scenario, llm=DENSE, engine=Engine(name="vllm", version="0.11.1"))
    arguments: dict[str, object] = {
        "choose": CHOOSE,
        "candidates": Candidates(batch_size=(1.0, 8.0, 64.0)),
        "reference": cases.case(fastest).configuration,
    }
    return select(full.model, asked, **(arguments | changes))  # type: ignore[arg-type]


def test_the_price_in_latency_and_why_it_is_compared_so_stand_in_brief(full: Sample) -> None:
    ranked, cases = _own_ranking(full), full.dataset.cases
    assert ranked.reference is not None
    brief = " ".join(in_words(full, ranking=ranked, brief=True).split())

    def latency(configuration: Configuration) -> str:
        (row,) = (
            i
            for i in range(len(full.dataset))
            if full.dataset.llm_ids[i] == DENSE.id
            and full.dataset.gpu_ids[i] == "H100"
            and cases.case(i).configuration == configuration
        )
        return si(float(cases.request_latency_s[row]), "s")

    name = naming.configuration_name(ranked.reference)
    lead = f"Run {naming.configuration_name(ranked.best.configuration)} on "
    assert f"{lead}1 GPU (H100, bf16): " in brief
    assert f"{name} takes " in brief
    assert "--current names what runs today" in brief
    assert (
        f"The price is time: its measured request latency is "
        f"{latency(ranked.best.configuration)}, against {latency(ranked.reference)} with {name}, "
        "which it is compared with because it is the fastest of the 15 configurations"
    ) in brief


def test_a_choice_that_no_row_has_is_owned_up_to_and_priced_by_its_nearest(full: Sample) -> None:
    beyond = _own_ranking(full, candidates=Candidates(batch_size=(1.0, 8.0, 128.0)))
    assert beyond.best.configuration.batch_size == 128
    report = gathered(full, ranking=beyond)
    brief = " ".join(in_words(full, ranking=beyond, brief=True).split())
    assert f"no row has {naming.configuration_name(beyond.best.configuration)} itself" in brief
    assert "which no row has." in _picture(report, "latency-energy").caption


def test_a_choice_that_is_the_fastest_has_no_price(full: Sample) -> None:
    cases, best = full.dataset.cases, _own_ranking(full).best.configuration
    quick = cases.request_latency_s.copy()
    for i in range(len(quick)):
        if cases.case(i).configuration == best:
            quick[i] = 1e-3
    dataset = replace(full.dataset, cases=cases.replace(request_latency_s=quick))
    ranked = _own_ranking(full, reference=best)
    brief = " ".join(in_words(full, dataset=dataset, ranking=ranked, brief=True).split())
    assert "It is also the fastest of the 15 configurations among the rows." in brief
    assert "The price is time" not in brief


def test_who_does_as_well_as_the_law_is_named(full: Sample) -> None:
    def judged(**regrets: float) -> str:
        evaluation = full.evaluations[0]
        score = evaluation.estimators["energylens"]
        scores = {
            name.replace("_", "-"): replace(
                score, metrics=replace(score.metrics, regret_mean_ratio=regret)
            )
            for name, regret in regrets.items()
        }
        points = tuple(replace(point, scores=scores) for point in evaluation.points)
        changed = replace(evaluation, points=points)
        return " ".join(in_words(full, evaluations=(changed,)).split())

    said = judged(energylens=0.02, log_linear=0.05, random=0.5)
    assert "Next by regret is log-linear" in said
    assert "For the choice alone" not in said
    said = judged(energylens=0.02, largest_batch=0.01, energylens_datasheet=0.0205)
    assert "First by regret is largest-batch" in said
    assert "For the choice alone largest-batch and energylens-datasheet would have" in said
    assert "no fit was needed here: the datasheet alone costs 2.05 % too much" in said


def test_a_learning_curve_is_told_along_its_length_and_its_band_by_its_draws(
    full: Sample,
) -> None:
    few = full.evaluations[0]
    along = [p.scores["energylens"].metrics.top1_within_noise_ratio for p in few.points]
    brief = " ".join(in_words(full).split())
    assert f"With 10 and 30 rows it is within 2 % in {percent(along[0])} and" in brief
    many = replace(few, repeats=judged.FEW_DRAWS)
    assert "as wide as the 2 draws of energylens are apart" in judged.learning_curves(few).caption
    assert "the band holds 90 % of the draws" in judged.learning_curves(many).caption


def test_what_is_served_is_described_for_people(full: Sample) -> None:
    asked = full.ranking.scenario
    odd = replace(asked, workload=replace(WORKLOAD, output_tokens=396.137))
    simulated = replace(odd, engine=Engine(name="simulated", version="1"))
    for scenario, words in (
        (odd, "on up to 4 x H100, 512 tokens in and 396 out"),
        (simulated, "and 396 out, in a simulated engine (version 1)"),
    ):
        ranked = select(full.model, scenario, choose=CHOOSE)
        assert gathered(full, ranking=ranked).subtitle.endswith(words)


# ----------------------------------------------------------------------- a page worth trusting


def test_rubbish_in_names_stays_text(html: str, text: str) -> None:
    assert "<script>alert" not in html
    assert "<b>a table" not in html
    assert html.count("<script") == 3  # the page's own; what draws, and what is drawn, as text
    assert HOSTILE in Page(html).text
    assert squeezed(HOSTILE) in squeezed(text)


def test_nothing_is_loaded_from_anywhere(html: str) -> None:
    without_namespaces = re.sub(r'xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", html)
    assert not re.search(r"https?://|@import|<link|<img|<iframe", without_namespaces)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "default-src 'none'" in html


def test_ids_are_unique_and_every_reference_leads_somewhere(html: str) -> None:
    page = Page(html)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r"url\(#([^)]*)\)", html))
    for _, attributes in page.elements:
        for name in ("href", "xlink:href"):
            if attributes.get(name, "").startswith("#"):
                targets.add(attributes[name][1:])
        targets.update(attributes.get("aria-labelledby", "").split())
    assert targets <= set(ids)


def test_headings_descend_without_a_gap(html: str) -> None:
    levels = [int(tag[1]) for tag, _ in Page(html).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_tables_have_captions_and_scoped_headers(html: str) -> None:
    page = Page(html)
    assert len(page.all("table")) == len(page.all("caption")) > 6
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    for a in page.all("div"):
        if a.get("class", "").startswith("scroll"):
            assert a["tabindex"] == "0"
            assert a["role"] == "region"
            assert a["aria-label"]


def test_the_same_report_is_the_same_to_the_byte(full: Sample, html: str) -> None:
    report = gathered(full)
    assert in_words(full) == in_words(full)
    for name in ("ranking", "predicted-measured"):
        assert _picture(report, name).svg() in html


def test_figures_have_no_colour_but_the_palettes(full: Sample, html: str) -> None:
    lights = {light: role for role, (light, _) in PALETTE.items()}
    drawings = html[html.index("<main") : html.index("</main>")]
    used = set(re.findall(r"#[0-9a-f]{6}\b", drawings))
    assert len(used) > 5
    assert used <= set(lights)
    for light in used:
        for what in ("fill", "stroke"):
            assert f'svg [{what}="{light}"] {{ {what}: var(--{lights[light]}) }}' in html
    specs = [render.compact(figure.spec()) for figure in _pictures(gathered(full))]
    assert set(re.findall(r"#[0-9a-f]{6}\b", "".join(specs))) <= set(lights)


def _pictures(report: Report) -> list[Picture]:
    blocks = [block for section in report.sections for block in section.blocks]
    return [block.picture for block in blocks if isinstance(block, Figure)]


def test_a_figure_stands_alone_in_light_and_dark(full: Sample) -> None:
    svg = figures.ranking_with_intervals(full.ranking).standalone_svg()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in svg
    assert PALETTE["ink"][1] in svg


def _contrast(a: str, b: str) -> float:
    """Contrast as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_colours_stand_out_from_the_paper(theme: int) -> None:
    for role in ("ink", "muted", "accent"):
        for ground in ("paper", "panel"):
            assert _contrast(PALETTE[role][theme], PALETTE[ground][theme]) >= 4.5
    assert _contrast(PALETTE["warning"][theme], PALETTE["warning-panel"][theme]) >= 4.5
    assert _contrast(PALETTE["ink"][theme], PALETTE["warning-panel"][theme]) >= 4.5
    for k in range(1, 7):
        assert _contrast(PALETTE[f"category-{k}"][theme], PALETTE["paper"][theme]) >= 3.0


def test_every_colour_has_a_role_of_its_own() -> None:
    lights = [light for light, _ in PALETTE.values()]
    assert len(set(lights)) == len(lights)


# --------------------------------------------------------------------------- what it is made of


@pytest.mark.parametrize("package", ["vl_convert", "jinja2", "latex2mathml"])
def test_a_page_without_its_packages_names_the_extra(
    full: Sample, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=re.escape("energylens[report]")):
        written(full)
    assert "IN BRIEF" in in_words(full)


def test_diagnostics_are_shown_as_they_are(full: Sample, text: str) -> None:
    d = diagnose(full.model, full.dataset)
    assert f"{d.condition_number:.3g}" in text
    assert f"Row {d.leverage_row} " in " ".join(text.split())
    (table,) = (t for t in tables(gathered(full)) if t.title == "The rows it describes worst")
    assert [(int(row[0]), row[-1]) for row in table.rows] == [
        (i, f"{ratio:.2f}") for i, ratio in d.worst
    ]


@given(st.floats(1e-14, 1e14))
def test_a_quantity_reads_back_within_its_three_digits(value: float) -> None:
    number, unit = si(value, "J").split()
    scale = {"f": 1e-15, "p": 1e-12, "n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1.0}
    scale |= {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    assert float(number) * scale[unit.removesuffix("J")] == pytest.approx(value, rel=5.1e-3)
    assert 0.999 <= float(number) < 1000 or value < 1e-13


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0 J"),
        (999.4, "999 J"),
        (999.6, "1 kJ"),
        (9870, "9.87 kJ"),
        (0.0123, "12.3 mJ"),
        (-42, "-42 J"),
    ],
)
def test_quantities_are_short(value: float, said: str) -> None:
    assert si(value, "J") == said


def test_what_is_not_known_is_a_dash() -> None:
    assert percent(None) == percent(float("nan")) == "-"
    assert percent(0.1234) == "12.3 %"


def test_configurations_are_named_alike_in_prose_and_figures(full: Sample) -> None:
    cases = full.dataset.cases.take(slice(0, 3))
    assert naming.configuration_labels(cases) == ("TP1 B1", "TP1 B8", "TP1 B64")
    assert naming.configuration_labels(cases.take(slice(0, 1))) == ("TP1 B1",)
    both = naming.configuration_labels(full.dataset.cases.take(np.array([0, 15])))
    assert both == ("TP1 B1 H100", "TP1 B1 A100")
    assert DENSE.id.endswith(figures.short_name(DENSE.id))


# ------------------------------------------------------------------------- what is asked, and how


CASE = (
    "--llm",
    "Qwen/Qwen3-8B",
    "--gpu",
    "H100",
    "--input-tokens",
    "500",
    "--output-tokens",
    "300",
)


@pytest.fixture
def demo_rows(tmp_path: Path) -> Path:
    every = read(Path(figures.__file__).parents[1] / "data" / "simulated-demo.csv")
    path = tmp_path / "rows.csv"
    write(every.take(np.linspace(0, len(every) - 1, 40).astype(np.intp)), path)
    return path


def test_the_scenario_is_the_one_asked_for_or_is_said_to_be_taken(
    full: Sample,
    demo_rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    undrawn: None,
) -> None:
    monkeypatch.setattr(judge, "evaluate", lambda *_, **__: full.evaluations[0])
    asked = ["report", str(demo_rows), "-o", str(tmp_path / "page.html")]
    assert main([*asked, *CASE]) == 0
    said = capsys.readouterr().out
    assert "Qwen/Qwen3-8B at bf16" in said
    assert "as asked" in " ".join(said.split())
    assert len(said.splitlines()) <= 25
    assert main([*asked, *CASE[:4]]) == 2
    assert "--input-tokens and --output-tokens too" in capsys.readouterr().err
    assert main(asked) == 0
    assert "taken because" in " ".join(capsys.readouterr().out.split())


def test_one_row_and_a_model_make_a_report(
    demo_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], undrawn: None
) -> None:
    one = tmp_path / "one.csv"
    one.write_text("".join(demo_rows.read_text().splitlines(keepends=True)[:2]))
    page = tmp_path / "page.html"
    assert main(["report", str(one), "--model", "h100-vllm-0.11", "-o", str(page), *CASE]) == 0
    assert "Run " in capsys.readouterr().out
    assert "as asked" in Page(page.read_text(encoding="utf-8")).text
    rows = ["report", str(one), "--model", "h100-vllm-0.11", "-o", str(page)]
    assert main(rows) == 0
    assert "taken because the only row is of it" in " ".join(capsys.readouterr().out.split())
    assert main([*rows, "--current", "TP1 B8"]) == 0
    assert "TP1 B8, which runs today" in " ".join(capsys.readouterr().out.split())
    assert main([*rows, "--current", "TP3 B8"]) == 2
    assert "cannot run" in capsys.readouterr().err


def test_no_table_is_predicted_twice_in_one_report(
    full: Sample,
    demo_rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undrawn: None,
) -> None:
    monkeypatch.setattr(judge, "evaluate", lambda *_, **__: full.evaluations[0])
    computed: list[int] = []
    compute = EnergyModel._predict

    def counted(model: EnergyModel, cases: Cases) -> np.ndarray:
        computed.append(len(cases))
        return compute(model, cases)

    monkeypatch.setattr(EnergyModel, "_predict", counted)
    assert main(["report", str(demo_rows), "-o", str(tmp_path / "page.html")]) == 0
    assert computed.count(40) == 1


def test_the_ranking_pairs_every_name_with_its_own_joules() -> None:
    """Limits beyond what memory holds are shown as one: names and intervals must follow."""
    ranking = energylens.select(
        "datasheet",
        llm="Qwen/Qwen3-32B",
        gpu="H100",
        input_tokens=1000,
        output_tokens=300,
        choose=("parallelism", "batch_size"),
    )
    entries, cases = figures.served(ranking, naming.BARS)
    assert len(ranking.served()) < len(ranking)
    assert entries[-1].rank > len(entries)
    labels = naming.configuration_labels(cases)
    asked = [(e.energy_per_request_j, e.lower_j, e.upper_j) for e in entries]
    joules = energylens.load("datasheet").predict_energy_j(cases)
    assert joules == pytest.approx([energy for energy, _, _ in asked])

    def points(part: object) -> Iterator[dict[str, Any]]:
        if isinstance(part, dict):
            values = part.get("data", {}).get("values", []) if "data" in part else []
            yield from (value for value in values if "low" in value)
        for inner in part.values() if isinstance(part, dict) else part:
            if isinstance(inner, dict | list):
                yield from points(inner)

    drawn = {
        each["name"]: (each["j"], each["low"], each["high"])
        for each in points(figures.ranking_with_intervals(ranking).spec())
    }
    assert list(drawn) == list(labels)
    for name, numbers in zip(labels, asked, strict=True):
        assert drawn[name] == pytest.approx(numbers, rel=1e-3)
