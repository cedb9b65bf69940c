"""What to send: requests and websocket messages made from a seed, near enough to right ones to pass the first check.

Every route of the application's own routers is asked, by its methods and by others, with what clients may put anywhere:
paths, queries, headers, JSON, forms, graphs, and none of these.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from starlette.routing import Route

from serve_app.api.auth import login
from serve_app.api.comfy import routes as native
from serve_app.api.contract import document, routes
from serve_app.api.operator import admin, operator
from serve_app.api.routing import Routes
from serve_app.api.v2 import routes as v2

DOCUMENT = json.loads(files("serve_app.api.contract").joinpath("openapi.json").read_text())
EXAMPLES = DOCUMENT["paths"]["/prompt"]["post"]["requestBody"]["content"]["application/json"]["examples"]
GRAPH = EXAMPLES["simple_txt2img"]["value"]["prompt"]
IDS = [f"550e8400-e29b-41d4-a716-44665544{n:04d}" for n in range(40)]

TEXTS = (
    *(
        "",
        "a",
        "input",
        "output",
        "temp",
        "checkpoints",
        "loras",
        "default",
        "a.png",
        "a.json",
        "workflows/a.json",
        "0",
    ),
    *(
        "..",
        "../..",
        "a/../../b",
        "/etc/passwd",
        "a//b",
        "./a",
        "a\\b",
        "~",
        "a\0b",
        "\n",
        "a\r\nX: y",
        "%2e%2e",
        "é",
        "😀",
    ),
    *("comfy.settings.json", "users.json", ".lock", "CON", "a" * 255, "a" * 300, "é" * 200, "a/" * 200, "[output]"),
    *("a.png [input]", "a.html", "-1", "1e400", "9" * 400, "NaN", "true", "null", "webp;90", "jpeg", "rgb", "\ufeff"),
    *("\u202e", "'; --", "<script>", "__value__", "constructor", "%", "%zz", "a?b=c", "#", "*", "{}", "[]"),
)
QUERIES = (
    *("filename", "subfolder", "type", "preview", "channel", "dir", "recurse", "split", "full_info", "path", "limit"),
    *(
        "metadata[a]",
        "metadata[",
        "cursor",
        "offset",
        "max_items",
        "status",
        "sort_by",
        "sort_order",
        "workflow_id",
        "after",
        "overwrite",
        "clientId",
        "t",
    ),
)
HEADERS = (
    *("X-Comfy-Dialect", "Comfy-User", "Comfy-Usage-Source", "Range", "If-Range", "If-None-Match", "If-Modified-Since"),
    *("Idempotency-Key", "Content-Type", "Accept", "Origin", "Sec-Fetch-Site", "Accept-Encoding"),
    *("X-Tenant", "X-API-Key", "Cookie", "X-Forwarded-For"),
)
HEADER_VALUES = (
    *("comfy", "contract", "default", "bytes=0-9", "bytes=9-0", "bytes=-1", "bytes=0-1,2-3", "*", '"x"', "W/x"),
    *("Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 99 Jan 99999 00:00:00 GMT", "application/json", "text/plain"),
    *("multipart/form-data", "multipart/form-data; boundary=", "null", "http://test", "cross-site", "none", "\xff"),
)
NUMBERS = (0, 1, -1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, 64, 512)
KEYS = (
    *("prompt", "client_id", "extra_data", "prompt_id", "number", "front", "partial_execution_targets", "delete"),
    *("clear", "job_ids", "unload_models", "free_memory", "username", "class_type", "inputs", "is_changed", "strict"),
    *("extra_pnginfo", "workflow", "auth_token_comfy_org", "__value__", "_meta", "metadata", "webhook_url", "__type"),
)
TRAILING = "trailing.example"
"""A host that nothing but trailers names."""
TRAILERS = (
    *((b"Host", TRAILING.encode()), (b"Origin", f"http://{TRAILING}".encode()), (b"Sec-Fetch-Site", b"cross-site")),
    *((b"X-API-Key", b"x"), (b"Authorization", b"Bearer x"), (b"Cookie", b"a=b"), (b"X-Tenant", b"b")),
    *((b"X-Forwarded-For", b"192.0.2.1"), (b"Content-Length", b"5"), (b"Transfer-Encoding", b"gzip")),
    *((b"Connection", b"upgrade"), (b"Upgrade", b"websocket"), (b"Expect", b"100-continue"), (b"X", b"y" * 9000)),
)
COSTLY_RUNS = (
    *({"steps": 10, "denoise": denoise, "scheduler": "karras"} for denoise in (1e-7, 1e-300, 5e-324)),
    {"steps": 10_000, "denoise": 1e-4, "scheduler": "normal"},
)
COSTLY_LATENTS = ({"width": 16384, "height": 16384, "batch_size": 4096}, {"width": 8, "height": 8, "batch_size": 4096})
PACK_PATH = "/pack/{id}"
"""A route of a node pack, where the server has one."""
OTHER_METHODS = ("PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "GET", "POST", "TRACE", "BREW")


@dataclass(frozen=True, slots=True)
class Request:
    """One request. target: the path, percent-encoded, with its query. trailers: behind the body, to a server alone.

    refused: whether it must be answered 400.
    """

    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    trailers: tuple[tuple[bytes, bytes], ...] = ()
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """One websocket: where it is opened, and what the client says."""

    target: str
    messages: tuple[str | bytes, ...] = ()
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())


def table() -> list[tuple[str, str]]:
    """Return every route as (method, path), where it stands under /api and where at the root."""
    under_api = _routes([*native.ROUTERS, *native.PREFIXED])
    under_api += [(method, f"/v2{path}") for method, path in _routes(v2.ROUTERS)]
    root: Sequence[Routes] = [routes.router, document.router, operator.router, *native.UNPREFIXED, *native.ROUTERS]
    root = [*root, admin.router, login.router]
    return [(method, f"/api{path}") for method, path in under_api] + _routes(root) + [("GET", "/"), ("POST", PACK_PATH)]


def _routes(routers: Sequence[Routes]) -> list[tuple[str, str]]:
    found = [route for router in routers for route in router.routes if isinstance(route, Route)]
    return [(method, route.path) for route in found for method in sorted(route.methods or ())]


class Inputs:
    """An endless, repeatable source. Every route is asked once before any is asked again."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._table = table()

    def __iter__(self) -> Iterator[Request | Session]:
        while True:
            self._random.shuffle(self._table)
            for method, path in self._table:
                yield self._request(method, path)
                if self._random.random() < 0.05:
                    yield self._session()
                if self._random.random() < 0.02:
                    yield self._costly()

    def _request(self, method: str, path: str) -> Request:
        if self._one_in(15):
            method = self._random.choice(OTHER_METHODS)
        parts = [self._part(part) for part in path.split("/")]
        target = "/".join(parts)
        if self._one_in(2):
            target += "?" + self._query()
        body, kind = b"", ""
        if method not in ("GET", "HEAD", "OPTIONS") or self._one_in(20):
            body, kind = self._body(path)
        headers = [(b"content-type", kind.encode())] if kind else []
        while self._one_in(3):
            value = self._random.choice(HEADER_VALUES).encode("latin-1")
            headers.append((self._random.choice(HEADERS).lower().encode(), value))
        trailers: list[tuple[bytes, bytes]] = []
        if body and self._one_in(3):
            trailers = [TRAILERS[1], *self._random.sample(TRAILERS, self._random.randrange(4))]
        return Request(method, target, tuple(headers), body, tuple(trailers))

    def _session(self) -> Session:
        messages: list[str | bytes] = []
        for _ in range(self._random.randrange(6)):
            said: Any = {"type": self._pick(["feature_flags", "x", 5]), "data": self._json(3)}
            text = json.dumps(said) if self._one_in(2) else self._text().replace("\ud800", "")
            messages.append(text if self._one_in(2) else text.encode("utf-8", "replace"))
        return Session(self._pick(["/ws", "/api/ws", "/wss", "/"]) + "?" + self._query(), tuple(messages))

    def _costly(self) -> Request:
        """Return a small submission of too much work."""
        graph: Any = copy.deepcopy(GRAPH)
        graph["3"]["inputs"] |= self._pick(COSTLY_RUNS)
        graph["4"]["inputs"] |= self._pick(({}, *COSTLY_LATENTS))
        path = self._pick(["/prompt", "/api/prompt"])
        kind = ((b"content-type", b"application/json"),)
        return Request("POST", path, kind, json.dumps({"prompt": graph}).encode(), refused=True)

    # Places -----------------------------------------------------------------------------------------------------------

    def _part(self, part: str) -> str:
        if not part.startswith("{"):
            return part
        text = self._pick(IDS) if "id" in part and self._one_in(2) else self._text()
        return quote(text, safe="" if self._one_in(2) else "/")

    def _query(self) -> str:
        pairs = []
        for _ in range(self._random.randrange(5)):
            pairs.append(f"{self._pick(QUERIES)}={quote(self._text(), safe='')}")
        # An event poll that waits is no hang.
        return "&".join([*pairs, "timeout_s=" + self._pick(["0", "0.01", "-1", "x", "1e999"])])

    def _text(self) -> str:
        text = self._random.choice(TEXTS)
        return text + self._random.choice(TEXTS) if self._one_in(6) else text

    # Bodies -----------------------------------------------------------------------------------------------------------

    def _body(self, path: str) -> tuple[bytes, str]:
        if "upload" in path or self._one_in(20):
            return self._form()
        if self._one_in(12):
            return self._random.randbytes(self._random.randrange(60)), "application/json"
        value = self._submission() if path.endswith(("/prompt", "/jobs")) else self._command()
        if path.endswith("/jobs") and isinstance(value, dict):
            value = {"workflow": value.get("prompt"), **({"metadata": self._json(2)} if self._one_in(4) else {})}
        try:
            text = json.dumps(value).encode()
        except ValueError:  # an integer too long for Python to write
            text = b'{"number": ' + b"9" * 5000 + b"}"
        return self._damaged(text) if self._one_in(6) else text, self._pick(["application/json", "text/plain", ""])

    def _damaged(self, text: bytes) -> bytes:
        at = self._random.randrange(len(text) + 1)
        middle = [b"", b"\xff", b"\\ud800", b"NaN", b"1e999", b"[" * 2000, b'{"a":' * 200, b"\0", b'"', b"-"]
        return text[:at] + self._random.choice(middle) + text[at + self._random.randrange(4) :]

    def _command(self) -> Any:
        if self._one_in(8):
            return self._json(4)
        ids = [self._pick(IDS) for _ in range(self._random.choice((0, 1, 3, 1001)))]
        body: dict[str, Any] = {self._pick(KEYS): self._json(3) for _ in range(self._random.randrange(4))}
        return body | {self._pick(["delete", "job_ids", "prompt_id", "clear"]): self._pick([ids, ids[:1], True, None])}

    def _submission(self) -> Any:
        graph: Any = copy.deepcopy(GRAPH)
        for _ in range(self._random.randrange(4)):
            self._mutate(graph)
        body: dict[str, Any] = {"prompt": graph, "prompt_id": self._pick(IDS)}
        if self._one_in(3):
            body[self._pick(KEYS)] = self._json(3)
        if self._one_in(4):
            del body["prompt_id"]
        return body if not self._one_in(25) else self._json(3)

    def _mutate(self, graph: dict[str, Any]) -> None:
        node_id = self._pick(list(graph) or ["1"])
        node = graph.get(node_id)
        inputs = node.get("inputs") if isinstance(node, dict) else None
        match self._random.randrange(7):
            case 0:
                graph[self._text()] = self._json(3)
            case 1:
                graph.pop(node_id, None)
            case 2 if isinstance(node, dict):
                node[self._pick(KEYS)] = self._json(3)
            case 3 if isinstance(inputs, dict) and inputs:
                inputs[self._pick(list(inputs))] = self._json(3)
            case 4 if isinstance(inputs, dict):
                inputs[self._text()] = self._pick([[self._pick(list(graph)), self._pick(NUMBERS)], self._json(2)])
            case 5:
                graph[self._text()] = {
                    "class_type": self._pick(["SaveImage", "KSampler", "Nothing", "", 5]),
                    "inputs": {},
                }
            case _:
                graph[f"{node_id}x"] = copy.deepcopy(node)

    def _form(self) -> tuple[bytes, str]:
        parts = []
        names = ("image", "type", "subfolder", "overwrite", "original_ref", self._text())
        for name in self._random.sample(names, self._random.randrange(1, len(names))):
            value = self._pick([self._text(), "input", '{"filename": "a.png"}', json.dumps(self._json(2), default=str)])
            quoted = value.replace("\r", "").replace("\n", "").replace('"', "%22")
            filename = f'; filename="{quoted}"' if name == "image" and not self._one_in(8) else ""
            head = f'Content-Disposition: form-data; name="{quoted if name not in names[:5] else name}"{filename}'
            parts.append(f"--b\r\n{head}\r\n\r\n{value}\r\n".encode("utf-8", "replace"))
        body = b"".join([*parts, b"--b--\r\n"])
        return self._damaged(body) if self._one_in(5) else body, "multipart/form-data; boundary=b"

    def _json(self, depth: int) -> Any:
        kind = self._random.randrange(8 if depth else 5)
        match kind:
            case 0:
                return self._text()
            case 1:
                return self._pick(NUMBERS)
            case 2:
                return self._pick([None, True, False])
            case 3:
                return self._pick(IDS)
            case 4:
                return [self._pick(["3", 3, 4.0, "x", None]), self._pick([0, 1, -1, 99, True, "0"])]
            case 5 | 6:
                return [self._json(depth - 1) for _ in range(self._random.randrange(4))]
            case _:
                return {
                    self._pick([*KEYS, self._text()]): self._json(depth - 1) for _ in range(self._random.randrange(4))
                }

    def _pick(self, choices: Sequence[Any]) -> Any:
        return self._random.choice(choices)

    def _one_in(self, count: int) -> bool:
        return self._random.randrange(count) == 0
