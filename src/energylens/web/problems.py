"""Errors as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from energylens.errors import EnergyLensError, InfeasibleError, UnknownNameError

MEDIA_TYPE = "application/problem+json"
KINDS = {
    "unusable": "the question cannot be answered as it is",
    "infeasible": "no configuration is left to choose from",
}
MOST = 600  # letters of what was given that an error repeats


def problem(
    status: int,
    detail: str,
    *,
    kind: str = "about:blank",
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """Make an answer that says what went wrong.

    Parameters
    ----------
    detail : str
        One sentence: what must hold, what was given, what to do.
    kind : str
        A key of :data:`KINDS`.
    headers, more : mapping, optional
        Header lines, and members of the document besides those of the standard.
    """
    title = KINDS.get(kind) or HTTPStatus(status).phrase
    document = {
        "type": kind if kind == "about:blank" else f"urn:energylens:problem:{kind}",
        "title": title[0].upper() + title[1:],
        "status": status,
        "detail": detail if len(detail) <= MOST else f"{detail[:MOST]} ...",
        **(more or {}),
    }
    return JSONResponse(
        document, status_code=status, media_type=MEDIA_TYPE, headers=dict(headers or {})
    )


def of_error(error: EnergyLensError) -> JSONResponse:
    """Say an error of the package."""
    kind = "infeasible" if isinstance(error, InfeasibleError) else "unusable"
    said = str(error)
    if isinstance(error, UnknownNameError):
        # Advice for the command line names files of the server's own machine.
        said = f"{error.brief} /v1/llms, /v1/gpus and /v1/models list the names."
    return problem(422, said, kind=kind)


def install(app: FastAPI) -> None:
    """Have every error of an application said in this form."""

    async def own(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, EnergyLensError)
        return of_error(error)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        found = [
            {"at": ".".join(str(part) for part in each["loc"][:8])[:200], "must": each["msg"][:200]}
            for each in error.errors()[:8]
        ]
        said = "; ".join(f"{each['at']}: {each['must']}" for each in found)
        return problem(422, said or "the question is invalid", kind="unusable",
                       more={"errors": found})  # fmt: skip

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return problem(error.status_code, str(error.detail), headers=error.headers)

    async def unexpected(_: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
        return problem(500, "an error of ours; the server's log has it")

    app.add_exception_handler(EnergyLensError, own)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)
