"""The application: routes of the API and of the page.

Ranking answers take tens of milliseconds of one processor and run one after another on the event
loop: in a pool of threads they would contend for the interpreter and never drain a backlog.
Answers with probabilities take some times as long and run in one thread beside it, each question
once, however many ask it.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Query, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from pydantic import BaseModel, Field
from pydantic_core import to_json

from energylens import __version__, schemas
from energylens.errors import UsageError
from energylens.remembered import Remembered
from energylens.schemas import CaseQuestion, DecisionFile, Question
from energylens.web import answers, problems, tables
from energylens.web.counting import Counts
from energylens.web.guard import Bucket, Guard, Hosts
from energylens.web.models import Loaded

KEPT_ANSWERS = 64
KEPT_BYTES = 16 * 2**20
MOST_WAITING = 32  # different questions that long work may be under way for, or wait
PAGES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "rows.js": "text/javascript; charset=utf-8",
    "shared.js": "text/javascript; charset=utf-8",
    "expressions.js": "text/javascript; charset=utf-8",
    "rows.html": "text/html; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
}
#: What the page calls of the bundle.
EXPORTS = "window.vegaEmbed = vegaEmbed;"
Certain = Annotated[
    bool, Query(description="false: the ranking by means alone, a tenth of the work")
]


class Health(BaseModel):
    """Whether the server lives, and whether it answers."""

    status: str


class ServiceQuestion(Question):
    """A question about one configuration at many rates."""

    configuration: str = Field(
        min_length=1, max_length=4000, description="as TP4 B64, or a vllm serve command line"
    )
    rates: int = Field(default=answers.RATES, ge=2, le=200)


class SelectQuestion(Question):
    """A question, and how sure its answer has to be."""

    certain: bool = Field(
        default=True, description="false: the ranking by means alone, a tenth of the work"
    )


@dataclass
class State:
    """What one server holds."""

    loaded: Loaded
    counts: Counts = field(default_factory=Counts)
    kept: Remembered[bytes] = field(
        default_factory=lambda: Remembered(KEPT_BYTES, most=KEPT_ANSWERS, share=0.25)
    )
    ready: bool = False
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    underway: dict[str, asyncio.Task[bytes]] = field(default_factory=dict)
    charts: asyncio.Task[bytes] | None = None
    judge: asyncio.Task[dict[str, Any]] | None = None


@cache
def page_file(name: str) -> bytes:
    """Read a file of the page, which comes with the package."""
    return (resources.files("energylens.web") / "page" / name).read_bytes()


#: Takes vega, vega-lite and vega-embed out of the exporter, and writes them gzipped.
BUNDLE = (
    "import gzip, sys, vl_convert; sys.stdout.buffer.write("
    f"gzip.compress(vl_convert.javascript_bundle({EXPORTS!r}).encode(), compresslevel=6, mtime=0))"
)


async def chart_bundle() -> bytes:
    """Take the chart library out of the exporter, for the browser; gzipped.

    In a process of its own: the exporter holds the interpreter for as long as it works, and no
    question would be answered meanwhile.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BUNDLE, stdout=asyncio.subprocess.PIPE
    )
    try:
        packed, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise RuntimeError("the chart library could not be taken out of vl-convert")
    return packed


#: Names that a question may give more than once.
SEVERAL = {n for n, f in Question.model_fields.items() if str(f.annotation).startswith("list")}


async def each_once(request: Request) -> None:
    """Refuse a name that is given twice: the last would be taken, and nothing said.

    Raises
    ------
    UsageError
    """
    counts = Counter(name for name, _ in request.query_params.multi_items())
    for name, count in counts.items():
        if count > 1 and name not in SEVERAL:
            raise UsageError(f"{name[:60]} must be given once, not {count} times: leave one")


def create(loaded: Loaded, *, hosts: Hosts | None = None, most_rate: float = 200.0) -> FastAPI:
    """Make the application.

    Parameters
    ----------
    loaded : Loaded
        Models and rows that it answers from.
    hosts : Hosts, optional
        Names under which it answers; loopback by default.
    most_rate : float
        Requests a second that are answered.
    """
    state = State(loaded)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.charts = asyncio.create_task(chart_bundle())
        state.ready = True
        yield
        state.ready = False
        state.charts.cancel()
        if state.judge is not None:
            state.judge.cancel()
        state.pool.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="EnergyLens",
        version=__version__,
        summary="Joules, watts and latency of LLM serving, and which configuration takes least.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        dependencies=[Depends(each_once)],
        responses={
            422: {
                "model": schemas.Problem,
                "content": {problems.MEDIA_TYPE: {}},
                "description": "The question cannot be answered as it is",
            },
            429: {"model": schemas.Problem, "description": "Too many requests"},
        },
    )
    app.state.energylens = state
    problems.install(app)
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=1)
    app.add_middleware(
        Guard,
        hosts=hosts or Hosts(),
        bucket=Bucket(most_rate, most_rate),
        observe=state.counts.observe,
    )
    _add_api(app, state)
    _add_page(app, state)
    return app


async def _answer(
    state: State, key: str, work: Callable[[], dict[str, Any]], *, aside: bool
) -> Response:
    """Answer from memory, at once, or aside in the one thread for long work.

    Who asks what is under way already waits for the same answer; of too many different questions
    the last is refused.
    """
    kept = state.kept.get(key)
    if kept is None and not aside:
        kept = _keep(state, key, work())
    elif kept is None:
        if key not in state.underway:
            if len(state.underway) >= MOST_WAITING:
                return problems.problem(
                    429,
                    f"{MOST_WAITING} questions wait for an answer already: ask again in a second",
                    headers={"retry-after": "1"},
                )
            state.underway[key] = asyncio.create_task(_aside(state, key, work))
        # One who goes away does not take the answer from the others.
        kept = await asyncio.shield(state.underway[key])
    return Response(kept, media_type="application/json")


async def _aside(state: State, key: str, work: Callable[[], dict[str, Any]]) -> bytes:
    try:
        made = await asyncio.get_running_loop().run_in_executor(state.pool, work)
        return _keep(state, key, made)
    finally:
        del state.underway[key]


def _keep(state: State, key: str, made: dict[str, Any]) -> bytes:
    """Write an answer out, count it, and keep it for whoever asks the same."""
    for part in (made, made.get("decision", {})):
        state.counts.candidates.inc(part.get("considered", 0))
    written = to_json(made, inf_nan_mode="null")
    state.kept.put(key, written, len(written))
    return written


def _key(kind: str, *asked: Any) -> str:
    return "\n".join(
        [kind, *(a.model_dump_json() if isinstance(a, BaseModel) else repr(a) for a in asked)]
    )


def _add_api(app: FastAPI, state: State) -> None:
    """Add everything under /v1, and what operators ask."""
    loaded = state.loaded

    async def ranked(kind: str, question: DecisionFile, certain: bool) -> Response:
        work = {"select": answers.select, "pareto": answers.pareto}[kind]
        return await _answer(
            state,
            _key(kind, question, certain),
            lambda: work(loaded, question, certain=certain),
            aside=certain,
        )

    async def explained(asked: CaseQuestion) -> Response:
        key = _key("explain", asked)
        return await _answer(state, key, lambda: answers.explanation(loaded, asked), aside=False)

    @app.get("/v1/select", response_model=schemas.Decision, tags=["decide"])
    async def get_select(asked: Annotated[SelectQuestion, Query()]) -> Response:
        """Rank the configurations that meet the limits at a rate, fewest joules first."""
        return await ranked("select", asked.document(), asked.certain)

    @app.post("/v1/select", response_model=schemas.Decision, tags=["decide"])
    async def post_select(
        question: Annotated[DecisionFile, Body()], certain: Certain = True
    ) -> Response:
        """Answer a decision file, sent as JSON; files that it names are refused."""
        return await ranked("select", question, certain)

    @app.get("/v1/pareto", response_model=schemas.Pareto, tags=["decide"])
    async def get_pareto(asked: Annotated[SelectQuestion, Query()]) -> Response:
        """List every candidate, and the energy-latency front among them."""
        return await ranked("pareto", asked.document(), asked.certain)

    @app.post("/v1/pareto", response_model=schemas.Pareto, tags=["decide"])
    async def post_pareto(
        question: Annotated[DecisionFile, Body()], certain: Certain = True
    ) -> Response:
        """List the candidates of a decision file, sent as JSON."""
        return await ranked("pareto", question, certain)

    @app.get("/v1/service", response_model=schemas.Service, tags=["decide"])
    async def get_service(asked: Annotated[ServiceQuestion, Query()]) -> Response:
        """Put one configuration under many rates: joules, watts and times of each."""
        question = asked.document()
        return await _answer(
            state,
            _key("service", question, asked.configuration, asked.rates),
            lambda: answers.service(loaded, question, asked.configuration, rates=asked.rates),
            aside=True,
        )

    @app.get("/v1/explain", response_model=schemas.Explanation, tags=["decide"])
    async def get_explain(asked: Annotated[CaseQuestion, Query()]) -> Response:
        """Say what a configuration kept full costs, term by term, and why."""
        return await explained(asked)

    @app.post("/v1/explain", response_model=schemas.Explanation, tags=["decide"])
    async def post_explain(asked: Annotated[CaseQuestion, Body()]) -> Response:
        """Explain a configuration, sent as JSON."""
        return await explained(asked)

    @app.get("/v1/models", response_model=schemas.Models, tags=["names"])
    async def get_models() -> Response:
        """List the fitted models that answer here, the default first."""
        listed = schemas.headed("models", {"models": loaded.listed()})
        return Response(to_json(listed), media_type="application/json")

    @app.get("/v1/llms", response_model=schemas.Llms, tags=["names"])
    async def get_llms(contains: Annotated[str, Query(max_length=200)] = "") -> Response:
        """List the LLMs that the catalog knows."""
        return Response(tables.llms(contains), media_type="application/json")

    @app.get("/v1/gpus", response_model=schemas.Gpus, tags=["names"])
    async def get_gpus(contains: Annotated[str, Query(max_length=200)] = "") -> Response:
        """List the GPU types that the catalog knows."""
        return Response(tables.gpus(contains), media_type="application/json")

    @app.get("/healthz", response_model=Health, tags=["operate"])
    async def healthz() -> Health:
        """Say that the server lives."""
        return Health(status="ok")

    @app.get(
        "/readyz", response_model=Health, responses={503: {"model": schemas.Problem}},
        tags=["operate"],
    )  # fmt: skip
    async def readyz() -> Any:
        """Say whether the server answers questions."""
        if not state.ready:
            return problems.problem(503, "the server starts or stops: ask again in a second")
        return Health(status="ready")

    @app.get("/metrics", response_class=Response, tags=["operate"])
    async def metrics() -> Response:
        """Give counts and times of answers, for Prometheus."""
        return Response(state.counts.text(), media_type=state.counts.media_type)


def _add_page(app: FastAPI, state: State) -> None:
    """Add the page, its data and its scripts."""
    loaded = state.loaded

    def add_file(path: str, name: str) -> None:
        async def get_file() -> Response:
            return Response(page_file(name), headers={"content-type": PAGES[name]})

        app.add_api_route(path, get_file, include_in_schema=False, methods=["GET", "HEAD"])

    for name in PAGES:
        add_file({"index.html": "/", "rows.html": "/rows"}.get(name, f"/{name}"), name)

    @app.get("/favicon.ico", include_in_schema=False)
    async def get_icon() -> Response:
        """None: a browser that shows a document asks for one, and logs an error otherwise."""
        return Response(status_code=204)

    @app.get("/charts.js", include_in_schema=False)
    async def get_charts(request: Request) -> Response:
        assert state.charts is not None
        packed = await asyncio.shield(state.charts)
        headers = {"content-type": "text/javascript; charset=utf-8", "vary": "accept-encoding",
                   "cache-control": "max-age=86400"}  # fmt: skip
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(packed, headers={**headers, "content-encoding": "gzip"})
        return Response(gzip.decompress(packed), headers=headers)

    @app.get("/page/start", include_in_schema=False)
    async def get_start() -> Response:
        """What the page's form offers, and the charts in both themes."""
        return Response(tables.start(loaded), media_type="application/json")

    @app.get("/page/answer", include_in_schema=False)
    async def get_answer(asked: Annotated[SelectQuestion, Query()]) -> Response:
        """Everything that the page shows of one question."""
        return await _answer(
            state,
            _key("page", asked),
            lambda: answers.page(loaded, asked, certain=asked.certain),
            aside=asked.certain,
        )

    @app.get("/page/rows", include_in_schema=False)
    async def get_rows() -> Response:
        """Everything that the second view shows."""
        if loaded.dataset is None:
            return problems.problem(
                404, "no table of rows is shown: start with energylens serve --data runs.csv"
            )
        return await _answer(state, "rows", lambda: tables.rows(loaded), aside=True)

    @app.get("/page/learning", include_in_schema=False)
    async def get_learning() -> Response:
        """Give the learning curve, once it is there; the first question starts the work."""
        if loaded.dataset is None or not loaded.dataset_path:
            return problems.problem(404, "there is no table of rows to judge")
        if state.judge is None:
            words = tables.judging(loaded.dataset_path, loaded.dataset)
            state.judge = asyncio.create_task(judged(words))
        if not state.judge.done():
            return Response(
                to_json({"status": "judging"}), status_code=202, media_type="application/json"
            )
        return Response(to_json(state.judge.result()), media_type="application/json")


async def judged(words: list[str]) -> dict[str, Any]:
    """Run the judge in a process of its own, which leaves the server free to answer."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "energylens",
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, said = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        last = said.decode(errors="replace").strip().rpartition("energylens evaluate: ")[2]
        return {"status": "refused", "why": last[:600]}
    return {"status": "done", **tables.learning(json.loads(out))}
