"""Who can reach an address: this machine alone, or others too."""

from __future__ import annotations

import ipaddress

from fastapi import Request


def is_address(name: str) -> bool:
    """Whether this is an address in numbers, no name."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host.strip("[]")).is_loopback)


def address(request: Request) -> str:
    """The address that a request comes from."""
    return request.client.host if request.client else "unknown"
