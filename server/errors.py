"""Errors in one shape, OpenAI's, whatever went wrong: `{"error": {"message", "type", "param", "code"}}`.

A message says what was wrong and what mends it. It never repeats a value of the body: that may be a prompt or a password.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
import sys
from itertools import groupby
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenizer import to_bytes

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
MOST_TOLD = 3  # mistakes that one message names
MOST_READ = 100  # of a body's mistakes: to put many thousands into words would take seconds, from everyone
UNION_MEMBERS = {"str", "int", "float", "bool", "constrained-str"}  # pydantic puts these into the place of a mistake
log = logging.getLogger("server")


class ApiError(Exception):
    """A refusal, or a failure that the client is told of.

    Args:
        status: the HTTP status.
        param: the field that is to blame.
        code: a word for programs, such as `context_length_exceeded`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.type, self.param, self.code = status, message, type, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, dict[str, Any]]:
        """What the client reads; also the `data:` of a stream that fails in the middle."""
        told = {"message": clean(self.message), "type": self.type, "param": self.param, "code": self.code}
        return {"error": told}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    error: ErrorDetail


# What the OpenAPI document says of every endpoint.
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The body is no JSON",
        401: "No credentials, or wrong ones",
        403: "Not for this caller",
        404: "Not there",
        408: "The body came too slowly",
        413: "The body is too large",
        422: "A field is missing, unknown or wrong",
        429: "Too many requests, or the queue is full: obey Retry-After",
        503: "No model answers now: obey Retry-After",
    }.items()
}


def install(app: FastAPI) -> None:
    """Gives every error of an app the one shape; `Guard` catches those that nobody foresaw."""
    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation_error)


async def api_error(request: Request, error: ApiError) -> JSONResponse:
    return error.response()


async def http_error(request: Request, error: HTTPException) -> JSONResponse:
    """What the framework refuses: unknown paths, wrong methods, bodies that cannot be read."""
    message, headers, code = str(error.detail), dict(error.headers or {}), None
    if error.status_code == 404:
        hint = "POST /v1/generate writes text" if hasattr(request.app.state, "host") else "/training shows the runs"
        message, code = f"there is nothing at {clip(request.url.path)}; {hint}.", "unknown_url"
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(methods(request))
        message = f"{clip(request.method)} is not for {clip(request.url.path)}; it takes {headers['Allow']}."
        code = "method_not_allowed"
    elif error.status_code == 400:
        message, code = unreadable(request, error.__cause__), "invalid_json"
    kind = TYPES.get(error.status_code, "invalid_request_error" if error.status_code < 500 else "server_error")
    return ApiError(error.status_code, message, kind, code=code, headers=headers).response()


def unreadable(request: Request, cause: BaseException | None) -> str:
    """Why a body is not even wrong: what stopped the reader."""
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        return f"the body comes with Content-Encoding: {clip(coding)}, which this server does not read: send it as it is."
    if isinstance(cause, RecursionError):
        return "the body is nested too deeply: no field takes a list in a list in a list."
    if isinstance(cause, ValueError) and not isinstance(cause, UnicodeDecodeError):
        return f"the body holds a number of more than {sys.get_int_max_str_digits()} digits: no field takes one so long."
    return "the body cannot be read: send JSON in UTF-8."


def methods(request: Request) -> list[str]:
    """What a path takes. The framework itself names the methods of one endpoint, where a path may have two."""
    scopes = ({**request.scope, "method": method} for method in METHODS)
    return [each["method"] for each in scopes if any(r.matches(each)[0] is Match.FULL for r in request.app.routes)]


async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    """Fields that are missing, unknown or wrong: 422; a body that is no JSON: 400."""
    mistakes = error.errors()[:MOST_READ]
    if mistakes[0]["type"] == "json_invalid":
        reason, place = mistakes[0]["ctx"]["error"], mistakes[0]["loc"][-1]
        return ApiError(400, f"the body is no JSON: {reason} at character {place}.", code="invalid_json").response()
    mistakes = meant(mistakes)
    told = dict.fromkeys(sentence(each, fields_of(request)) for each in mistakes)
    return ApiError(422, "; ".join(list(told)[:MOST_TOLD]) + ".", param=place_of(mistakes[0])).response()


def meant(mistakes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mistakes, but of a field that may be of several kinds only those of the kind that comes nearest to what was sent.

    pydantic tells what is wrong for each kind, which contradicts itself: a list of texts with a number in it is no text, no list
    of texts, and no list of numbers. Where no kind is near, all of them become one mistake.
    """
    found = []
    for _, same in groupby(mistakes, key=lambda each: of_a_union(each)[0] or id(each)):
        kinds: dict[str, list[dict[str, Any]]] = {}
        for mistake in same:
            kinds.setdefault(of_a_union(mistake)[1], []).append(mistake)
        nearest = min(kinds.values(), key=distance)
        if len(kinds) > 1 and distance(nearest)[0]:
            wanted = dict.fromkeys(each["msg"].removeprefix("Input should be ") for each, *_ in kinds.values())
            nearest = [{**nearest[0], "msg": f"Input should be {' or '.join(wanted)}"}]
        found += nearest
    return found


def of_a_union(mistake: dict[str, Any]) -> tuple[tuple, str]:
    """The place of the union that a mistake was found in, and which of its members; nothing for a mistake in none."""
    for at, part in enumerate(mistake["loc"][1:], 1):
        if is_member(part) and mistake["type"] != "extra_forbidden":
            return mistake["loc"][:at], part
    return (), ""


def distance(mistakes: list[dict[str, Any]]) -> tuple[bool, list[float], int, int]:
    """How far what was sent is from one member of a union: is it of another kind altogether; how soon is the first part that is wrong;
    how many parts are of another kind; all mistakes."""
    kinds = [each for each in mistakes if each["type"].endswith("_type")]
    sooner = [*(-part for part in mistakes[0]["loc"] if isinstance(part, int)), math.inf]  # a list is read up to its first mistake
    return any(is_member(each["loc"][-1]) for each in kinds), sooner, len(kinds), len(mistakes)


def is_member(part: str | int) -> bool:
    """Whether a part of a place is a member of a union, such as `list[str]`, rather than a field or an index."""
    return str(part) in UNION_MEMBERS or "[" in str(part)


def sentence(mistake: dict[str, Any], fields: list[str]) -> str:
    """One mistake in words, without the value."""
    place, kind = place_of(mistake), mistake["type"]
    if kind == "string_unicode":
        return f"{place or 'the body'}: a name in it holds half of a surrogate pair, which is no character"
    if kind in ("too_short", "too_long"):
        limits, short = mistake["ctx"], kind == "too_short"
        wanted = f"{limits['min_length']} at least" if short else f"{limits['max_length']} at most"
        return f"{place or 'the body'} has a length of {limits['actual_length']}: it must be {wanted}"
    if place is None:
        return "the body must be a JSON object, sent with the header Content-Type: application/json"
    if kind == "missing":
        return f"{place} is missing"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(place, fields, 1, 0.6)
        return f"there is no field '{place}': {f'perhaps {near[0]} was meant' if near else 'leave it out'}"
    message = mistake["msg"]
    return f"{place}: {message[0].lower()}{message[1:]}"


def place_of(mistake: dict[str, Any]) -> str | None:
    """The field, as `stop.0`; None for the body as a whole. Without the members of unions that pydantic tried."""
    places = [str(part) for part in mistake["loc"][1:]]
    theirs = places[-1:] if mistake["type"] == "extra_forbidden" else []  # a name of the client's, whatever it looks like
    ours = places[: len(places) - len(theirs)]
    parts = [part for part in ours if not is_member(part)] + theirs
    return clip(".".join(parts)) if parts else None


def fields_of(request: Request) -> list[str]:
    """The fields that the body of this endpoint has."""
    body = getattr(request.scope.get("route"), "body_field", None)
    return list(getattr(body.field_info.annotation, "model_fields", ())) if body else []


def clip(text: str, most: int = 80) -> str:
    """A stranger's text, made short and printable."""
    text = re.sub(r"[^\x20-\x7e\u00a1-\ud7ff]", "?", text)
    return text if len(text) <= most else text[:most] + "..."


def clean(text: str) -> str:
    """Text that UTF-8 can hold."""
    return to_bytes(text).decode()


class Guard:
    """The last net: what nobody foresaw is logged with its traceback, and the client learns no more than that."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            if scope["type"] != "http":
                raise
            log.exception("unexpected error")
            if not started:  # a stream that has begun just ends here
                message = "the server failed on this request; its log says why, under the x-request-id of this answer."
                await ApiError(500, message, "server_error").response()(scope, receive, send)
