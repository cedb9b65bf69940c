"""Routes as tables of handlers, and a router that finds them by the beginning of the path.

A handler's parameters say what it takes: the request itself, or a value that `Given` makes of it. It returns the
response. Beneath are Starlette's routes.
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
class Given:
    """What a handler's parameter is, as in `Annotated[Service, Given(service_of)]`."""

    make: Callable[[Request], Any]


class Routes:
    """Handlers by path and method, in the order in which they are tried. prefix: goes before every path."""

    def __init__(self, prefix: str = "") -> None:
        self.routes: list[Route | WebSocketRoute] = []
        self._prefix = prefix

    def read(self, path: str) -> Callable[[H], H]:
        """Decorate the handler of a path that reads."""
        return self.on(path, READ)

    def post(self, path: str) -> Callable[[H], H]:
        """Decorate the handler of what is posted to a path."""
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
    """Return a handler as an application. Errors: TypeError for a parameter that nothing is given for.

    What it raises is the application's to answer: Starlette would catch it around each handler too.
    """
    hints = get_type_hints(handler, include_extras=True)
    return _Endpoint(handler, [_maker(handler, hints[name]) for name in inspect.signature(handler).parameters])


class _Endpoint:
    """A handler, and what makes each of its arguments. No function, of which Starlette would make an application."""

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
        if isinstance(note, Given):
            return note.make
    raise TypeError(f"{handler.__module__}.{handler.__qualname__}: nothing is given for a parameter of {hint}")


def under(prefix: str, routes: Iterable[Route | WebSocketRoute]) -> list[Route | WebSocketRoute]:
    """Return routes with a prefix before their paths."""
    return [
        WebSocketRoute(prefix + route.path, route.endpoint)
        if isinstance(route, WebSocketRoute)
        else Route(prefix + route.path, route.endpoint, methods=list(route.methods or ()))
        for route in routes
    ]


class Table(Router):
    """A router that tries only the routes whose path begins as the request's does; among these the first wins.

    Routes are added before the first request.
    """

    def __init__(self, routes: Sequence[BaseRoute] = ()) -> None:
        super().__init__(routes, redirect_slashes=False)

    def knows(self, scope: Scope) -> bool:
        """Whether some route has the request's path."""
        return any(route.matches(scope)[0] is not Match.NONE for route in self._candidates(scope["path"]))

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request to its route; what none takes is looked for among all, and then is `default`'s."""
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
