"""An HTTP client of the server for the command line, with retries while it is starting, full or being replaced."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from serve_app.cli.lines import print_line
from serve_app.errors import ConfigError, ServerRefusedError, ServerUnreachableError

LONGEST_PAUSE_S = 5.0
SLOW_S = 600.0
"""The timeout while a server stores a large file."""
PIECE_BYTES = 1024 * 1024
UNAVAILABLE = {502, 503, 504}
"""Status codes of a server, or a proxy before it, that is unavailable for a moment."""


class _Pieces:
    """A file's content, from its beginning each time that it is sent."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        with self._file.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece


class ServerClient:
    """A client of one server. Every request may be retried, so each must be idempotent.

    The key, for a server with tenants, is SERVE_APP_KEY of the environment. patience_s: how long one request is retried
    while the server cannot be reached or is unavailable. Errors of every method: ServerRefusedError with the server's
    message, ServerUnreachableError after patience_s.
    """

    def __init__(self, url: str, patience_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        key = os.environ.get("SERVE_APP_KEY")
        if key and not key.isascii():
            raise ConfigError("SERVE_APP_KEY has letters that no key has; `serve-app keys create` prints one")
        # The root's routes then answer in the contract's form, whatever the server's root dialect is.
        headers = {"X-Comfy-Dialect": "contract", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._http = httpx.Client(timeout=httpx.Timeout(60.0, connect=5.0), follow_redirects=True, headers=headers)

    def __enter__(self) -> ServerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, *, headers: Mapping[str, str] | None = None, **query: Any) -> Any:
        """Return the JSON answer to a GET."""
        return self._json(self._ask("GET", path, params=query, headers=headers))

    def post(self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> Any:
        """Return the JSON answer to a POST, None where it has no content."""
        response = self._ask("POST", path, json=body, headers=headers)
        return self._json(response) if response.content else None

    def put(self, path: str, file: Path) -> Any:
        """Return the JSON answer to a PUT of a file. Once it has succeeded its name is taken, so a repeat is
        refused.
        """
        headers = {"Content-Length": str(file.stat().st_size)}
        return self._json(self._ask("PUT", path, content=_Pieces(file), headers=headers, timeout=SLOW_S))

    def delete(self, path: str) -> Any:
        """Return the JSON answer to a DELETE."""
        return self._json(self._ask("DELETE", path))

    def download(self, path: str, **query: Any) -> bytes:
        """Return the bytes that answer a GET."""
        return self._ask("GET", path, params=query).content

    def stream(self, path: str, **query: Any) -> Iterator[str]:
        """Yield the lines of an answer that the server may go on with, without its heartbeats."""
        try:
            with self._http.stream("GET", self.url + path, params=query) as response:
                if not response.is_success:
                    response.read()
                    raise ServerRefusedError(refusal_reason(response))
                yield from filter(None, response.iter_lines())
        except httpx.TransportError as error:
            raise ServerUnreachableError(f"{self.url} ended the answer: {error or type(error).__name__}") from error

    def _ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        until = time.monotonic() + self._patience_s
        pause_s, told = 0.25, ""
        while True:
            try:
                response = self._http.request(method, self.url + path, **request)
            except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError, httpx.ProxyError) as error:
                reason, pause_s = str(error) or type(error).__name__, min(2 * pause_s, LONGEST_PAUSE_S)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise ServerUnreachableError(f"'{self.url}' is not an http:// or https:// address: {error}") from error
            else:
                if response.is_success:
                    return response
                reason = refusal_reason(response)
                if response.status_code not in UNAVAILABLE:
                    raise ServerRefusedError(reason)
                after = response.headers.get("Retry-After", "")
                pause_s = min(float(after), LONGEST_PAUSE_S) if after.isdecimal() else 1.0
            if time.monotonic() + pause_s > until:
                raise ServerUnreachableError(
                    f"{self.url} did not take the request for {self._patience_s:g} s: {reason}"
                )
            if reason != told:
                print_line(f"waiting for {self.url}: {reason}", error=True)
                told = reason
            time.sleep(pause_s)

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise ServerRefusedError(
                f"{response.request.url} did not answer JSON: is it a serve-app server?"
            ) from error


def refusal_reason(response: httpx.Response) -> str:
    """Return the reason of a refusal in the form of any dialect, or the status of an answer that has none."""
    try:
        body = response.json()
        error = body["error"]
        if not isinstance(error, dict):
            return f"{error}: {body['detail']}" if body.get("detail") else str(error)
        # v2 says code and message; ComfyUI type, message and details, and what is wrong with each node.
        said = [f"{error.get('code') or error['type']}: {error['message']}", str(error.get("details") or "")]
        nodes = [each for node in (body.get("node_errors") or {}).values() for each in node["errors"]]
        return "; ".join(filter(None, [*said, *(f"{each['message']} ({each['details']})" for each in nodes)]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{response.status_code} {response.reason_phrase} from {response.request.url}"
