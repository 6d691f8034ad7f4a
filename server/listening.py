"""The port of a server, taken before anything slow begins."""

from __future__ import annotations

import socket

from config import UserError

UVICORN = {"ws": "none", "log_config": None, "access_log": False, "server_header": False}  # what every server of ours tells it


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; who calls before the server runs waits in line.

    Raises:
        UserError: when the address is unknown, or the port taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        taken = "" if isinstance(error, socket.gaierror) else f" at port {port}"
        raise UserError(f"cannot listen on {host}{taken} ({error.strerror}): pass another --host or --port.") from error
    return listening
