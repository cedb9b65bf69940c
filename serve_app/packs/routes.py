"""HTTP routes of node packs as data: routes, calls and answers between ingress and replica.

A replica registers handlers and runs them (`route_server.py`); the ingress only matches paths, and runs nothing of a
pack's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import unquote

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""(name in lower case, value) pairs, as on the wire."""

ANY = "*"
"""The method of a route that takes every method."""

_ENCODED_SLASH_OR_PERCENT = re.compile("%(2[Ff5])")


@dataclass(frozen=True, slots=True)
class PackRoute:
    """One route of a node pack. method: in capitals, or ANY. pattern: a regular expression for a whole path.

    script: the path of a script that web pages load, if the route is one's; pattern then matches that alone.
    """

    method: str
    pattern: str
    script: str | None = None

    def matches(self, raw_path: str) -> bool:
        """Whether the route is at a path, given percent-encoded; a slash that is encoded parts nothing, as in aiohttp.

        Source: yarl's `URL.path_safe`, which aiohttp's router matches.
        """
        return re.fullmatch(self.pattern, unquote(_ENCODED_SLASH_OR_PERCENT.sub(r"%25\1", raw_path))) is not None


ON_PROMPT = "/-/on-prompt"
"""The internal path of a replica's prompt handlers, for the ingress only: they take and return a submission."""


@dataclass(frozen=True, slots=True)
class PackCall:
    """A request for a route. target: percent-encoded path and query. socket: the id of a websocket, if it asks for one.

    The client's messages on its websocket are sent apart, as `PackFrame`s for that id.
    """

    method: str
    target: str
    headers: Headers
    body: bytes
    socket: str | None = None


@dataclass(frozen=True, slots=True)
class PackAnswer:
    """A route's answer. more: the rest of its body follows in pieces, perhaps without end.

    For a websocket: status 101, after which PackFrames follow, or a refusal.
    """

    status: int
    headers: Headers
    body: bytes
    more: bool = False


@dataclass(frozen=True, slots=True)
class PackFrame:
    """One message on a websocket: text, bytes, or the code that it is closed with."""

    content: str | bytes | int


Piece: TypeAlias = PackAnswer | PackFrame | bytes
"""A part of an answer."""
