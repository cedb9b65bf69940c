"""Milliseconds of what the web page asks for, with a hundred jobs in the history and with a hundred thousand.

Ours finds the rows in its database as it starts. ComfyUI, whose history is in memory and ends at 10,000, runs them, and
therefore fewer. All servers run at once and are asked in turn, so that what else the machine does meets them alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeAlias

from bench import filled
from bench.client import Client
from bench.series import Ratio, Series, ratio
from bench.servers import Contender, Server, in_turn, running
from bench.workflows import noop

NAME = "listing"
ROWS = {"few": 100, "many": 100_000}
OTHERS_ROWS = {"few": 100, "many": 1_000}
PATHS = {
    "/api/object_info": "/api/object_info",
    "/api/history, the last 64": "/api/history?max_items=64",
    "/api/history, 64 from an offset": "/api/history?max_items=64&offset={kept_middle}",
    "/api/history of one job": "/api/history/{job_id}",
    "/api/jobs, the newest 64": "/api/jobs?status=completed,failed,cancelled&limit=64&offset=0",
    "/api/jobs, 64 in the middle": "/api/jobs?limit=64&offset={middle}",
    "/api/v2/jobs, the newest 64": "/api/v2/jobs?limit=64",
}
AIMED = ("/api/history, the last 64", "/api/jobs, the newest 64", "/api/jobs, 64 in the middle")
"""What is to take at most twice as long as beside."""
KEPT = 10_000
"""How many jobs a history shows at most."""
REQUESTS, WARM_UP = 100, 20
Place: TypeAlias = "tuple[str, str]"
"""Of a server: how many rows it has, few or many, and its kind."""
CONNECTIONS = 8
AT_ONCE = 10
"""Jobs that each connection queues before it waits for them."""


def measure(contenders: Sequence[Contender], rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Measure all at once. What a server does not have, as ComfyUI 0.3.64 has no /api/jobs, is left out."""
    ours, *others = contenders
    taken: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds):
        with ExitStack() as stack:
            servers: dict[Place, tuple[Server, int]] = {}
            for size, rows in ROWS.items():
                server = stack.enter_context(running(replace(ours, prepare=partial(_write, rows=rows - 1))))
                servers[size, ours.kind] = server, rows
                for other in others:
                    server = stack.enter_context(running(other))
                    _run(server, OTHERS_ROWS[size] - 1)
                    servers[size, other.kind] = server, OTHERS_ROWS[size]
            for what, (size, kind), ms in _figures(servers):
                taken.setdefault((what, size, kind), []).append(ms)
    series = {
        (what, size, kind): Series(
            NAME, f"{what}, {(ROWS if kind == ours.kind else OTHERS_ROWS)[size]} rows", kind, "ms", ms
        )
        for (what, size, kind), ms in taken.items()
    }
    ratios = [
        ratio(NAME, f"{what}: {ROWS['many']} rows over {ROWS['few']}", many, series[what, "few", kind], "<= 1.2")
        for (what, size, kind), many in series.items()
        if (size, kind) == ("many", ours.kind)
    ]
    for (what, size, kind), measured in series.items():
        if kind != ours.kind:
            case = f"{what}: {ROWS[size]} rows over {kind}'s {OTHERS_ROWS[size]}"
            target = "<= 2" if what in AIMED else ""
            ratios.append(ratio(NAME, case, series[what, size, ours.kind], measured, target))
    return list(series.values()), ratios


def _figures(servers: Mapping[Place, tuple[Server, int]]) -> Iterator[tuple[str, Place, float]]:
    """Yield the median milliseconds of each GET, by server, over a connection of its own. servers: with their rows."""
    asked = {place: _paths(*server) for place, server in servers.items()}
    for what in PATHS:
        there = {place: server for place, (server, _) in servers.items() if server.client.finds(asked[place][what])}
        took_s: dict[Place, list[float]] = {place: [] for place in there}
        with ExitStack() as stack:
            clients = {place: stack.enter_context(closing(Client(server.port))) for place, server in there.items()}
            for turn in range(WARM_UP + REQUESTS):
                for place in in_turn(there, turn):
                    took_s[place].append(clients[place].get_s(asked[place][what]))
        for place, times_s in took_s.items():
            yield what, place, 1000 * median(times_s[WARM_UP:])


def _paths(server: Server, rows: int) -> dict[str, str]:
    """Return what is asked of a server, by what it is."""
    places = {"middle": rows // 2, "kept_middle": min(rows, KEPT) // 2}
    places["job_id"] = next(iter(server.client.get(f"/api/history?max_items=1&offset={places['kept_middle']}")))
    server.client.close()
    return {what: path.format(**places) for what, path in PATHS.items()}


def _write(directory: Path, rows: int) -> None:
    """Write jobs that have ended, as those that `_run` runs leave them."""
    name = "ComfyUI_temp_abcde_{:05}_.png"
    shown = ({"images": [{"filename": name.format(n), "subfolder": "", "type": "temp"}]} for n in range(rows))
    filled.fill(directory, (filled.ended(order, noop(), "2", ui) for order, ui in enumerate(shown)), {})


def _run(server: Server, jobs: int) -> None:
    """Run so many jobs that compute next to nothing."""

    def client(share: int) -> None:
        with closing(Client(server.port)) as connection:
            for done in range(0, share, AT_ONCE):
                connection.run([noop() for _ in range(min(AT_ONCE, share - done))])

    shares = [jobs // CONNECTIONS + (i < jobs % CONNECTIONS) for i in range(CONNECTIONS)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for _ in pool.map(client, shares):
            pass
