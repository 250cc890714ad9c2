"""What went wrong, for programs and people: one shape for every error (RFC 9457).

A detail is one sentence: what, which value, what rule, what to do.  ``field`` names the part of the
request that it is about, where there is one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from deconvoy.errors import (
    CatalogueUnavailable,
    DeconvoyError,
    FieldInvalid,
    FilesUnreachable,
    JobConflict,
    JobNotFound,
    KeyReused,
    MissingExtra,
    RequestError,
    RunBusy,
    RunExists,
    RunNotFound,
    RunUnreachable,
)
from deconvoy.refusals import rule

MEDIA_TYPE = "application/problem+json"

STATUSES: tuple[tuple[type[DeconvoyError], int], ...] = (
    (MissingExtra, 501),
    (RunNotFound, 404),
    (JobNotFound, 404),
    (RunBusy, 409),
    (RunExists, 409),
    (KeyReused, 409),
    (JobConflict, 409),
    (RequestError, 422),
    (CatalogueUnavailable, 503),
    (RunUnreachable, 503),
    (FilesUnreachable, 503),
)
"""Of our errors, the first that fits; of any other 500: the request was right, something else is
not, and its sentence says what."""

log = structlog.get_logger("service.problems")


class Problem(Exception):
    """A request that is refused, or could not be answered."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, title, detail, field, headers)
        self.status = status
        self.title = title
        self.detail = detail
        self.field = field
        self.headers = headers

    def __str__(self) -> str:
        return self.detail


class ProblemResponse(JSONResponse):
    media_type = MEDIA_TYPE


def refused(
    status: int, detail: str, field: str | None = None, headers: Mapping[str, str] | None = None
) -> Problem:
    """A problem whose title is that of its status."""
    # As RFC 9110 has it; the phrases of Python's table differ from one version to the next.
    titles = {413: "Content Too Large", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}
    return Problem(status, titles.get(status) or HTTPStatus(status).phrase, detail, field, headers)


def of(error: DeconvoyError, field: str | None = None) -> Problem:
    """One of our errors as a problem."""
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
    if isinstance(error, FieldInvalid):  # which knows better than whoever was asking
        field = error.field or field
    if isinstance(error, KeyReused):
        field = "Idempotency-Key"
    return refused(status, str(error), field)


@contextmanager
def about(field: str) -> Iterator[None]:
    """Let our errors say which part of the request they are about."""
    try:
        yield
    except DeconvoyError as error:
        raise of(error, field) from error


def answer(problem: Problem) -> ProblemResponse:
    """The problem as it is sent."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.field is not None:
        content["field"] = problem.field
    return ProblemResponse(content, problem.status, problem.headers)


def install(app: FastAPI) -> None:
    """Let the application answer every error in this shape, and say so in its OpenAPI."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(DeconvoyError, _on_our_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_anything)
    _document(app)


# -- handlers --------------------------------------------------------------------------------------


async def _on_problem(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, Problem)
    if error.status >= 500:
        log.error("failed", path=request.url.path, told=error.detail)
    return answer(_without_place(request, error))


def _without_place(request: Request, problem: Problem) -> Problem:
    """Callers know a run by its id, and need not know where it lies."""
    detail = problem.detail
    for place, run_id in getattr(request.state, "runs", ()):
        if place:
            detail = detail.replace(place, run_id)
    return Problem(problem.status, problem.title, detail, problem.field, problem.headers)


async def _on_our_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, DeconvoyError)
    return await _on_problem(request, of(error))


async def _on_invalid(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    first = found[0]
    if first["type"] == "json_invalid":
        return answer(refused(400, _broken(error.body, int(first["loc"][1])), "body"))
    if first["loc"] == ("body",):
        return answer(_of_body(first))
    further = f" {len(found) - TOLD} more are wrong." if len(found) > TOLD else ""
    sentences = " ".join(map(_told, found[:TOLD]))
    return answer(refused(422, sentences + further, _field(first)))


TOLD = 4
"""Of what is wrong with a request at most so much is told."""


def _field(error: Mapping[str, Any]) -> str:
    return ".".join(map(str, error["loc"][1:]))


def _told(error: Mapping[str, Any]) -> str:
    where = {"path": "part of the path", "query": "parameter", "header": "header"}
    kind, field = where.get(str(error["loc"][0]), "field of the body"), _field(error)
    if error["type"] == "missing":
        return f"The {kind} {field!r} is missing: give it."
    if error["type"] == "extra_forbidden":
        return f"There is no {kind} {field!r} here: leave it out."
    value = repr(error.get("input"))
    shown = value if len(value) <= 80 else f"{value[:79]}…"
    return f"The {kind} {field!r} is {shown}, but {rule(error)}."


def _broken(text: str, place: int) -> str:
    """Of a body that is no JSON: where."""
    line, column = text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)
    there = f"at {text[place : place + 20]!r}" if place < len(text) else "where it ends"
    return (
        f"The body is no JSON: it breaks {there} (line {line}, column {column}); mend it, or check "
        "that it is whole."
    )


def _of_body(error: Mapping[str, Any]) -> Problem:
    """Of a body that is no JSON object."""
    given = error["input"]
    if error["type"] == "missing" or given is None:
        return refused(422, "The body is missing: send a JSON object.", "body")
    if isinstance(given, bytes):  # as FastAPI hands on what is not declared as JSON
        told = "The body is not declared as JSON: send JSON, with Content-Type: application/json."
        return refused(415, told, "Content-Type")
    kinds = {list: "a list", str: "a text", bool: "true or false", int: "a number"}
    kind = kinds.get(type(given), "a number")
    return refused(422, f"The body is {kind}, but it takes a JSON object: {{…}}.", "body")


async def _on_http(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    status, path = error.status_code, request.url.path
    detail = str(error.detail)
    if status == 400 and error.__cause__ is not None:  # FastAPI could not read the body
        return answer(refused(status, _undecodable(error.__cause__), "body"))
    if status == 404:
        detail = f"There is nothing at {path!r}: /docs lists the routes."
    elif status == 405:
        allowed = ", ".join(_methods_at(request))
        detail = f"{request.method} is no method of {path!r}: it takes {allowed}."
        return answer(refused(status, detail, "method", {"Allow": allowed}))
    return answer(refused(status, detail, FIELDS.get(status), error.headers))


FIELDS = {401: "Authorization", 403: "Authorization", 404: "path", 429: "Authorization"}
"""What of a request is wrong where a status alone tells."""


def _undecodable(why: BaseException) -> str:
    """Of a body that is not even text, or JSON beyond what is read."""
    if isinstance(why, UnicodeDecodeError):
        return f"The body is no UTF-8 text (its byte {why.start}): send JSON in UTF-8."
    if isinstance(why, RecursionError):
        return "The body is nested too deep to be read: make it flatter."
    return "The body has a number of too many digits to be read: write it shorter."


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def _methods_at(request: Request) -> list[str]:
    """Which a path takes, of all its routes; the error knows those of the first alone."""
    routes = request.app.routes

    def takes(method: str) -> bool:
        asked = {**request.scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in routes)

    return [method for method in METHODS if takes(method)]


async def _on_anything(request: Request, error: Exception) -> ProblemResponse:
    log.error("failed", path=request.url.path, exc_info=error)
    told = "The service failed at this request; its log says why, under this time and path."
    return answer(refused(500, told))


# -- OpenAPI ---------------------------------------------------------------------------------------

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "What went wrong (RFC 9457).",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What, which value, what rule, what to do."},
        "field": {"type": "string", "description": "The part of the request it is about."},
    },
    "examples": [
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "There is no run 'squeze'; nearest: squeeze.",
            "field": "run_id",
        }
    ],
}

_ANYWHERE = {
    400: "The request could not be read.",
    421: "The request came under a name that is none of the service's.",
    422: "A part of the request is not what it must be.",
    500: "The service, or a run that it reads, is broken.",
    503: "The database of the catalogue, or the place of a run, cannot be reached.",
}
_GUARDED = {
    401: "No token, or one that is unknown, expired or revoked.",
    403: "The token's scope does not reach so far.",
}
_OF_NAMES = {
    404: "Nothing there by that name; the nearest are named.",
    501: "A part of Deconvoy that this needs is not installed with the service.",
}
_OF_BODIES = {
    413: "The body is larger than the service takes.",
    415: "The body is not declared as JSON.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Further problems of one route, for its ``responses``."""
    return {status: _response(HTTPStatus(status).description) for status in statuses}


def _response(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schema}}}


OPEN = ("/healthz",)
"""Paths that need no token."""


def _document(app: FastAPI) -> None:
    """Every operation can be answered with a problem."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = make()
            for path, methods in schema["paths"].items():
                for operation in methods.values():
                    _add_problems(path, operation)
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):
                components.pop(name, None)
            components["Problem"] = _SCHEMA
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI tells to extend it


def _add_problems(path: str, operation: dict[str, Any]) -> None:
    told = dict(_ANYWHERE)
    if path not in OPEN:
        told |= _GUARDED
    if "{" in path:
        told |= _OF_NAMES
    if "requestBody" in operation:
        told |= _OF_BODIES
    responses = operation["responses"]
    for status, description in told.items():
        if str(status) not in responses or status == 422:
            responses[str(status)] = _response(description)
