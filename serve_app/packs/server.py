"""`server` for node packs: PromptServer.instance, which registers their routes, and sends messages to the job's client.

The routes are served by `route_server.py`, for the ingress; docs/plugins.md says what that means for packs. Source: the
facts of ComfyUI 0.3.64's module of this name.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web

from serve_app import log
from serve_app.errors import NodeError
from serve_app.execution.executing import executing
from serve_app.packs.routes import ON_PROMPT, PackRoute

_log = log.get("nodes.packs")

MESSAGE_CHARACTERS = 1_000_000
"""How long a message may be as JSON."""


class BinaryEventTypes:
    """The kinds of binary websocket messages."""

    PREVIEW_IMAGE = 1
    UNENCODED_PREVIEW_IMAGE = 2
    TEXT = 3
    PREVIEW_IMAGE_WITH_METADATA = 4


class PromptQueue:
    """ComfyUI's queue for packs: only the job that runs here. Putting an item queues another round of that job."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.queue: list[tuple[Any, ...]] = []
        self.history: dict[str, Any] = {}

    @property
    def currently_running(self) -> dict[int, tuple[Any, ...]]:
        """The job that runs here, as ComfyUI's item of six, which may be changed; nothing outside a job."""
        call = executing()
        return {} if call is None or call.rounds is None else {0: call.rounds.item()}

    def put(self, item: Any) -> None:
        """Queue another round of the running job.

        item: (number, id, prompt, …) as ComfyUI's, of which the prompt alone counts. Errors: NodeError outside a
        running node, and as `Rounds.queue`.
        """
        call = executing()
        if call is None or call.rounds is None:
            raise NodeError("a job can be queued by a running node alone; submit it over HTTP, POST /prompt")
        if not isinstance(item, tuple | list) or len(item) < 3:
            raise NodeError(f"what is queued must be (number, id, prompt, …), not {type(item).__name__}")
        call.rounds.queue(item[2])

    def get_current_queue(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Return the running job, and an empty list of waiting ones."""
        return list(self.currently_running.values()), []

    get_current_queue_volatile = get_current_queue

    def get_tasks_remaining(self) -> int:
        """Return the number of jobs that packs can see."""
        return len(self.currently_running)

    def get_history(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Return an empty history."""
        return {}


class PromptServer:
    """ComfyUI's server object for packs."""

    instance: PromptServer

    def __init__(self) -> None:
        self.routes = web.RouteTableDef()
        # Bodies are bounded before they come here, by the ingress.
        self.app = web.Application(client_max_size=0)
        self._taken = 0
        self._known: set[web.AbstractRoute] = set()
        self.send_to_client: Callable[[str, str, Any], None] | None = None
        """(client id, type, data) -> nothing: brings a client a message outside any job. Callable from any thread."""
        self.client_id: str | None = None
        self.last_prompt_id: str | None = None
        self.supports = ["custom_nodes_from_web"]
        self.on_prompt_handlers: list[Callable[[Any], Any]] = []
        self.prompt_queue = PromptQueue()
        self.number = 0

    def registered(self) -> tuple[PackRoute, ...]:
        """Return routes registered since the last call, and add those of `routes` to `app`.

        Each is added twice, also under /api, except static ones. Duplicates are left out.
        """
        for route in self.routes[self._taken :]:
            self._add(route)
            if isinstance(route, web.RouteDef):
                # A name is for one route only.
                options = {key: value for key, value in route.kwargs.items() if key != "name"}
                self._add(web.RouteDef(route.method, f"/api{route.path}", route.handler, options))
        self._taken = len(self.routes)
        fresh = [route for route in self.app.router.routes() if route not in self._known]
        self._known.update(fresh)
        return tuple(PackRoute(route.method, _pattern(route)) for route in fresh)

    def _add(self, route: web.AbstractRouteDef) -> None:
        try:
            self.app.add_routes([route])
        except Exception as error:
            _log.warning("%r of a node pack is not served: %s", route, error)

    @property
    def last_node_id(self) -> str | None:
        """The id of the running node."""
        call = executing()
        return None if call is None else call.node_id

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        """Send a message to the running job's client, whatever `sid` is; outside a job, to the client `sid`.

        Messages that are no JSON, are too large, or have no recipient are dropped.
        """
        call = executing()
        try:
            text = json.dumps(data, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            text = ""
        sendable = isinstance(event, str) and 0 < len(text) <= MESSAGE_CHARACTERS
        if sendable and call is not None:
            call.send_message(event, json.loads(text))
        elif sendable and isinstance(sid, str) and self.send_to_client is not None:
            self.send_to_client(sid, event, json.loads(text))
        else:
            _log.warning("a node pack's message %.80r is dropped", event)

    async def send(self, event: str, data: Any, sid: str | None = None) -> None:
        """Send a message, as send_sync."""
        self.send_sync(event, data, sid)

    async def send_json(self, event: str, data: Any, sid: str | None = None) -> None:
        """Send a message, as send_sync."""
        self.send_sync(event, data, sid)

    def send_progress_text(self, text: str | bytes, node_id: str, sid: str | None = None) -> None:
        """Show a text at the running node, whatever `node_id` is; outside a job it is dropped."""
        if executing() is not None:
            self.send_sync("progress_text", {"text": text if isinstance(text, str) else text.decode(errors="replace")})

    def add_on_prompt_handler(self, handler: Callable[[Any], Any]) -> None:
        """Let a handler change each submission (ComfyUI's dict of POST /prompt) before it is checked."""
        if not self.on_prompt_handlers:
            self.app.router.add_post(ON_PROMPT, self._on_prompt)
        self.on_prompt_handlers.append(handler)

    def trigger_on_prompt(self, json_data: Any) -> Any:
        """Return a submission after all handlers. A failing handler is skipped."""
        for handler in self.on_prompt_handlers:
            try:
                changed = handler(json_data)
                json.dumps(changed, allow_nan=False)
            except Exception as error:
                _log.warning("a node pack's prompt handler failed", exc_info=error)
            else:
                json_data = changed
        return json_data

    async def _on_prompt(self, request: web.Request) -> web.Response:
        return web.json_response(self.trigger_on_prompt(await request.json()))


def _pattern(route: web.AbstractRoute) -> str:
    """Return a regular expression for the paths that a route is at."""
    info = {} if route.resource is None else route.resource.get_info()
    if "pattern" in info:
        return info["pattern"].pattern
    return f"{re.escape(info['prefix'])}/.*" if "prefix" in info else re.escape(info.get("path", ""))


PromptServer.instance = PromptServer()
