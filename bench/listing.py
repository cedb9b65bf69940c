"""Milliseconds of what the web page asks for, with a hundred jobs in the history and with a hundred thousand.

Ours finds the rows in its database as it starts. ComfyUI, whose history is in memory and ends at 10,000, runs them, and
therefore fewer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from bench import filled
from bench.client import Client
from bench.series import Ratio, Series, ratio
from bench.servers import Contender, Server, running
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
CONNECTIONS = 8
AT_ONCE = 10
"""Jobs that each connection queues before it waits for them."""


def measure(contenders: Sequence[Contender], rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Measure all in turn. What a server does not have, as ComfyUI 0.3.64 has no /api/jobs, is left out."""
    ours, *others = contenders
    taken: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds):
        for size in ROWS:
            with running(replace(ours, prepare=partial(_write, rows=ROWS[size] - 1))) as server:
                for what, ms in _figures(server, ROWS[size]):
                    taken.setdefault((what, size, ours.kind), []).append(ms)
            for other in others:
                with running(other) as server:
                    _run(server, OTHERS_ROWS[size] - 1)
                    for what, ms in _figures(server, OTHERS_ROWS[size]):
                        taken.setdefault((what, size, other.kind), []).append(ms)
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


def _figures(server: Server, rows: int) -> Iterator[tuple[str, float]]:
    """Yield the median milliseconds of each GET, over a connection of its own."""
    places = {"middle": rows // 2, "kept_middle": min(rows, KEPT) // 2}
    places["job_id"] = next(iter(server.client.get(f"/api/history?max_items=1&offset={places['kept_middle']}")))
    server.client.close()
    for what, path in PATHS.items():
        if server.client.finds(asked := path.format(**places)):
            with closing(Client(server.port)) as client:
                took_s = [client.get_s(asked) for _ in range(WARM_UP + REQUESTS)]
            yield what, 1000 * median(took_s[WARM_UP:])


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
