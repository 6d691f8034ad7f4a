"""`GET /metrics`: who may read the figures, and where.

From this machine anybody may. From elsewhere LLM_METRICS_TOKEN is needed, as a bearer token. With LLM_METRICS_PORT they are
served on that port instead, for networks where the port itself is out of strangers' reach; a token, if there is one, counts
there too.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
import threading
from collections.abc import Iterator, Mapping
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import choose_encoder

from config import UserError
from server.addresses import address, is_loopback
from server.auth import FORWARDED, bearer_of, digest, refuse_foreign_names, unauthorised
from server.errors import ApiError

SLOW = 10  # seconds after which a connection to the port of its own is given up
router = APIRouter()


@router.get("/metrics", include_in_schema=False)
def scrape(request: Request) -> Response:
    """The figures, in Prometheus' text format or OpenMetrics, as the reader asks.

    Raises:
        ApiError: 401 or 403 for strangers.
    """
    token = request.app.state.config.metrics_token
    if request.app.state.gate.open:
        refuse_foreign_names(request)
    if not is_here(address(request), request.headers) and not has(token, request.headers):
        if token:
            raise unauthorised("send the header Authorization: Bearer LLM_METRICS_TOKEN.", "Bearer")
        raise ApiError(403, "set LLM_METRICS_TOKEN to read the metrics from elsewhere.", "permission_error")
    write, kind = choose_encoder(request.headers.get("accept", ""))
    return Response(write(request.app.state.metrics.registry), media_type=kind)


def is_here(client: str, headers: Mapping[str, str]) -> bool:
    """Whether a request comes from this machine, and not through it."""
    return is_loopback(client) and not FORWARDED & {name.lower() for name in headers}


def has(token: str, headers: Mapping[str, str]) -> bool:
    """Whether a request brings the token; compared in constant time."""
    given = bearer_of(headers)
    return bool(token) and given is not None and hmac.compare_digest(digest(given), digest(token))


class Server(ThreadingMixIn, WSGIServer):
    """Answers each reader on a thread of its own, so that a slow one holds up nobody."""

    daemon_threads = True


class Server6(Server):
    address_family = socket.AF_INET6


class Quiet(WSGIRequestHandler):
    timeout = SLOW

    def log_message(self, *_unused) -> None:
        """Says nothing: a line every few seconds helps nobody."""


@contextlib.contextmanager
def own_port(registry: CollectorRegistry, host: str, port: int, token: str = "") -> Iterator[int]:
    """Serves the figures on a port of their own for as long as the context lasts; gives the port, which 0 leaves open.

    Raises:
        UserError: when the port cannot be had.
    """
    figures = make_wsgi_app(registry)

    def guarded(environ, start_response):
        headers = {name[5:].replace("_", "-").lower(): text for name, text in environ.items() if name[:5] == "HTTP_"}
        if not token or is_here(environ["REMOTE_ADDR"], headers) or has(token, headers):
            return figures(environ, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Length", "0")])
        return [b""]

    try:
        server = make_server(host, port, guarded, Server6 if ":" in host else Server, Quiet)
    except OSError as error:
        raise UserError(f"LLM_METRICS_PORT {port} cannot be had ({error.strerror}): choose another.") from error
    with server:
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
