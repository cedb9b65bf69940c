"""Routes as tables of handlers, and a router that finds them by the beginning of the path.

A handler's parameters are the request itself, or values that `Depends` derives from it. It returns the response.
Starlette's routes are underneath.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, TypeVar, get_type_hints

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, Route, Router, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

Handler: TypeAlias = Callable[..., Awaitable[Response]]
H = TypeVar("H", bound=Handler)
S = TypeVar("S", bound=Callable[[WebSocket], Awaitable[None]])

READ = ["GET", "HEAD"]
"""The methods of a route that reads."""


@dataclass(frozen=True)
class Depends:
    """Marks a parameter as computed from the request, as in `Annotated[Service, Depends(service_of)]`."""

    make: Callable[[Request], Any]


class Routes:
    """Handlers by path and method, in the order in which they are matched. prefix: of every path."""

    def __init__(self, prefix: str = "") -> None:
        self.routes: list[Route | WebSocketRoute] = []
        self._prefix = prefix

    def read(self, path: str) -> Callable[[H], H]:
        """Decorate the handler of a path's GET and HEAD."""
        return self.on(path, READ)

    def post(self, path: str) -> Callable[[H], H]:
        """Decorate the handler of a path's POST."""
        return self.on(path, ["POST"])

    def on(self, path: str, methods: Sequence[str]) -> Callable[[H], H]:
        """Decorate the handler of these methods of a path."""

        def keep(handler: H) -> H:
            self.routes.append(Route(self._prefix + path, endpoint(handler), methods=list(methods)))
            return handler

        return keep

    def websocket(self, path: str) -> Callable[[S], S]:
        """Decorate the handler of a path's websockets."""

        def keep(handler: S) -> S:
            self.routes.append(WebSocketRoute(self._prefix + path, handler))
            return handler

        return keep


def endpoint(handler: Handler) -> ASGIApp:
    """Return a handler as an ASGI application. Errors: TypeError for a parameter without `Depends`.

    Its exceptions are left to the application's handlers: Starlette would catch them around each handler too.
    """
    hints = get_type_hints(handler, include_extras=True)
    return _Endpoint(handler, [_maker(handler, hints[name]) for name in inspect.signature(handler).parameters])


class _Endpoint:
    """A handler with its dependencies. Not a function, as Starlette would wrap one."""

    def __init__(self, handler: Handler, makers: Sequence[Callable[[Request], Any]]) -> None:
        self._handler, self._makers = handler, makers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive, send)
        response = await self._handler(*[make(request) for make in self._makers])
        await response(scope, receive, send)


def _maker(handler: Handler, hint: Any) -> Callable[[Request], Any]:
    if hint is Request:
        return lambda request: request
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, Depends):
            return note.make
    raise TypeError(f"{handler.__module__}.{handler.__qualname__}: nothing is given for a parameter of {hint}")


def prefixed(prefix: str, routes: Iterable[Route | WebSocketRoute]) -> list[Route | WebSocketRoute]:
    """Return routes with a prefix before their paths."""
    return [
        WebSocketRoute(prefix + route.path, route.endpoint)
        if isinstance(route, WebSocketRoute)
        else Route(prefix + route.path, route.endpoint, methods=list(route.methods or ()))
        for route in routes
    ]


class PrefixRouter(Router):
    """A router that matches only the routes whose path has the request's first part; the first match wins.

    Routes are added before the first request.
    """

    def __init__(self, routes: Sequence[BaseRoute] = ()) -> None:
        super().__init__(routes, redirect_slashes=False)

    def knows(self, scope: Scope) -> bool:
        """Whether some route has the request's path."""
        return any(route.matches(scope)[0] is not Match.NONE for route in self._candidates(scope["path"]))

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to its route; without a match try all routes, then `default`."""
        if scope["type"] != "lifespan" and not scope.get("root_path"):
            for route in self._candidates(scope["path"]):
                match, child_scope = route.matches(scope)
                if match is Match.FULL:
                    scope.setdefault("router", self)
                    scope["route"] = route
                    scope.update(child_scope)
                    await route.handle(scope, receive, send)
                    return
        await super().app(scope, receive, send)

    def _candidates(self, path: str) -> Sequence[BaseRoute]:
        return self._by_beginning.get(_beginning(path), ())

    @cached_property
    def _by_beginning(self) -> dict[str, list[BaseRoute]]:
        found: defaultdict[str, list[BaseRoute]] = defaultdict(list)
        for route in self.routes:
            if isinstance(route, Route | WebSocketRoute | Mount):
                found[_beginning(route.path)].append(route)
        return dict(found)


def _beginning(path: str) -> str:
    """Return the first part of a path, and the second where the first is `api`, which half of all paths begin with."""
    _, first, *rest = path.split("/", 3) if path.startswith("/") else ("", path)
    return f"api/{rest[0]}" if first == "api" and rest else first
