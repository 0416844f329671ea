"""Refusals on the wire: `application/problem+json` (RFC 9457) for everything that is not a success."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from playhead import log
from playhead._native import NativeError
from playhead.errors import PlayheadError, invalid
from playhead.problem import problem_of

_log = log.get("api")


class Problem(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str = Field(description="A stable word, listed in docs/errors.md")
    detail: str
    next_step: str = Field(description="What to do; empty when the detail says it")


PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Refused", "model": Problem, "content": {"application/problem+json": {}}},
    "5XX": {"description": "Failed", "model": Problem, "content": {"application/problem+json": {}}},
}


def response(error: BaseException, headers: dict[str, str] | None = None) -> JSONResponse:
    """The response for an error."""
    body = problem_of(error)
    return JSONResponse(body, status_code=body["status"], headers=headers, media_type="application/problem+json")


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    body = problem_of(error)
    if body["status"] >= 500:
        _log.info("request failed", code=body["code"], detail=body["detail"])
    return response(error)


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = []
    for fault in error.errors()[:5]:
        where = ".".join(str(part) for part in fault["loc"] if part != "body")
        faults.append(f"{where}: {fault['msg']}" if where else str(fault["msg"]))
    return response(invalid("; ".join(faults), "see /api/v1/openapi.json"))


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return response(
            PlayheadError("method-not-allowed", "this resource has no such method", "see /api/v1/openapi.json"),
            dict(error.headers or {}),
        )
    if error.status_code == 404:
        return response(PlayheadError("not-found", "there is no such resource", "see /api/v1/openapi.json"))
    return response(invalid(str(error.detail), "see /api/v1/openapi.json"))


async def _defect(_request: Request, error: Exception) -> JSONResponse:
    _log.error("defect in a request", exc_info=error)
    return response(error)


def install(app: FastAPI) -> None:
    """Gives every kind of error its response."""
    app.add_exception_handler(PlayheadError, _refused)
    app.add_exception_handler(NativeError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _defect)
