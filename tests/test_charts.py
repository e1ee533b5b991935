"""Charts as specs: one dict for page, report, notebook and file."""

from __future__ import annotations

import gzip
import itertools
import json
import re
import sys
from base64 import b64decode
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energylens.charts import energy, judged, parts, render
from energylens.charts.theme import CATEGORIES, PALETTE, SHAPES, Spec
from energylens.errors import MissingExtraError
from energylens.web import tables

LABELS = ("TP1 B8", "TP2 'quoted' \\ B8", "</script><b>TP4</b>")
GRID = np.array([100.0, 200.0, 3000.0])
SEGMENTS = (
    energy.Segment(name="prefill", role="prefill-1", energy_j=GRID / 4),
    energy.Segment(name="decode", role="decode-1", energy_j=GRID / 2),
)


def specs(width: int) -> dict[str, Spec]:
    """Every chart of joules and of judgements, with names that mean ill."""
    best = energy.Optimum(name=LABELS[0], latency=1.0, energy_j=100.0)
    fast = energy.Optimum(name=LABELS[2], latency=0.1, energy_j=900.0)
    row = GRID.tolist()
    return {
        "ranking": energy.ranking(
            LABELS,
            row,
            lower_j=(0.9 * GRID).tolist(),
            upper_j=(1.2 * GRID).tolist(),
            chance_ratio=[0.9, 0.1, 0.0],
            reference_j=150.0,
            width=width,
        ),
        "breakdown": energy.breakdown(
            LABELS,
            SEGMENTS,
            frame_j=300.0,
            beyond=[(2, "2.25 kJ")],
            marked_j=row,
            marked="measured",
            shares=True,
            width=width,
        ),
        "terms": energy.terms(LABELS, GRID / 4, GRID / 2, width=width),
        "rows": energy.by_batch(GRID, GRID, LABELS, LABELS[:2], width=width),
        "latency": energy.latency_energy(
            LABELS[:1],
            [0.5],
            [500.0],
            unit="s",
            what="latency",
            title="an LLM",
            frugal=best,
            fastest=fast,
            named=True,
            ratios=([1.0, 2.0], [1.0, 9.0], LABELS[:2]),
            width=width,
        ),
        "predictions": judged.predictions(
            GRID,
            1.1 * GRID,
            ["a", "b", "a"],
            LABELS,
            legend={"a": "kind a", "b": "kind b"},
            word="measured",
            lower_j=0.8 * GRID,
            upper_j=1.3 * GRID,
            width=width,
        ),
        "residuals": judged.residuals(
            ["one\nH100, 3 rows"], [GRID / 200], [LABELS], word="measured", width=width
        ),
        "learning": judged.learning(
            [
                (metric, metric, dict.fromkeys("abc", GRID / 50), np.column_stack([GRID] * 2))
                for metric in ("top1", "regret", "error")
            ],
            [10, 50, 200],
            named=["a", "b"],
            others=["c"],
            width=width,
        ),
        "forms": judged.forms(
            [3, 14],
            [33.0, 12.0],
            [2.0, 2.0],
            [31.0, 11.0],
            LABELS[:2],
            knee=1,
            knee_name="the knee",
            reference=("law", 11.0),
            width=width,
        ),
        "coefficients": judged.coefficients(LABELS, GRID / 100, GRID / 200, GRID / 50, width=width),
        "regret": judged.regret(LABELS, GRID / 100, frame=3.0, width=width),
    }


WIDE, NARROW = specs(parts.WIDTH), specs(parts.NARROW)


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    pytest.importorskip("vl_convert")
    return {name: render.svg(spec) for name, spec in WIDE.items()}


def size(svg: str) -> tuple[float, float]:
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found
    return float(found[1]), float(found[2])


def values(spec: Any) -> list[Any]:
    if isinstance(spec, dict):
        return [v for inner in spec.values() for v in values(inner)]
    return [v for inner in spec for v in values(inner)] if isinstance(spec, list) else [spec]


@pytest.mark.parametrize("name", WIDE)
def test_a_spec_is_a_plain_dict_that_survives_json_and_names_its_text(name: str) -> None:
    for spec in (WIDE[name], NARROW[name]):
        assert json.loads(render.compact(spec)) == spec
        assert len(spec["description"]) > 20
        numbers = [v for v in values(spec) if isinstance(v, float)]
        # What can be seen of a number is in its first digits: machines agree on those.
        assert all(v == float(f"{v:.6g}") for v in numbers)


@pytest.mark.parametrize("name", WIDE)
def test_a_drawing_is_valid_shows_its_words_and_keeps_to_the_palette(
    name: str, drawn: dict[str, str]
) -> None:
    root = ElementTree.fromstring(drawn[name])
    texts = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text")]
    assert len(texts) > 4
    assert not any(e.tag.endswith("}b") or e.tag.endswith("}script") for e in root.iter())
    used = set(re.findall(r"#[0-9a-f]{6}\b", drawn[name]))
    assert used <= {light for light, _ in PALETTE.values()}
    assert not re.search(r"NaN|Infinity|undefined|null", " ".join(texts))
    assert 600 <= size(drawn[name])[0] <= 780


@pytest.mark.parametrize("name", WIDE)
def test_a_telephone_has_a_drawing_of_its_own(name: str, drawn: dict[str, str]) -> None:
    assert size(render.svg(NARROW[name]))[0] <= 400


@pytest.mark.parametrize("name", WIDE)
def test_notebooks_draw_the_same_with_the_version_that_they_have(
    name: str, drawn: dict[str, str]
) -> None:
    import vl_convert

    spec = render.notebook(WIDE[name])
    assert spec["$schema"].endswith("/v5.json")
    for version in ("5.8", "5.21"):
        again = vl_convert.vegalite_to_svg(spec, vl_version=version)
        assert size(again) == pytest.approx(size(drawn[name]), abs=3)


def test_the_same_spec_is_the_same_drawing_whatever_was_drawn_before(
    drawn: dict[str, str],
) -> None:
    for name in ("predictions", "breakdown"):
        assert render.svg(WIDE[name]) == drawn[name]


MANY = np.geomspace(1.0, 900.0, 200)
CLOUDS = {
    "predictions": judged.predictions(
        MANY, MANY[::-1], ["a"] * 200, ["a row"] * 200, legend={"a": "all"}, word="measured"
    ),
    "rows": energy.by_batch(MANY, MANY, ["an LLM"] * 200, ["an LLM"]),
}


def test_shortening_a_drawing_moves_no_mark(drawn: dict[str, str]) -> None:
    vl_convert = pytest.importorskip("vl_convert")
    mark = re.compile(r'<path transform="translate\(([-\d.]+),([-\d.]+)\)" [^>]*(?:fill|stroke)="#')
    used = re.compile(r'<use xlink:href="#\w+" x="([-\d.]+)" y="([-\d.]+)"')
    for name in CLOUDS:
        whole, short = vl_convert.vegalite_to_svg(CLOUDS[name]), render.svg(CLOUDS[name])
        before = np.array(mark.findall(whole), dtype=float)
        after = np.array([*mark.findall(short), *used.findall(short)], dtype=float)
        assert np.sort(after, axis=0) == pytest.approx(np.sort(before, axis=0), abs=0.01)
        assert len(used.findall(short)) >= 200
        assert len(short) < 0.6 * len(whole)


def test_files_are_what_their_names_say() -> None:
    pytest.importorskip("vl_convert")
    spec = WIDE["terms"]
    assert render.png(spec).startswith(b"\x89PNG")
    assert render.pdf(spec).startswith(b"%PDF")


def test_without_the_exporter_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MissingExtraError, match=re.escape("energylens[report]")):
        render.svg(WIDE["terms"])


def test_what_is_packed_for_a_page_unpacks_and_is_the_same_each_time() -> None:
    text = render.compact(WIDE)
    assert render.packed(text) == render.packed(text)
    assert gzip.decompress(b64decode(render.packed(text))).decode() == text


# ----------------------------------------------------------------------------- who reads colours


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it: what greyscale paper keeps."""
    return float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colour))


#: What is left of red, green and blue without one kind of cone (Machado 2009, linear RGB).
WITHOUT = {
    "protan": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deutan": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritan": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}


def lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    ratio = to_xyz @ np.clip(linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("kind", WITHOUT)
@pytest.mark.parametrize("theme", [0, 1])
def test_the_first_four_categories_differ_to_every_eye(kind: str, theme: int) -> None:
    seen = [lab(np.array(WITHOUT[kind]) @ linear(PALETTE[role][theme])) for role in CATEGORIES[:4]]
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert np.linalg.norm(one - other) > 10  # 2.3 is just noticeable


def test_categories_differ_by_shape_where_colour_is_lost() -> None:
    assert len(set(SHAPES)) == len(SHAPES) == len(CATEGORIES)
    for name in ("predictions", "learning", "rows"):
        assert '"shape":{"field"' in render.compact(WIDE[name])


@pytest.mark.parametrize("theme", [0, 1])
def test_shades_of_a_phase_step_in_greyscale(theme: int) -> None:
    for phase, count in (("prefill", 4), ("decode", 5)):
        grey = [luminance(PALETTE[f"{phase}-{k}"][theme]) for k in range(1, count + 1)]
        assert grey == sorted(grey)
        assert all((b + 0.05) / (a + 0.05) > 1.1 for a, b in itertools.pairwise(grey))


@pytest.mark.parametrize("dark", [False, True])
def test_charts_of_the_page_keep_to_the_palette_and_tell_terms_apart(dark: bool) -> None:
    known = {pair[int(dark)] for pair in PALETTE.values()}
    for name, spec in tables.specs(dark=dark).items():
        text = render.compact(spec)
        assert json.loads(text) == spec
        assert len(spec["description"]) > 20, name
        assert set(re.findall(r"#[0-9a-f]{6}\b", text)) <= known, name
        if name in ("joules", "seconds"):
            scale = spec["encoding"]["color"]["scale"]
            hues = dict(zip(scale["domain"], scale["range"], strict=True))
            # Idle GPUs of a node are one thing, whether a row's boundary or the load has them.
            hues.pop("idle_gpus", None)
            assert len(set(hues.values())) == len(hues), name


# ------------------------------------------------------------------------------------------ ticks


@given(st.floats(1e-6, 1e9), st.floats(1.05, 1e6))
def test_ticks_of_a_logarithmic_axis_are_round_few_and_within(low: float, factor: float) -> None:
    ticks = parts.log_ticks(low, low * factor)
    assert ticks == sorted(set(ticks))
    assert all(low <= tick <= low * factor for tick in ticks)
    assert len(ticks) <= 10
    assert len(ticks) >= 1 or factor < 2.1


def test_what_is_not_finite_is_left_out_of_the_data() -> None:
    made = parts.table(a=np.array([1.23456789, np.nan]), b=["x", "y"])
    assert made == {"values": [{"a": 1.235, "b": "x"}, {"a": None, "b": "y"}]}
