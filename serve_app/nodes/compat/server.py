"""`server` for node packs: PromptServer.instance, whose routes are recorded, and whose messages go to the job's client.

A pack runs in a worker, which serves no HTTP; docs/plugins.md says what that means for it.
Source: the facts of ComfyUI 0.3.64's module of this name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from serve_app import log
from serve_app.nodes.executing import executing

_log = log.get("nodes.packs")

MESSAGE_CHARACTERS = 1_000_000
"""How long a message may be as JSON."""


class Routes:
    """Records the HTTP handlers that packs register, as aiohttp's RouteTableDef does."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, str, Callable[..., Any]]] = []

    def route(self, method: str, path: str, **options: Any) -> Callable[[Any], Any]:
        """Return a decorator that records a handler."""

        def decorate(handler: Any) -> Any:
            self.recorded.append((method.upper(), path, handler))
            _log.warning("%s %s of a node pack is not served: packs run in workers", method.upper(), path)
            return handler

        return decorate

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method not in ("get", "post", "put", "patch", "delete", "head", "view"):
            raise AttributeError(method)
        return lambda path, **options: self.route(method, path, **options)

    def static(self, prefix: str, path: Any, **options: Any) -> None:
        """Record nothing: a pack's files are served from its WEB_DIRECTORY."""


class PromptServer:
    """The server as packs see it."""

    instance: PromptServer

    def __init__(self) -> None:
        self.routes = Routes()
        self.app = SimpleNamespace(router=SimpleNamespace(add_static=lambda *a, **k: None), add_routes=lambda r: None)
        self.client_id: str | None = None
        self.last_prompt_id: str | None = None
        self.supports = ["custom_nodes_from_web"]
        self.on_prompt_handlers: list[Callable[[Any], Any]] = []
        self.prompt_queue = SimpleNamespace(
            currently_running={},
            history={},
            queue=[],
            get_tasks_remaining=lambda: 0,
            get_current_queue=lambda: ([], []),
        )

    @property
    def last_node_id(self) -> str | None:
        """The node that runs here."""
        call = executing()
        return None if call is None else call.node_id

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        """Send a message to the client of the job that runs here, whichever is named; drop what is no JSON, or huge."""
        call = executing()
        try:
            text = json.dumps(data, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            text = ""
        if call is None or not isinstance(event, str) or not 0 < len(text) <= MESSAGE_CHARACTERS:
            _log.warning("a node pack's message %.80r is dropped", event)
            return
        call.say(event, json.loads(text))

    async def send(self, event: str, data: Any, sid: str | None = None) -> None:
        """Send a message, as send_sync."""
        self.send_sync(event, data, sid)

    async def send_json(self, event: str, data: Any, sid: str | None = None) -> None:
        """Send a message, as send_sync."""
        self.send_sync(event, data, sid)

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        """Drop a text about a node."""

    def add_on_prompt_handler(self, handler: Callable[[Any], Any]) -> None:
        """Record a handler; submissions do not come by here, so it is never called."""
        self.on_prompt_handlers.append(handler)
        _log.warning("a node pack's prompt handler is not called: packs run in workers")


PromptServer.instance = PromptServer()
