"""Sending it, to an application in this process or to a server, and what must hold of every answer."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import websockets
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.nodes.routes import ANY, PackAnswer, PackCall, PackRoute, Piece
from serve_app.request_limits import Limits
from serve_app.service import Service
from serve_app.store.catalog import Catalog
from serve_app.store.userdata import UserData
from serve_app.store.volume import Volume
from tests.fuzz import trailers
from tests.fuzz.inputs import PACK_PATH, TRAILING, Inputs, Request, Session
from tests.unit.api.scripted_replica import POOL, scripted

HANG_S = 60.0
"""Longer than anything a server may take that does not hang."""


CANARY = "canary-5f0d2c"
"""What lies in files beside those that clients may read."""


@dataclass
class Outcome:
    """statuses: of all answers. sessions: websockets opened or refused. wrong: what must not be, with its request."""

    statuses: Counter[int] = field(default_factory=Counter)
    sessions: int = 0
    wrong: list[str] = field(default_factory=list)

    def take(self, request: Request, answer: httpx.Response) -> None:
        """Count an answer: 5xx may only be a refusal that says when to come back, and none has a cookie or CANARY.

        Nor does one show that a trailer was taken for a header.
        """
        self.statuses[answer.status_code] += 1
        if answer.status_code >= 500 and not (answer.status_code == 503 and "retry-after" in answer.headers):
            self.wrong.append(f"{answer.status_code} {answer.text[:200]} {request!r}"[:3000])
        if TRAILING.encode() in answer.content:
            self.wrong.append(f"a trailer counts: {answer.status_code} {answer.text[:200]} {request!r}"[:3000])
        if "set-cookie" in answer.headers or CANARY.encode() in answer.content:
            self.wrong.append(f"cookie or canary: {answer.status_code} {answer.headers!r} {request!r}"[:3000])


@asynccontextmanager
async def application(root: Path) -> AsyncIterator[Starlette]:
    """Yield the application over a scheduler whose jobs wait for ever, with files below a directory."""
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
        app = create_app(service)
        yield app
        # What feeds its websockets would go on.
        running = app.state.subscriptions._running
        if running is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _echo(pool: str, call: PackCall) -> AsyncGenerator[str | Piece]:
    yield "replica"
    yield PackAnswer(200, (), call.body)


async def fuzz(count: int, seed: int, url: str = "", app: Starlette | None = None) -> Outcome:
    """Send as many requests to a server, or to an application, and return what came of it."""
    outcome = Outcome()
    transport = None if app is None else httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=url or "http://test", timeout=None) as client:
        for n, sent in enumerate(itertools.islice(Inputs(seed), count)):
            try:
                async with asyncio.timeout(HANG_S):
                    if isinstance(sent, Session):
                        await (_say(url, sent) if app is None else _say_to(app, sent))
                        outcome.sessions += 1
                    elif sent.trailers and app is None:
                        outcome.take(sent, await trailers.send(url, sent))
                    else:
                        raw = sent.target.encode("ascii")
                        asked = client.build_request(
                            sent.method,
                            client.base_url.copy_with(raw_path=raw),
                            headers=list(sent.headers),
                            content=sent.body,
                        )
                        outcome.take(sent, await client.send(asked))
            except TimeoutError:
                outcome.wrong.append(f"hang: {sent!r}"[:3000])
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                # A server may end a connection whose request is no HTTP; it must be there for the next.
                outcome.statuses[0] += 1
                if app is not None:
                    outcome.wrong.append(f"{error!r} {sent!r}"[:3000])
            except Exception as error:
                outcome.wrong.append(f"{n}: {error!r} {sent!r}"[:3000])
    return outcome


async def _say(url: str, session: Session) -> None:
    """Open a server's websocket, say all, and leave; a refused handshake is an answer too."""
    with suppress(websockets.exceptions.WebSocketException, OSError):
        async with websockets.connect(f"ws{url.removeprefix('http')}{session.target}", open_timeout=HANG_S) as socket:
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
