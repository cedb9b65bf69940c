"""What submissions and lists cost while 20,000 jobs wait and 100,000 have ended, beside a server that began empty.

Both databases are written before their server starts, and one slot sleeps meanwhile, so that nothing but what is asked
changes either. A row of the full one is as large as a job of this kind leaves it.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import median

from bench import filled
from bench.series import Ratio, Series, ratio
from bench.servers import Contender, Server, running
from bench.workflows import sleep
from serve_app.graph.spec import Input, NodeSpec

NAME = "queued"
WAITING, ENDED = 20_000, 100_000
HOUR_S = 3600.0
PACKS = Path(__file__).parent / "packs"
NAMED = "cpu"
POOL = {"name": NAMED, "runtime": False, "num_cpus": 0, "min_replicas": 1, "tasks_per_replica": 1}
INPUTS = (Input("seconds", "FLOAT"), Input("steps", "INT"), Input("seed", "INT"))
SPEC = NodeSpec("Sleep", INPUTS, (), (), (), output_node=True)
PATHS = {
    "GET /api/queue": "/api/queue",
    "GET /queue": "/queue",
    "GET /api/prompt": "/api/prompt",
    "GET /status": "/status",
    "GET /api/jobs, the newest 64": "/api/jobs?limit=64",
    "GET /api/jobs, 64 that wait": "/api/jobs?status=in_progress,pending&limit=64",
    "GET /api/history, the last 64": "/api/history?max_items=64",
}
BOUNDED = ("GET /api/queue", "GET /queue", "GET /api/prompt", "GET /status")
REQUESTS = 30
FIRST_POSTS, POSTS = 100, 1000
"""Before anything is asked, so that a page of a list is as long where the database began empty; and timed."""


def measure(contenders: Sequence[Contender], rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Measure the first contender, which is ours, with an empty and a full database in turn."""
    ours = contenders[0]
    taken: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds):
        for state in ("empty", "full"):
            for (what, unit), figure in _figures(ours, full=state == "full").items():
                taken.setdefault((what, unit, state), []).append(figure)
    series = {key: Series(NAME, f"{key[0]}, {key[2]}", ours.kind, key[1], figures) for key, figures in taken.items()}
    ratios = [Ratio(NAME, f"{what}, full, in ms", series[what, "ms", "full"].values, "<= 50") for what in BOUNDED]
    for what in PATHS:
        target = "<= 1.2" if "/jobs" in what else ""
        pair = series[what, "ms", "full"], series[what, "ms", "empty"]
        ratios.append(ratio(NAME, f"{what}: full over empty", *pair, target))
    for share in ("p50", "p99"):
        pair = series[f"POST /prompt, {share}", "ms", "full"], series[f"POST /prompt, {share}", "ms", "empty"]
        ratios.append(ratio(NAME, f"POST /prompt, {share}: full over empty", *pair, "<= 1.2" if share == "p99" else ""))
    return list(series.values()), ratios


def _figures(ours: Contender, *, full: bool) -> dict[tuple[str, str], float]:
    arguments = {"max_queue": 2 * WAITING, "client_share": 1.0}
    contender = Contender(ours.kind, ours.models, packs=PACKS, pools=[POOL], arguments=arguments, prepare=_fill)
    if not full:
        contender = Contender(ours.kind, ours.models, packs=PACKS, pools=[POOL], arguments=arguments)
    figures: dict[tuple[str, str], float] = {}
    with running(contender) as server:
        _settle(server, WAITING if full else 0)
        for what, path in PATHS.items():
            ms, kilobytes = _ask(server, path)
            figures[what, "ms"], figures[what, "kB"] = ms, kilobytes
        # What the server has closed meanwhile as idle is opened again.
        server.client.close()
        waits = sorted(_post(server) for _ in range(POSTS))
        figures["POST /prompt, p50", "ms"] = 1000 * waits[len(waits) // 2]
        figures["POST /prompt, p99", "ms"] = 1000 * waits[int(0.99 * len(waits))]
    return figures


def _settle(server: Server, waiting: int) -> None:
    """Let one job take the slot and the others wait, and the server rest from its start."""
    server.client.post(sleep(HOUR_S))
    while (jobs := server.client.get("/status")["jobs"])["running"] == 0 or jobs["pending"] < waiting:
        time.sleep(0.5)
    time.sleep(5.0)
    for _ in range(FIRST_POSTS):
        _post(server)


def _ask(server: Server, path: str) -> tuple[float, float]:
    """Return the median milliseconds of a GET until its whole answer is read, and the answer's kilobytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    took_s = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        content = answer.read()
        took_s.append(time.perf_counter() - began)
        if answer.status != 200:
            raise RuntimeError(f"GET {path} was answered {answer.status}: {content[:200]!r}")
    connection.close()
    return 1000 * median(took_s), len(content) / 1000


def _post(server: Server) -> float:
    began = time.perf_counter()
    server.client.post(sleep(HOUR_S))
    return time.perf_counter() - began


def _fill(directory: Path) -> None:
    """Write the jobs into the database that a server in this directory will open."""
    shown = {"text": [f"{HOUR_S:g}"]}
    done = (filled.ended(order, sleep(HOUR_S), "1", shown) for order in range(ENDED))
    left = (filled.waiting(ENDED + order, sleep(HOUR_S), "1") for order in range(WAITING))
    # What waits is planned before the replica that runs it has joined.
    filled.fill(directory, chain(done, left), {NAMED: [SPEC]})
