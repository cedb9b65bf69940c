"""A client of ComfyUI's HTTP and websocket protocol, of 0.3.64 and later, as far as a replica needs it."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from serve_app.errors import ComfyUIError, FileMissingError
from serve_app.store.files.store import FileRef
from serve_app.store.tenants.tenants import MARK

ANSWER_S = 60.0
"""Timeout of requests, except for files: it answers from a thread that runs no nodes."""
OLDEST = (0, 3, 64)
"""The oldest supported version."""


_IDS = uuid.UUID("0b6f6c52-6c5e-4a57-9a5e-5d0f7b1d6f0a")
"""The namespace of ids of tenants' graphs."""


def graph_id(job_id: str) -> str:
    """Return the prompt id of a job's graph in ComfyUI, which must be a UUID: a derived one for a tenant's job."""
    return str(uuid.uuid5(_IDS, job_id)) if MARK in job_id else job_id


class RefusedGraphError(ComfyUIError):
    """ComfyUI has refused a graph. error: its reason; node_errors: by node id, as in its answer."""

    def __init__(self, error: Any, node_errors: Mapping[str, Any]) -> None:
        self.error = error if isinstance(error, Mapping) else {"message": str(error)}
        self.node_errors = node_errors
        super().__init__(str(self.error.get("message", "it gave no reason")))

    def __reduce__(self) -> tuple[type[RefusedGraphError], tuple[Any, Mapping[str, Any]]]:
        return (RefusedGraphError, (self.error, self.node_errors))


class Client:
    """A client of one ComfyUI. Errors of every method: ComfyUIError for no answer or an unexpected one."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str) -> AsyncIterator[Client]:
        """Open a client for the context; sends no request yet."""
        timeout = aiohttp.ClientTimeout(total=None, sock_read=ANSWER_S, sock_connect=10.0)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            yield cls(url, session)

    async def stats(self) -> Mapping[str, Any]:
        """Return /system_stats."""
        found: Mapping[str, Any] = await self._json("GET", "/system_stats")
        return found

    async def classes(self) -> Mapping[str, Any]:
        """Return /object_info."""
        found: Mapping[str, Any] = await self._json("GET", "/object_info")
        return found

    async def scripts(self) -> list[str]:
        """Return the URL paths of its web page's scripts."""
        return [str(path) for path in await self._json("GET", "/extensions")]

    async def submit(
        self,
        prompt: Mapping[str, Any],
        prompt_id: str,
        client_id: str,
        extra_data: Mapping[str, Any],
        targets: Sequence[str],
    ) -> None:
        """Queue a graph. Errors: RefusedGraphError."""
        body = {
            "prompt": prompt,
            "prompt_id": prompt_id,
            "client_id": client_id,
            "extra_data": extra_data,
            "partial_execution_targets": list(targets),
        }
        async with self._request("POST", "/prompt", json=body) as response:
            if response.status == 400:
                answer = await response.json(content_type=None)
                raise RefusedGraphError(answer.get("error"), answer.get("node_errors") or {})
            await self._checked(response)
            answer = await response.json(content_type=None)
        if answer.get("prompt_id") != prompt_id:
            raise ComfyUIError(
                f"the ComfyUI at {self.url} queued {answer.get('prompt_id')!r} in place of {prompt_id!r}"
            )
        if answer.get("node_errors"):
            await self.withdraw([prompt_id])
            raise RefusedGraphError("it can run a part of the graph only", answer["node_errors"])

    async def unfinished(self) -> list[str]:
        """Return the ids of running and queued graphs."""
        queue = await self._json("GET", "/queue")
        return [str(item[1]) for item in [*queue["queue_running"], *queue["queue_pending"]]]

    async def withdraw(self, prompt_ids: Sequence[str]) -> None:
        """Remove graphs from its queue, and interrupt running ones."""
        await self._json("POST", "/queue", {"delete": list(prompt_ids)})
        for prompt_id in prompt_ids:
            await self._json("POST", "/interrupt", {"prompt_id": prompt_id})

    async def outputs(self, prompt_id: str) -> Mapping[str, Any] | None:
        """Return a graph's history entry, or None before its end."""
        found = (await self._json("GET", f"/history/{prompt_id}")).get(prompt_id)
        return found if isinstance(found, Mapping) else None

    async def forget(self, prompt_ids: Sequence[str]) -> None:
        """Remove graphs from its history."""
        await self._json("POST", "/history", {"delete": list(prompt_ids)})

    async def free(self, *, weights: bool, results: bool) -> None:
        """Ask it to free memory once it is idle."""
        await self._json("POST", "/free", {"unload_models": weights, "free_memory": results})

    async def read(self, ref: FileRef) -> bytes:
        """Return a file of its folders. Errors: FileMissingError."""
        query = {"filename": ref.filename, "subfolder": ref.subfolder, "type": ref.area}
        async with self._request("GET", "/view", params=query) as response:
            if response.status in (400, 403, 404):
                raise FileMissingError(f"the ComfyUI at {self.url} has no file {ref.area}/{ref.path}")
            await self._checked(response)
            return await response.read()

    async def write(self, ref: FileRef, data: bytes) -> None:
        """Write a file to its folders; overwrites."""
        form = aiohttp.FormData()
        form.add_field("image", data, filename=ref.filename, content_type="application/octet-stream")
        for name, value in (("type", ref.area), ("subfolder", ref.subfolder), ("overwrite", "true")):
            form.add_field(name, value)
        async with self._request("POST", "/upload/image", data=form) as response:
            await self._checked(response)

    @asynccontextmanager
    async def listening(
        self, client_id: str, heartbeat_s: float | None = None
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open the websocket of a client's events.

        heartbeat_s: the interval of pings; without a pong in half of it the connection counts as lost. None sends no
        pings, as the end of a local process closes the connection.
        """
        query = {"clientId": client_id}
        try:
            async with self._session.ws_connect(
                f"{self.url}/ws", params=query, max_msg_size=0, heartbeat=heartbeat_s
            ) as ws:
                flags = {"supports_preview_metadata": True, "supports_progress_text_metadata": True}
                await ws.send_json({"type": "feature_flags", "data": flags})
                yield ws
        except (aiohttp.ClientError, OSError) as error:
            raise self._silent(error) from error

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        async with self._request(method, path, json=body) as response:
            await self._checked(response)
            text = await response.text()
        try:
            return json.loads(text) if text else {}
        except ValueError as error:
            raise ComfyUIError(f"{method} {self.url}{path} did not answer JSON, as ComfyUI does") from error

    @asynccontextmanager
    async def _request(self, method: str, path: str, **request: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.request(method, self.url + path, **request) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._silent(error) from error

    async def _checked(self, response: aiohttp.ClientResponse) -> None:
        if response.status >= 400:
            words = (await response.text())[:500]
            where = f"{response.method} {self.url}{response.url.path}"
            raise ComfyUIError(f"{where} was answered {response.status} {response.reason}: {words}")

    def _silent(self, error: BaseException) -> ComfyUIError:
        return ComfyUIError(f"the ComfyUI at {self.url} does not answer: {str(error) or type(error).__name__}")


def check_version(url: str, stats: Mapping[str, Any]) -> None:
    """Check that ComfyUI's version is supported. Errors: ComfyUIError."""
    version = str(stats.get("system", {}).get("comfyui_version") or "without a version")
    parts = tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
    if parts < OLDEST:
        raise ComfyUIError(f"the ComfyUI at {url} is {version}; {'.'.join(map(str, OLDEST))} or newer is needed")
