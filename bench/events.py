"""Seconds from a node's message until its client has it from the websocket, while fifty clients are connected."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import quantiles

import websockets

from bench.client import Client
from bench.series import Ratio, Series, ratio
from bench.servers import Contender, Server, running
from bench.workflows import ticker

NAME = "events"
PACKS = Path(__file__).parent / "packs"
CLIENTS = 50
MESSAGES = 20
LOADS = {"one job at a time, 50 messages/s": (1, 0.02), "16 jobs at once, 320 messages/s": (16, 0.05)}
"""Jobs that run at once, and seconds between the messages of each."""


def measure(contenders: Sequence[Contender], rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Give each of the clients a job, and note how old the job's messages are when they arrive.

    ComfyUI runs one job at a time, so it has no part in the other load.
    """
    taken: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds):
        for contender in contenders:
            with running(replace(contender, packs=PACKS)) as server:
                for load, (at_once, interval_s) in LOADS.items():
                    if at_once == 1 or contender is contenders[0]:
                        ages = asyncio.run(_ages(server, at_once, interval_s))
                        percentiles = quantiles(ages, n=100)
                        for name, value in (("p50", percentiles[49]), ("p99", percentiles[98])):
                            taken.setdefault((load, name, contender.kind), []).append(1000 * value)
    series = {key: Series(NAME, f"{key[0]}, {key[1]}", key[2], "ms", values) for key, values in taken.items()}
    ratios = [
        ratio(NAME, f"{load}, {name}: over {kind}", series[load, name, contenders[0].kind], measured)
        for (load, name, kind), measured in series.items()
        if kind != contenders[0].kind
    ]
    return list(series.values()), ratios


async def _ages(server: Server, at_once: int, interval_s: float) -> list[float]:
    """Return the age of every message in seconds. Every client has one job; so many jobs are there at once."""
    free = asyncio.Semaphore(at_once)
    names = [f"client{i}" for i in range(CLIENTS)]
    sockets = await asyncio.gather(
        *(websockets.connect(f"ws://127.0.0.1:{server.port}/ws?clientId={name}") for name in names)
    )
    ages: list[float] = []

    async def listen(name: str, socket: websockets.ClientConnection) -> None:
        async with free:
            await asyncio.to_thread(_submit, server.port, interval_s, name)
            async for frame in socket:
                arrived_s = time.monotonic()
                message = json.loads(frame)
                if message["type"] == "tick":
                    ages.append(arrived_s - message["data"]["at_s"])
                elif message["type"] == "executing" and message["data"]["node"] is None:
                    return
        raise RuntimeError(f"{server.name} closed the socket of {name}")

    try:
        await asyncio.gather(*map(listen, names, sockets))
    finally:
        await asyncio.gather(*(socket.close() for socket in sockets))
    if len(ages) != CLIENTS * MESSAGES:
        raise RuntimeError(f"{len(ages)} of {CLIENTS * MESSAGES} messages of {server.name} arrived")
    return ages


def _submit(port: int, interval_s: float, client_id: str) -> None:
    connection = Client(port)
    connection.post(ticker(MESSAGES, interval_s), client_id)
    connection.close()
