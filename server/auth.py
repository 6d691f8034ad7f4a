"""Who is asking. API keys, users with tokens, or nobody in particular; and how often each may ask."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from config import ServeConfig, UserError
from server.addresses import house, is_address, is_loopback
from server.errors import ApiError
from server.limits import RateLimit
from server.logs import trace_of
from server.passwords import Passwords, read_users
from server.tokens import InvalidToken, Tokens, signing_secret

ATTEMPTS = 20  # to log in, a minute, from one address
HELP = "send the header X-API-Key: KEY, or Authorization: Bearer KEY-OR-TOKEN"

OPEN = (
    "nobody would have to say who they are, and others than this machine reach {host}: set LLM_API_KEYS (keys, comma-separated) "
    "or LLM_USERS (name:password), or LLM_RANDOM_KEY=yes for a key that is made and printed, or stay on --host 127.0.0.1. To answer without "
    "authentication on a public address all the same, set LLM_ALLOW_OPEN=yes."
)


@dataclass(frozen=True)
class Caller:
    """Who sent a request.

    Attributes:
        name: the scope of what is theirs: sessions, cached prompts, the rate. It never holds a secret.
        kind: `key`, `user` or `open`.
    """

    name: str
    kind: str


class Gate:
    """Who may come in, as the configuration says.

    Attributes:
        random_key: the key that was made for this run, where the configuration asks for one.
        secret: what users' tokens are signed with, given or made for this run.
        notice: what the person who starts the server should know, if anything.

    Raises:
        UserError: for users that cannot be read, a secret that must not be used here, or no credentials where others reach us.
    """

    def __init__(self, config: ServeConfig):
        users = read_users(config.users, config.users_file)
        wanted = config.random_key and not (config.api_keys or users or config.allow_open)
        self.random_key = secrets.token_urlsafe(24) if wanted else ""
        keys = (self.random_key,) if wanted else config.api_keys
        self.keys = [(digest(key), Caller(f"key:{digest(key).hex()[:12]}", "key")) for key in keys]
        self.admin = digest(config.admin_key) if config.admin_key else None
        self.passwords = Passwords(users) if users else None
        self.secret, self.notice = signing_secret(config) if users else ("", "")
        self.tokens = Tokens(self.secret, config.jwt_expire_minutes) if users else None
        self.rate, self.attempts = RateLimit(config.rate_limit_rpm), RateLimit(ATTEMPTS)
        if self.open and not is_loopback(config.host) and not config.allow_open:
            raise UserError(OPEN.format(host=config.host))

    @property
    def open(self) -> bool:
        """Whether nobody has to say who they are."""
        return not self.keys and not self.passwords

    def identify(self, key: str | None, bearer: str | None) -> Caller:
        """The caller that a key or a token belongs to; of two, the key counts.

        Raises:
            ApiError: 401.
        """
        if self.open:
            return Caller("open", "open")
        secret = key or bearer
        if not secret:
            raise unauthorised(f"no credentials: {HELP}.", "Bearer")
        given = digest(secret)
        matches = [caller for known, caller in self.keys if hmac.compare_digest(known, given)]  # all are compared
        if matches:
            return matches[0]
        if self.tokens and not key:
            try:
                user = self.tokens.user_of(secret)
            except InvalidToken:
                raise unauthorised("the token is invalid or has expired: get another at POST /oauth/token.") from None
            if self.passwords.knows(user):
                return Caller(f"user:{user}", "user")
        raise unauthorised(f"that key or token is not known here: {HELP}.")


def bearer_of(headers: Mapping[str, str]) -> str | None:
    """The secret of `Authorization: Bearer`, or None."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None


def digest(secret: str) -> bytes:
    """What secrets are compared by: as long for a short one as for a long one."""
    return hashlib.sha256(secret.encode(errors="replace")).digest()


def unauthorised(message: str, challenge: str = 'Bearer error="invalid_token"') -> ApiError:
    """401 as RFC 6750 (section 3) wants it: an error code only for who tried."""
    headers = {"WWW-Authenticate": challenge}
    return ApiError(401, message, "authentication_error", code="invalid_api_key", headers=headers)


FORWARDED = {"forwarded", "x-forwarded-for", "x-real-ip", "via"}  # headers of a proxy
api_key = APIKeyHeader(name="X-API-Key", auto_error=False, description="One of LLM_API_KEYS")
http_bearer = HTTPBearer(auto_error=False, description="One of LLM_API_KEYS, or a token of POST /oauth/token")
Key = Annotated[str | None, Security(api_key)]
Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(http_bearer)]


async def reader(request: Request, key: Key, bearer: Bearer) -> Caller:
    """The dependency of what is looked at every second or two: identifies the caller, and counts nothing.

    Raises:
        ApiError: 401 or 403.
    """
    found = request.app.state.gate.identify(key, bearer.credentials if bearer else None)
    trace_of(request).caller = found.name
    if found.kind == "open":
        refuse_foreign_names(request)
        refuse_foreign_pages(request)
    return found


async def caller(request: Request, found: Annotated[Caller, Depends(reader)]) -> Caller:
    """The dependency of every endpoint that does work: identifies the caller, and counts the request.

    Raises:
        ApiError: 401, 403 or 429.
    """
    who = f"{found.name}:{house(request)}" if found.kind == "open" else found.name
    trace_of(request).headers |= request.app.state.gate.rate.hit(who)
    return found


async def admin(request: Request, key: Key, bearer: Bearer) -> None:
    """The dependency of what changes the server: LLM_ADMIN_KEY, or this machine where nobody has to say who they are.

    Raises:
        ApiError: 401 or 403.
    """
    gate, secret = request.app.state.gate, key or (bearer.credentials if bearer else None)
    if gate.admin:
        if not secret:
            raise unauthorised(f"this is for the administrator: {HELP}.", "Bearer")
        if not hmac.compare_digest(gate.admin, digest(secret)):
            raise unauthorised("that is not LLM_ADMIN_KEY.")
    elif not gate.open or not is_loopback(request.app.state.config.host) or "origin" in request.headers:
        raise ApiError(403, "set LLM_ADMIN_KEY to allow this.", "permission_error", code="no_admin_key")
    else:
        refuse_foreign_names(request)
    trace_of(request).caller = "admin"


def refuse_foreign_names(request: Request) -> None:
    """An open server on this machine answers to no name of the internet, and to nobody behind a proxy.

    A web page may point a name of its own at 127.0.0.1 (DNS rebinding) and have the visitor's browser ask us; a proxy on this
    machine speaks for whoever it admits.

    Raises:
        ApiError: 403.
    """
    config = request.app.state.config
    if config.allow_open or not is_loopback(config.host):
        return
    if FORWARDED & set(request.headers):
        message = "without LLM_API_KEYS or LLM_USERS this server answers nobody behind a proxy: set one of them, or LLM_ALLOW_OPEN=yes."
        raise ApiError(403, message, "permission_error", code="behind_a_proxy")
    name = (request.url.hostname or "").rstrip(".").lower()
    if "." in name and not name.endswith(".localhost") and not is_address(name):
        message = f"without LLM_API_KEYS or LLM_USERS this server answers as localhost only, not as {name}."
        raise ApiError(403, message, "permission_error", code="foreign_host")


def refuse_foreign_pages(request: Request) -> None:
    """An open server works for no page but its own, unless LLM_CORS_ORIGINS is set: browsers say where a request comes from.

    Such a page could read no answer, and could send nothing that makes us write; but it could use up the rate of who visits it.

    Raises:
        ApiError: 403.
    """
    site = request.headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin") and not request.app.state.config.cors_origins:
        message = "a page of another site asks, and this server has no keys: LLM_CORS_ORIGINS names the sites that may."
        raise ApiError(403, message, "permission_error", code="foreign_page")
