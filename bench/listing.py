"""Milliseconds of what the web page asks for, with a hundred jobs in the history and with ten thousand."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from bench.client import Client
from bench.series import Ratio, Series, ratio
from bench.servers import Contender, Server, running
from bench.workflows import noop

NAME = "listing"
ROWS = (100, 10_000)
PATHS = {
    "/api/object_info": "/api/object_info",
    "/api/history, the last 64": "/api/history?max_items=64",
    "/api/jobs, the newest 64": "/api/jobs?status=completed,failed,cancelled&limit=64&offset=0",
    "/api/jobs, 64 in the middle": "/api/jobs?limit=64&offset={middle}",
}
REQUESTS = 30
CONNECTIONS = 8
AT_ONCE = 10
"""Jobs that each connection queues before it waits for them."""


def measure(contenders: Sequence[Contender], rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Fill every contender's history in turn. ComfyUI 0.3.64 has no /api/jobs."""
    taken: dict[tuple[str, int, str], list[float]] = {}
    for _ in range(rounds):
        for contender in contenders:
            with running(contender) as server:
                filled = 1
                for rows in ROWS:
                    _fill(server, rows - filled)
                    filled = rows
                    for what, path in PATHS.items():
                        if contender.comfyui is None or "/api/jobs" not in what:
                            ms = _ask(server, path.format(middle=rows // 2))
                            taken.setdefault((what, rows, contender.kind), []).append(ms)
    series = {key: Series(NAME, f"{key[0]}, {key[1]} rows", key[2], "ms", ms) for key, ms in taken.items()}
    ours = contenders[0].kind
    few, many = ROWS
    ratios = [ratio(NAME, f"{w}: {many} rows over {few}", series[w, many, ours], series[w, few, ours]) for w in PATHS]
    for (what, rows, kind), measured in series.items():
        if kind != ours:
            ratios.append(ratio(NAME, f"{what}, {rows} rows: over {kind}", series[what, rows, ours], measured))
    return list(series.values()), ratios


def _ask(server: Server, path: str) -> float:
    """Return the median milliseconds of a GET, over a connection of its own."""
    connection = Client(server.port)
    ms = 1000 * median(connection.get_s(path) for _ in range(REQUESTS))
    connection.close()
    return ms


def _fill(server: Server, jobs: int) -> None:
    """Run so many jobs that compute next to nothing."""

    def client(share: int) -> None:
        connection = Client(server.port)
        for done in range(0, share, AT_ONCE):
            connection.run([noop() for _ in range(min(AT_ONCE, share - done))])
        connection.close()

    shares = [jobs // CONNECTIONS + (i < jobs % CONNECTIONS) for i in range(CONNECTIONS)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for _ in pool.map(client, shares):
            pass
