"""The client address of a request: the connection's peer, or the one that trusted proxies name.

Any client can send X-Forwarded-For, and a proxy appends its own peer to it. So it is read from its end: each address
counts as long as a trusted proxy has written it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TypeAlias

from starlette.types import Scope

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


def source(scope: Scope, proxies: Sequence[Network]) -> str:
    """Return a request's client address, "" if unknown. proxies: the networks of trusted proxies."""
    said = [v.decode("latin-1") for name, v in scope["headers"] if name == b"x-forwarded-for"]
    chain = [part.strip() for part in ",".join(said).split(",") if part.strip()]
    client = scope.get("client")
    # This server's own HAProxy connects by a Unix socket, which has no address, and writes its client's.
    last = client[0] if client and client[0] else chain.pop() if chain else ""
    while chain and (address := _address(last)) is not None and _is_in(address, proxies):
        if _address(chain[-1]) is None:
            break
        last = chain.pop()
    return last[:200]


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
