"""Sending it, to an application in this process or to a server, and what must hold of every answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import websockets
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.api.auth.authentication import LOGIN, LOGOUT, OPEN, Authenticator
from serve_app.api.operator.audit import AuditLog
from serve_app.packs.routes import ANY, PackAnswer, PackCall, PackRoute, Piece
from serve_app.service.request_limits import Limits
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from serve_app.store.models.catalog import Catalog
from serve_app.store.page.userdata import UserData
from serve_app.store.tenants.api_keys import AddKey, minted
from tests.fuzz import trailers
from tests.fuzz.inputs import GRAPH, IDS, PACK_PATH, TRAILING, Inputs, Request, Session
from tests.unit.api.scripted_replica import POOL, scripted

Key: TypeAlias = Callable[[str], Awaitable[str]]
"""Makes a key of a tenant."""
HANG_S = 60.0
"""Longer than anything a server may take that does not hang."""
STREAM_S = 2.0
"""How long a stream is listened to."""


WRONG_KEYS = ("", "sa_0123456789abcdef_" + "0" * 43, "x" * 5000, "eyJhbGciOiJub25lIn0.e30.")
TAKEN = frozenset({b"authorization", b"x-api-key", b"cookie"})
"""Headers that may hold a credential."""
CANARY = "canary-5f0d2c"
"""What lies in files beside those that clients may read."""


@dataclass
class Outcome:
    """statuses: of all answers. sessions: websockets opened or refused. wrong: what must not be, with its request."""

    statuses: Counter[int] = field(default_factory=Counter)
    sessions: int = 0
    wrong: list[str] = field(default_factory=list)

    def take(self, request: Request, answer: httpx.Response, *, known: bool = True) -> None:
        """Count an answer: 5xx may only be a refusal that says when to come back, and none has a cookie or CANARY.

        Nor does one show that a trailer was taken for a header. What costs too much is refused, and so is whoever is
        not known, but on paths that ask nobody.
        """
        self.statuses[answer.status_code] += 1
        path = request.target.partition("?")[0]
        if request.refused and known and answer.status_code not in (400, 429, 503):
            self.wrong.append(f"accepted: {answer.status_code} {answer.text[:200]} {request!r}"[:3000])
        if not known and answer.status_code < 400 and path not in OPEN and not _to_login(answer):
            self.wrong.append(f"let in without a key: {answer.status_code} {request!r}"[:3000])
        if answer.status_code >= 500 and not (answer.status_code == 503 and "retry-after" in answer.headers):
            self.wrong.append(f"{answer.status_code} {answer.text[:200]} {request!r}"[:3000])
        if TRAILING.encode() in answer.content:
            self.wrong.append(f"a trailer counts: {answer.status_code} {answer.text[:200]} {request!r}"[:3000])
        cookie = "set-cookie" in answer.headers and path not in (LOGIN, LOGOUT)
        if cookie or CANARY.encode() in answer.content:
            self.wrong.append(f"cookie or canary: {answer.status_code} {answer.headers!r} {request!r}"[:3000])


def _to_login(answer: httpx.Response) -> bool:
    """Whether an answer sends a browser to the page that asks for a key."""
    return answer.status_code == 303 and answer.headers.get("location", "").startswith(LOGIN)


@asynccontextmanager
async def application(root: Path) -> AsyncIterator[Starlette]:
    """Yield the application over a scheduler whose jobs wait for ever, with files below a directory."""
    async with _application(root) as (app, _):
        yield app


@asynccontextmanager
async def with_tenants(root: Path) -> AsyncIterator[tuple[Starlette, str]]:
    """Yield the same with tenants, of which one has CANARY in its jobs, files and settings, and another one's key."""
    async with _application(root, tenants=True) as (app, key):
        transport = httpx.ASGITransport(app=app)
        mine = {"Authorization": f"Bearer {await key('ann')}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=mine) as ann:
            graph = json.loads(json.dumps(GRAPH).replace("a beautiful landscape", CANARY))
            body = {"prompt": graph, "client_id": "a", "prompt_id": IDS[0], "extra_data": {"extra_pnginfo": CANARY}}
            made = [
                await ann.post("/prompt", json=body),
                await ann.post("/upload/image", files={"image": ("a.png", CANARY.encode(), "image/png")}),
                await ann.post("/userdata/a.json", content=CANARY.encode()),
                await ann.post("/settings", json={"a": CANARY}),
                await ann.post("/api/v2/assets", files={"file": ("a.png", CANARY.encode(), "image/png")}),
            ]
            assert all(answer.is_success for answer in made), [answer.text for answer in made]
        yield app, await key("ben")


@asynccontextmanager
async def _application(root: Path, *, tenants: bool = False) -> AsyncIterator[tuple[Starlette, Key]]:
    for area in ("input", "output", "temp", "models", "user"):
        (root / area).mkdir()
    (root / "output" / "a.png").write_bytes(b"no picture")
    volume = Volume({"input": root / "input", "output": root / "output", "temp": root / "temp"})
    folders = {"checkpoints": ["sd15.safetensors"]}
    limits = Limits(body_bytes=200_000, upload_bytes=200_000, poll_s=0.05)
    async with scripted(routes={POOL: (PackRoute(ANY, PACK_PATH.replace("{id}", ".*")),)}) as replica:
        service = Service(
            replica.scheduler.client,
            volume,
            lambda folder: folders.get(folder, []),
            limits,
            catalog=Catalog(root / "models"),
            user_data=UserData(root / "user"),
            relay=_echo,
        )
        audit = AuditLog(lambda: service, 1.0)
        app = create_app(service, authenticator=Authenticator(lambda: service, audit) if tenants else None)

        async def key(tenant: str) -> str:
            made, text = minted(tenant, "fuzz", ("submit", "read"), None)
            await service.query(AddKey(made))
            return text

        yield app, key
        if tenants:
            await audit.close()
        # What feeds its websockets would go on.
        feeding = app.state.subscriptions.feeding
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


async def _echo(pool: str, call: PackCall) -> AsyncGenerator[str | Piece]:
    yield "replica"
    yield PackAnswer(200, (), call.body)


async def fuzz(count: int, seed: int, url: str = "", app: Starlette | None = None, key: str = "") -> Outcome:
    """Send as many requests to a server, or to an application, and return what came of it.

    key: of a tenant, with which some are sent; others have a wrong one or none.
    """
    outcome, whose = Outcome(), random.Random(seed)
    transport = None if app is None else httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=url or "http://test", timeout=None) as client:
        for n, sent in enumerate(itertools.islice(Inputs(seed), count)):
            try:
                async with asyncio.timeout(STREAM_S if _streams(sent) else HANG_S):
                    known = not key or whose.random() < 0.7
                    shown = [(b"authorization", f"Bearer {key if known else whose.choice(WRONG_KEYS)}".encode())]
                    if key:
                        # What is drawn to be sent beside it may be another credential.
                        sent = replace(sent, headers=(*(h for h in sent.headers if h[0] not in TAKEN), *shown))
                    if isinstance(sent, Session):
                        await (_say(url, sent) if app is None else _say_to(app, sent))
                        outcome.sessions += 1
                    elif sent.trailers and app is None:
                        outcome.take(sent, await trailers.send(url, sent), known=known)
                    else:
                        raw = sent.target.encode("ascii")
                        asked = client.build_request(
                            sent.method,
                            client.base_url.copy_with(raw_path=raw),
                            headers=list(sent.headers),
                            content=sent.body,
                        )
                        outcome.take(sent, await client.send(asked), known=known)
            except TimeoutError:
                # A job of these never ends, so nor does its stream.
                if not _streams(sent):
                    outcome.wrong.append(f"hang: {sent!r}"[:3000])
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                # A server may end a connection whose request is no HTTP; it must be there for the next.
                outcome.statuses[0] += 1
                if app is not None:
                    outcome.wrong.append(f"{error!r} {sent!r}"[:3000])
            except Exception as error:
                outcome.wrong.append(f"{n}: {error!r} {sent!r}"[:3000])
    return outcome


def _streams(sent: Request | Session) -> bool:
    """Whether an answer may last as long as a job."""
    path = sent.target.partition("?")[0]
    return (
        isinstance(sent, Request) and sent.method == "GET" and path.startswith("/api/v2/") and path.endswith("/events")
    )


async def _say(url: str, session: Session) -> None:
    """Open a server's websocket, say all, and leave; a refused handshake is an answer too."""
    with suppress(websockets.exceptions.WebSocketException, OSError):
        where = f"ws{url.removeprefix('http')}{session.target}"
        headers = {name.decode(): value.decode() for name, value in session.headers}
        async with websockets.connect(where, open_timeout=HANG_S, additional_headers=headers) as socket:
            for message in session.messages:
                await socket.send(message)
            await asyncio.wait_for(socket.recv(), HANG_S)


async def _say_to(app: Starlette, session: Session) -> None:
    path, _, query = session.target.partition("?")
    said: list[dict[str, Any]] = [{"type": "websocket.connect"}]
    said += [{"type": "websocket.receive", "text" if isinstance(m, str) else "bytes": m} for m in session.messages]
    said.append({"type": "websocket.disconnect", "code": 1000})
    incoming: Iterator[dict[str, Any]] = iter(said)

    async def receive() -> dict[str, Any]:
        return next(incoming, said[-1])

    async def send(message: Any) -> None:
        await asyncio.sleep(0)

    headers = [(b"host", b"test"), *session.headers]
    scope = {"type": "websocket", "path": path, "query_string": query.encode(), "headers": headers, "subprotocols": []}
    await app(scope, receive, send)
