"""`POST /oauth/token`: a user's name and password for a token (RFC 6749, sections 4.3 and 5)."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from server.addresses import house
from server.errors import ApiError
from server.logs import trace_of

router = APIRouter()
MOST_FIELDS = 16
FORM = {  # for the OpenAPI document: FastAPI's own forms answer 422 where the RFC wants 400
    "type": "object",
    "required": ["username", "password"],
    "properties": {
        "grant_type": {"type": "string", "const": "password", "default": "password"},
        "username": {"type": "string", "minLength": 1},
        "password": {"type": "string", "minLength": 1, "format": "password"},
    },
}


class Granted(BaseModel):
    """A token, and the seconds that it is good for."""

    access_token: str
    token_type: str
    expires_in: int


class Refused(BaseModel):
    """RFC 6749's own shape of an error (section 5.2)."""

    error: str
    error_description: str


class Refusal(Exception):
    """What is answered instead of a token, with RFC 6749's word for it."""

    def __init__(self, error: str, description: str, status: int = 400, headers: dict[str, str] | None = None):
        super().__init__(error)
        self.status, self.headers = status, headers or {}
        self.body = {"error": error, "error_description": description}


@router.post(
    "/oauth/token",
    response_model=Granted,
    responses={400: {"model": Refused}, 429: {"model": Refused}},
    openapi_extra={
        "requestBody": {"content": {"application/x-www-form-urlencoded": {"schema": FORM}}, "required": True}
    },
)
async def token(request: Request) -> JSONResponse:
    """A token for a user's name and password, sent as a form."""
    try:
        status, body, headers = 200, await grant(request), {}
    except Refusal as refusal:
        status, body, headers = refusal.status, refusal.body, refusal.headers
    return JSONResponse(body, status, headers={**headers, "Cache-Control": "no-store", "Pragma": "no-cache"})


async def grant(request: Request) -> dict[str, Any]:
    """The token, as RFC 6749 (section 5.1) wants it.

    Raises:
        Refusal: in all other cases.
    """
    gate = request.app.state.gate
    if not gate.passwords:
        raise Refusal("unsupported_grant_type", "this server has no users: LLM_USERS names them.")
    name, password = credentials(await request.body(), request.headers.get("content-type", ""))
    try:
        gate.attempts.hit(house(request))
        right = await gate.passwords.check(name, password)
    except ApiError as error:
        raise Refusal("slow_down", error.message, error.status, error.headers) from None
    if not right:
        raise Refusal("invalid_grant", "the name or the password is wrong.")
    trace_of(request).caller = f"user:{name}"
    return {"access_token": gate.tokens.issue(name), "token_type": "bearer", "expires_in": gate.tokens.seconds}


def credentials(body: bytes, content_type: str) -> tuple[str, str]:
    """Name and password from a form.

    Raises:
        Refusal: naming what is missing or there twice.
    """
    if content_type.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise Refusal("invalid_request", "send a form: Content-Type: application/x-www-form-urlencoded.")
    try:
        fields = parse_qsl(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise Refusal("invalid_request", f"the form has more than {MOST_FIELDS} fields.") from None
    form = dict(fields)
    if len(form) < len(fields):
        raise Refusal("invalid_request", "a field is there twice.")
    if form.get("grant_type", "password") != "password":
        raise Refusal("unsupported_grant_type", "grant_type must be password, or left out.")
    for name in ("username", "password"):
        if not form.get(name):
            raise Refusal("invalid_request", f"{name} is missing.")
    return form["username"], form["password"]
