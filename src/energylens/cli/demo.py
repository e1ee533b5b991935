"""``demo``: a serving engineer's question, answered from published measurements."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from energylens.cli.console import Subparsers, add_json, print_json

LLM, GPU = "meta-llama/Llama-3.3-70B-Instruct", "H100"
RATE, TPOT, TTFT, TODAY = 3.0, "50ms", "1s", "TP8 B256"
INPUT_TOKENS, OUTPUT_TOKENS, MAX_GPUS = 2000.0, 300.0, 8
ASKED = (
    *("select", "--llm", LLM, "--precision", "fp8", "--gpu", GPU),
    *("--rate", f"{RATE:g}", "--tpot", TPOT, "--ttft", TTFT),
    *("--input-tokens", f"{INPUT_TOKENS:g}", "--output-tokens", f"{OUTPUT_TOKENS:g}"),
    *("--max-gpus", f"{MAX_GPUS}", "--current", TODAY),
)
QUESTION = (
    f"{LLM} in FP8 on at most {MAX_GPUS} {GPU}, {RATE:g} requests a second of "
    f"{INPUT_TOKENS:g} tokens in and {OUTPUT_TOKENS:g} out, TPOT <= 50 ms, TTFT <= 1 s; "
    f"today {TODAY}"
)


def add_verbs(verbs: Any) -> None:
    """Add the verb."""
    parser = Subparsers(verbs).add(
        "demo",
        "answer a serving engineer's question from the packaged model of published measurements",
        _demo,
        ("energylens demo", "energylens demo -o answer.html"),
    )
    parser.add_argument(
        "-o",
        "--output",
        default="energylens-demo.html",
        metavar="FILE.html",
        help="where to write the answer as a page (default: energylens-demo.html)",
    )
    add_json(parser)


def _demo(arguments: argparse.Namespace) -> None:
    from energylens import files
    from energylens.cli import build_parser
    from energylens.cli.report import require_page
    from energylens.report.html import page
    from energylens.schemas import Question
    from energylens.web import answers
    from energylens.web.models import Loaded
    from energylens.web.still import report_of

    require_page(arguments.output)
    question = Question(
        llm=LLM, precision=["fp8"], rate=RATE, tpot=TPOT, ttft=TTFT, current=TODAY,
        input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, max_gpus=MAX_GPUS,
    )  # fmt: skip
    made = answers.page(Loaded(), question, certain=True)
    files.write_text(arguments.output, page(report_of(made, QUESTION)))
    if arguments.json:
        print_json({"report": arguments.output, "answer": made["decision"]})
        return
    print(f"$ energylens {shlex.join(ASKED)}\n")
    asked = build_parser().parse_args(ASKED)
    asked.run(asked)
    print(f"\nThe same as a page, with its charts: {arguments.output}")
