"""Charts of a service under load: the energy-latency front, joules and seconds, the load curve.

Numbers come as named data (``points``, ``front``, ``limit`` ...), so that a page replaces them
without drawing axes anew. Keys are drawn beside the chart: ``usermeta.key`` names their colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from energylens.charts.theme import Spec, by_category, colour, hover, web_chart, web_log

FRONT_HEIGHT, CURVE_HEIGHT, BAR_STEP = 330, 150, 24
BARS = 10  # that the height is for
LABELS_WIDE = 150  # of the names of configurations, in pixels
AXIS_WIDE = 44  # of numbers

#: Roles of the energy law's terms, no two alike: where both laws have a term it has one colour.
JOULE_ROLES: Mapping[str, str] = {
    "prefill_launch": "prefill-1",
    "prefill_compute": "prefill-3",
    "vision": "prefill-2",
    "media_waiting": "prefill-4",
    "decode_launch": "category-5",
    "decode_weights": "decode-1",
    "narrow_weights": "decode-2",
    "decode_compute": "decode-3",
    "decode_sequence": "decode-5",
    "decode_cache": "decode-4",
    "weight_only_weights": "decode-6",
    "narrow_steps": "decode-7",
    "expert_imbalance": "category-4",
    "tensor_parallel": "layout-1",
    "tensor_length": "category-3",
    "pipeline_parallel": "layout-2",
    "pipeline_length": "layout-4",
    "capped_headroom": "category-1",
    "capped_compute": "category-6",
    "idle_gpus": "layout-3",
}
#: What is said of a term whose name says too little.
WORDS: Mapping[str, str] = {
    "prefill_launch": "prompt: launching kernels",
    "prefill_compute": "prompt: computing",
    "vision": "vision tower",
    "media_waiting": "preparing images",
    "decode_launch": "decode: launching kernels",
    "decode_weights": "decode: reading weights",
    "narrow_weights": "decode: weights of 8 bits or fewer",
    "decode_compute": "decode: computing",
    "decode_sequence": "decode: engine, by sequence",
    "decode_cache": "decode: KV cache",
    "weight_only_weights": "decode: widening weights",
    "narrow_steps": "decode: kernels of 8 bits or fewer",
    "expert_imbalance": "busiest expert",
    "tensor_parallel": "between GPUs",
    "tensor_length": "between GPUs, by context",
    "pipeline_parallel": "pipeline stages",
    "pipeline_length": "pipeline stages, by context",
    "step_weights": "decode: reading weights",
    "step_narrow_weights": "decode: weights of 8 bits or fewer",
    "step_weight_only": "decode: widening weights",
    "step_compute": "decode: computing",
    "step_cache": "decode: KV cache",
    "step_launch": "decode: launching kernels",
    "step_sequence": "decode: engine, by sequence",
    "step_synchronisation": "GPUs waiting for each other",
    "step_link": "between GPUs",
    "step_stage": "to the next pipeline stage",
    "step_bubble": "pipeline bubbles",
    "prompt_compute": "prompt: computing",
    "prompt_launch": "prompt: launching kernels",
    "prompt_link": "prompt: between GPUs",
    "media": "preparing images",
    "lockstep": "replicas in lockstep",
}
#: Roles of the time law's terms and of what is not of a law.
TIME_ROLES: Mapping[str, str] = {
    "step_weights": "decode-1",
    "step_narrow_weights": "decode-2",
    "step_weight_only": "decode-6",
    "step_compute": "decode-3",
    "step_cache": "decode-4",
    "step_sequence": "decode-5",
    "step_launch": "category-5",
    "step_synchronisation": "layout-1",
    "step_link": "category-3",
    "step_stage": "layout-2",
    "step_bubble": "category-4",
    "prompt_launch": "prefill-1",
    "vision": "prefill-2",
    "prompt_compute": "prefill-3",
    "media": "prefill-4",
    "prompt_link": "category-6",
    "lockstep": "layout-3",
    "waiting": "muted",
}


def front(*, dark: bool = False) -> Spec:
    """Draw joules a request against time per token, with the front and the limit.

    Named data: ``points`` and ``top`` (those of the front, drawn last so that a hover names them)
    with ``tpot_ms``, ``j``, ``g`` (place of the GPU type), ``ok``, ``name``, ``gpu``, ``gpus``,
    ``ttft_ms``, ``w`` and ``chance``; ``limit`` with ``tpot_ms``; ``chosen`` and ``current``.
    """
    x = web_log("tpot_ms", "time per output token, ms")
    y = web_log("j", "joules a request", format="~s", minExtent=AXIS_WIDE, maxExtent=AXIS_WIDE)
    ink, paper = colour("ink", dark=dark), colour("paper", dark=dark)
    by_gpu = by_category("g", dark=dark)
    tooltip = hover(
        name="configuration", gpu="GPU type", gpus="GPUs", j=("J a request", ".4~g"),
        tpot_ms=("ms a token", ".3~g"), ttft_ms=("ms to the first token", ".3~g"),
        w=("W", ".4~g"), chance="meets the limits",
    )  # fmt: skip
    place = {"x": x, "y": y}
    return {
        **web_chart(
            "Joules a request against time per output token of every candidate. The line joins "
            "the configurations that no other beats in both; the dashed rule is the limit.",
            FRONT_HEIGHT,
            dark=dark,
        ),
        "layer": [
            {
                "data": {"name": "limit"},
                "mark": {"type": "rule", "strokeDash": [5, 4], "strokeWidth": 1.5,
                         "color": colour("warning", dark=dark), "aria": False},
                "encoding": {"x": {"field": "tpot_ms", "type": "quantitative"}},
            },
            {
                "data": {"name": "front"},
                "mark": {"type": "line", "interpolate": "step-after", "color": ink,
                         "strokeWidth": 1.5, "aria": False},
                "encoding": place,
            },
            {
                "data": {"name": "points"},
                "mark": {"type": "point", "filled": True, "size": 28, "aria": False},
                "encoding": {
                    **place, **by_gpu, "tooltip": tooltip,
                    "opacity": {"condition": {"test": "datum.ok", "value": 0.75}, "value": 0.16},
                },
            },
            {
                "data": {"name": "current"},
                "mark": {"type": "point", "shape": "cross", "size": 170, "filled": True,
                         "color": colour("warning", dark=dark), "stroke": paper, "aria": False},
                "encoding": {**place, "tooltip": hover(
                    name="today", j=("J a request", ".4~g"), tpot_ms=("ms a token", ".3~g"))},
            },
            {
                "data": {"name": "chosen"},
                "mark": {"type": "point", "shape": "diamond", "size": 230, "strokeWidth": 2.5,
                         "filled": False, "color": ink, "aria": False},
                "encoding": place,
            },
            {
                "data": {"name": "top"},
                "mark": {"type": "point", "filled": True, "size": 64, "stroke": ink,
                         "strokeWidth": 1, "aria": False},
                "encoding": {
                    **place, **by_gpu, "tooltip": tooltip,
                    "opacity": {"condition": {"test": "datum.ok", "value": 1}, "value": 0.45},
                },
            },
        ],
    }  # fmt: skip


def stacked(
    terms: Sequence[tuple[str, str, str]], *, field: str, title: str, dark: bool = False
) -> Spec:
    """Draw one bar for each configuration, divided over the terms of a law.

    Named data: ``bars`` with ``name`` of the configuration, its ``rank``, ``term``, ``k`` (place
    of the term) and the field. ``usermeta.step`` is how high a bar is, for who has fewer.

    Parameters
    ----------
    terms : sequence of (str, str, str)
        Name, words and colour role of each term, in the order of the stack.
    field : {"j", "s"}
    title : str
        Of the axis.
    """
    colours = [colour(role, dark=dark) for _, _, role in terms]
    return {
        **web_chart(
            f"{title[0].upper()}{title[1:]} by term, for the best configurations.",
            BARS * BAR_STEP,
            dark=dark,
        ),
        "data": {"name": "bars"},
        "usermeta": {"step": BAR_STEP, "key": {name: [words, hue] for (name, words, _), hue in zip(
            terms, colours, strict=True)}},
        "mark": {"type": "bar", "aria": False, "stroke": colour("paper", dark=dark),
                 "strokeWidth": 0.5},
        "encoding": {
            "y": {
                "field": "name",
                "type": "nominal",
                "sort": {"field": "rank", "op": "min"},
                "title": None,
                "axis": {"labelLimit": LABELS_WIDE - 4, "minExtent": LABELS_WIDE,
                         "maxExtent": LABELS_WIDE},
            },
            "x": {"field": field, "type": "quantitative", "title": title,
                  "axis": {"tickCount": 4, "format": ",~f"}},
            "order": {"field": "k"},
            "color": {"field": "term", "type": "nominal", "legend": None,
                      "scale": {"domain": [name for name, _, _ in terms], "range": colours}},
            "tooltip": hover(name="configuration", words="term", **{field: (title, ".3~g")},
                             share=("share", ".0%")),
        },
    }  # fmt: skip


def curve(field: str, title: str, *, last: bool, dark: bool = False) -> Spec:
    """Draw what one configuration does at many rates.

    Named data: ``curve`` with ``rate``, ``j``, ``tpot_ms`` and what a hover says; ``now`` with the
    rate asked, ``break`` with the rate up to which the limits are met, and ``limit``.

    Parameters
    ----------
    field : {"j", "tpot_ms"}
    last : bool
        Whether this is the lowest of the panels, which names the rate.
    """
    x = web_log("rate", "requests a second" if last else "")
    hue = colour("category-1" if field == "j" else "category-2", dark=dark)
    warning, ink = colour("warning", dark=dark), colour("ink", dark=dark)
    tooltip = hover(
        rate=("requests a second", ".3~g"), j=("J a request", ".4~g"), w=("W", ".4~g"),
        tpot_ms=("ms a token", ".3~g"), ttft_ms=("ms to the first token", ".3~g"),
        batch=("requests running", ".3~g"),
    )  # fmt: skip
    at = {"x": {"field": "rate", "type": "quantitative"}}
    return {
        **web_chart(
            f"{title[0].upper()}{title[1:]} against the rate, for the choice. The dashed rule is "
            "the rate up to which the limits are met.",
            CURVE_HEIGHT,
            dark=dark,
        ),
        "layer": [
            {"data": {"name": "break"},
             "mark": {"type": "rule", "strokeDash": [5, 4], "strokeWidth": 1.5, "color": warning,
                      "aria": False}, "encoding": at},
            {"data": {"name": "now"},
             "mark": {"type": "rule", "strokeWidth": 1.5, "color": ink, "aria": False},
             "encoding": at},
            {"data": {"name": "limit"},
             "mark": {"type": "rule", "strokeDash": [2, 3], "strokeWidth": 1.5, "color": warning,
                      "aria": False},
             "encoding": {"y": {"field": field, "type": "quantitative"}}},
            {"data": {"name": "curve"},
             "mark": {"type": "line", "color": hue, "strokeWidth": 2, "aria": False,
                      "point": {"size": 36, "color": hue, "filled": True}},
             "encoding": {
                 "x": x,
                 "y": web_log(field, title, minExtent=AXIS_WIDE, maxExtent=AXIS_WIDE, tickCount=4,
                           format="~s" if field == "j" else "~g"),
                 "tooltip": tooltip}},
        ],
    }  # fmt: skip
