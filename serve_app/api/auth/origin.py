"""CSRF protection: browsers' requests are accepted from this server's own pages and from configured origins only.

Otherwise a page of any other site could use a server that only its visitor can reach, as the visitor's browser sends
that page's requests and websockets. Programs other than browsers send no Origin header and are let in. Sources: RFC
6454 (Origin), W3C Fetch Metadata (Sec-Fetch-*), CSP level 3 (frame-ancestors).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.problems import Answer
from serve_app.config.ingress import IngressConfig
from serve_app.errors import ForeignPageError

ANY = "*"
FOREIGN = "foreign"
"""The ASGI scope's key of a request that another site's page may have caused; it must have no side effect."""

_PAGES = (b"text/html", b"application/xhtml")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class AllowedOrigins:
    """Accepted Host names and origins.

    hosts: names of this server, "*.example" for all subdomains. origins: sites whose pages may send requests.
    """

    hosts: tuple[str, ...] = (ANY,)
    origins: tuple[str, ...] = ()

    @classmethod
    def of(cls, ingress: IngressConfig) -> AllowedOrigins:
        """Return the names and origins that the configuration allows."""
        return cls(tuple(map(str.lower, ingress.allowed_hosts)), ingress.allowed_origins)

    def host(self, given: str) -> bool:
        """Whether a Host header names this server. After DNS rebinding a browser sends another name."""
        name = _name(given)
        return any(known in (ANY, name) or (known[:2] == "*." and name.endswith(known[1:])) for known in self.hosts)

    def origin(self, given: str) -> bool:
        """Whether pages of an origin may use this server."""
        return ANY in self.origins or given in self.origins


ANY_ORIGIN = AllowedOrigins()
"""Any name, and the origin of that name."""


class OriginMiddleware:
    """Middleware that refuses requests of other sites' pages, and forbids other sites to frame this server's pages.

    A link to a page stays possible: a top-level navigation that reads.
    """

    def __init__(self, app: ASGIApp, allowed: AllowedOrigins, answer: Answer) -> None:
        self._app, self._allowed, self._answer = app, allowed, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if reason := self._reason(scope, headers):
            await self._refuse(reason, scope, receive, send)
            return
        site = headers.get("sec-fetch-site", "none")
        own = site in ("none", "same-origin") or "origin" in headers
        await self._app({**scope, FOREIGN: not own}, receive, _unframed(send))

    def _reason(self, scope: Scope, headers: Mapping[str, str]) -> str:
        """Return why a request is refused, "" if it is not."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if host and not self._allowed.host(host):
            return f"the Host {host[:200]!r} is not among ingress.allowed_hosts"
        if origin is not None:
            if self._allowed.origin(origin) or _is_of(origin, host):
                return ""
            return f"the Origin {origin[:200]!r} is neither this server's own nor among ingress.allowed_origins"
        if headers.get("sec-fetch-site") == "cross-site" and ANY not in self._allowed.origins:
            link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            if not (link and scope.get("method") in ("GET", "HEAD")):
                return "a page of another site asks for it"
        return ""

    async def _refuse(self, reason: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": ""})  # before it is accepted: 403
            return
        await self._answer(Request(scope), ForeignPageError(reason))(scope, receive, send)


def _name(host: str) -> str:
    """Return the name in a Host header, without its port, brackets and final dot."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


def _is_of(origin: str, host: str) -> bool:
    """Whether an origin has the Host header's name and port. Its scheme does not count: TLS may end before here."""
    scheme, _, place = origin.lower().partition("://")
    own = _DEFAULT_PORTS.get(scheme, "")
    return bool(place) and place.removesuffix(own) == host.strip().lower().removesuffix(own)


def _unframed(send: Send) -> Send:
    """Add the header that allows only this server's pages to show a page in a frame."""

    async def send_with_policy(message: Message) -> None:
        if message["type"] == "http.response.start" and _is_page(message.get("headers", ())):
            headers = MutableHeaders(raw=list(message["headers"]))
            headers.setdefault("Content-Security-Policy", "frame-ancestors 'self'")
            headers.setdefault("X-Frame-Options", "SAMEORIGIN")
            message = {**message, "headers": headers.raw}
        await send(message)

    return send_with_policy


def _is_page(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(_PAGES) for name, value in headers)
