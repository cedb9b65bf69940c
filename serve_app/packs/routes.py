"""The HTTP routes of node packs as data: what an ingress knows of them, asks a replica, and is answered.

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
"""Where the prompt handlers of a replica's packs are, for the ingress alone: they take a submission and answer one."""


@dataclass(frozen=True, slots=True)
class PackCall:
    """A request for a route. target: percent-encoded path and query. socket: the id of a websocket, if it asks for one.

    What a client says on its socket goes another way, as `PackFrame`s for that id.
    """

    method: str
    target: str
    headers: Headers
    body: bytes
    socket: str | None = None


@dataclass(frozen=True, slots=True)
class PackAnswer:
    """What a route has answered. more: the rest of its body follows in pieces of bytes, without end as it may be.

    For a websocket: status 101, after which PackFrames follow, or why there is none.
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
"""What an answer comes in."""
