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
    """The address that a request comes from. One of IPv4 is told as such where a socket of IPv6 takes it."""
    host = request.client.host if request.client else "unknown"
    mapped = getattr(ipaddress.ip_address(host), "ipv4_mapped", None) if is_address(host) else None
    return str(mapped or host)


def house(request: Request) -> str:
    """Whom a limit counts: an address, of IPv6 the /64 that it lies in, since whoever has one of those has them all."""
    host = address(request)
    if not is_address(host) or ipaddress.ip_address(host).version == 4:
        return host
    return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))


def with_mapped(proxy: str) -> list[str]:
    """An address or a network, and what it is called where a socket of IPv6 takes it."""
    if ":" in proxy or proxy == "*":
        return [proxy]
    host, slash, length = proxy.partition("/")
    return [proxy, f"::ffff:{host}{slash}{96 + int(length) if length else ''}"]
