"""What a pool over ComfyUIs adds to jobs: the same workflows to processes, directly and through a server.

`python -m bench.comfyui --comfyui DIR --comfyui-python PYTHON`. Two cases, in each of which both take turns:

- one job after another that computes next to nothing, each awaited: milliseconds more a job;
- eight jobs of one second for two processes, queued at once: how much longer until the last has ended.

A job has ended when the websocket says so. The first case is the given ComfyUI's, or that of the stand-in of the tests,
which always is the second's: its jobs sleep, so two of them need no more of the machine than one. Exits with 1 if a
median misses its target.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from bench.servers import Contender, running
from bench.workflows import noop, sleeping
from serve_app.comfyui.client import Client
from serve_app.comfyui.process import Installation, Process
from serve_app.errors import ComfyUIError

STANDIN = Path(__file__).parents[1] / "tests" / "comfyui" / "standin"
JOBS, MORE_MS = 30, 30.0
AT_ONCE, REPLICAS, SECONDS, MORE = 8, 2, 1.0, 0.03


class Asked:
    """A ComfyUI, or what looks like one, and its websocket."""

    def __init__(self, client: Client, socket: aiohttp.ClientWebSocketResponse, client_id: str) -> None:
        self._client = client
        self._socket = socket
        self._client_id = client_id

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str) -> AsyncIterator[Asked]:
        client_id = uuid.uuid4().hex
        async with Client.opened(url) as client, client.listening(client_id) as socket:
            yield cls(client, socket, client_id)

    async def run(self, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Queue all and return once all have ended. Errors: RuntimeError if one fails."""
        waiting = {str(uuid.uuid4()): prompt for prompt in prompts}
        for job_id, prompt in waiting.items():
            await self._client.submit(prompt, job_id, self._client_id, {}, [list(prompt)[-1]])
        while waiting:
            message = await self._socket.receive()
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise RuntimeError(f"{self._client.url} has closed its websocket")
            frame = json.loads(message.data)
            if frame["type"] in ("execution_error", "execution_interrupted"):
                raise RuntimeError(f"a job of {self._client.url} failed: {frame['data']}")
            if frame["type"] == "executing" and frame["data"]["node"] is None:
                waiting.pop(frame["data"]["prompt_id"], None)


@asynccontextmanager
async def contenders(installation: Installation, replicas: int) -> AsyncIterator[tuple[list[Asked], Asked]]:
    """Run as many processes, and a server whose pool has as many replicas of the same installation, side by side."""
    comfyui = {"directory": str(installation.directory), "python": str(installation.python)}
    pool = {
        "name": "comfyui",
        "num_cpus": 0,
        "min_replicas": replicas,
        "max_replicas": replicas,
        "comfyui": {**comfyui, "arguments": list(installation.arguments)},
    }
    async with AsyncExitStack() as stack:
        models = Path(stack.enter_context(TemporaryDirectory(prefix="bench")))
        # It blocks until a job is accepted, so it comes first: nothing of ours runs meanwhile.
        server = stack.enter_context(running(Contender("serve-app", models, pools=[pool], ready="/readyz")))
        url = f"http://127.0.0.1:{server.port}"
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{url}/status") as response:
                    if len((await response.json())["replicas"]) == replicas:
                        break
                await asyncio.sleep(0.1)
        ours = await stack.enter_async_context(Asked.at(url))
        theirs = []
        for _ in range(replicas):
            process = await Process.start(installation)
            stack.push_async_callback(process.end)
            await _answers(process)
            theirs.append(await stack.enter_async_context(Asked.at(process.url)))
        yield theirs, ours


async def _answers(process: Process) -> None:
    async with Client.opened(process.url) as client:
        while process.running:
            with contextlib.suppress(ComfyUIError):
                await client.stats()
                return
            await asyncio.sleep(0.1)
    raise RuntimeError(await process.ended())


async def compare(
    installation: Installation, replicas: int, jobs: Callable[[], list[Any]], rounds: int, *, at_once: bool
) -> list[tuple[float, float]]:
    """Return for each round the seconds that jobs take directly, and through a server.

    at_once: until all have ended that are queued together; else the median of each alone.
    """

    async def took_s(asked: Sequence[Asked]) -> float:
        prompts, each = jobs(), []
        if at_once:
            began = time.perf_counter()
            await asyncio.gather(*(one.run(prompts[i :: len(asked)]) for i, one in enumerate(asked)))
            return time.perf_counter() - began
        for prompt in prompts:
            began = time.perf_counter()
            await asked[0].run([prompt])
            each.append(time.perf_counter() - began)
        return median(each)

    async with contenders(installation, replicas) as (theirs, ours):
        for asked in (theirs, [ours]):
            await took_s(asked)
        figures = []
        for number in range(rounds):
            # Whoever comes first in a round comes second in the next.
            order = [theirs, [ours]] if number % 2 == 0 else [[ours], theirs]
            taken = [await took_s(asked) for asked in order]
            figures.append((taken[0], taken[1]) if number % 2 == 0 else (taken[1], taken[0]))
        return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, metavar="DIR")
    parser.add_argument("--comfyui-python", type=Path, metavar="PYTHON")
    parser.add_argument("--arguments", nargs="*", default=["--cpu"], help="of the ComfyUI (--cpu)")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    standin = Installation(STANDIN, Path(sys.executable))
    asked = standin
    graph: Callable[[], Any] = partial(sleeping, 0.0)
    if given.comfyui is not None:
        # A link stays one: a virtual environment's Python is found by it.
        python = given.comfyui_python.absolute() if given.comfyui_python else None
        asked, graph = Installation(given.comfyui.absolute(), python, tuple(given.arguments)), noop

    print(f"{time.strftime('%F %T')}, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {asked.directory.name}")
    alone = asyncio.run(compare(asked, 1, lambda: [graph() for _ in range(JOBS)], given.rounds, at_once=False))
    for directly_s, through_s in alone:
        more_ms = 1000 * (through_s - directly_s)
        print(f"alone: directly {1000 * directly_s:.1f} ms, through {1000 * through_s:.1f} ms: {more_ms:.1f} ms more")
    more_ms = 1000 * median(through_s - directly_s for directly_s, through_s in alone)
    print(f"median: {more_ms:.1f} ms more a job (target: at most {MORE_MS:g})")

    def eight() -> list[Any]:
        return [sleeping(SECONDS) for _ in range(AT_ONCE)]

    both = asyncio.run(compare(standin, REPLICAS, eight, given.rounds, at_once=True))
    for directly_s, through_s in both:
        more = through_s / directly_s - 1
        print(f"{AT_ONCE} at once: directly {directly_s:.3f} s, through {through_s:.3f} s: {more:.1%} more")
    more = median(through_s / directly_s - 1 for directly_s, through_s in both)
    print(f"median: {more:.1%} more (target: at most {MORE:.0%}); load {os.getloadavg()[0]:.1f}")
    return int(more_ms > MORE_MS or more > MORE)


if __name__ == "__main__":
    raise SystemExit(main())
