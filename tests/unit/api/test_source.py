"""Where a request comes from is what trusted proxies say, and never what its client makes up."""

from __future__ import annotations

import ipaddress

import pytest

from serve_app.api.source import source

PROXIES = (ipaddress.IPv4Network("10.1.0.0/16"), ipaddress.IPv6Network("fd00::/8"))
UNIX = None
"""The peer of a connection by this server's own HAProxy."""


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("203.0.113.5", [], "203.0.113.5"),
        ("203.0.113.5", ["198.51.100.1"], "203.0.113.5"),
        ("10.1.2.3", ["198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", ["made up, 198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", ["192.0.2.9", "198.51.100.1, 10.1.9.9"], "198.51.100.1"),
        ("10.1.2.3", ["10.1.7.7"], "10.1.7.7"),
        ("10.1.2.3", ["made up"], "10.1.2.3"),
        ("10.1.2.3", ["<script>, 10.1.2.4"], "10.1.2.4"),
        ("10.1.2.3", [" , "], "10.1.2.3"),
        ("::ffff:10.1.2.3", ["2001:db8::1"], "2001:db8::1"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        (UNIX, ["203.0.113.5"], "203.0.113.5"),
        (UNIX, ["198.51.100.1", "203.0.113.5"], "203.0.113.5"),
        (UNIX, ["198.51.100.1, 10.1.2.3"], "198.51.100.1"),
        (UNIX, ["10.1.2.3", "203.0.113.5"], "203.0.113.5"),
        (UNIX, [], ""),
    ],
)
def test_forwarded_for_is_read_from_the_end_as_far_as_trusted_proxies_wrote_it(
    peer: str | None, forwarded: list[str], found: str
) -> None:
    headers = [(b"x-forwarded-for", each.encode()) for each in forwarded]
    scope = {"type": "http", "headers": headers, "client": (peer, 1234) if peer else None}
    assert source(scope, PROXIES) == found


def test_where_no_proxy_is_trusted_it_is_who_is_connected() -> None:
    headers = [(b"x-forwarded-for", b"198.51.100.1")]
    assert source({"headers": headers, "client": ("10.1.2.3", 1)}, ()) == "10.1.2.3"
    assert source({"headers": headers + headers, "client": ("", 0)}, ()) == "198.51.100.1"
