"""What submissions and lists cost while 20,000 jobs wait and 100,000 have ended, beside a server that began empty.

Both run at once and are asked in turn, so that what else the machine does meets both alike. The full one's database is
written before it starts, and one slot of each sleeps meanwhile, so that nothing but what is asked changes either. A row
of it is as large as a job of this kind leaves it.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from statistics import median

from bench import filled
from bench.series import Ratio, Series, ratio
from bench.servers import Contender, Server, in_turn, running
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
    """Measure the first contender, which is ours, with an empty and a full database."""
    ours = contenders[0]
    taken: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(rounds):
        with running(_contender(ours, None)) as empty, running(_contender(ours, _fill)) as full:
            for key, figure in _figures({"empty": empty, "full": full}).items():
                taken.setdefault(key, []).append(figure)
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


def _contender(ours: Contender, prepare: Callable[[Path], None] | None) -> Contender:
    arguments = {"max_queue": 2 * WAITING, "client_share": 1.0}
    return Contender(ours.kind, ours.models, packs=PACKS, pools=[POOL], arguments=arguments, prepare=prepare)


def _figures(servers: Mapping[str, Server]) -> dict[tuple[str, str, str], float]:
    """Return each figure of an empty and a full server, by what it is of, its unit and the server's state."""
    figures: dict[tuple[str, str, str], float] = {}
    for state, server in servers.items():
        _settle(server, WAITING if state == "full" else 0)
    for what, path in PATHS.items():
        for state, (ms, kilobytes) in _ask(servers, path).items():
            figures[what, "ms", state], figures[what, "kB", state] = ms, kilobytes
    waits: dict[str, list[float]] = {state: [] for state in servers}
    for server in servers.values():
        # What the server has closed meanwhile as idle is opened again.
        server.client.close()
    for n in range(POSTS):
        for state in in_turn(servers, n):
            waits[state].append(_post(servers[state]))
    for state, took_s in waits.items():
        took_s.sort()
        figures["POST /prompt, p50", "ms", state] = 1000 * took_s[len(took_s) // 2]
        figures["POST /prompt, p99", "ms", state] = 1000 * took_s[int(0.99 * len(took_s))]
    return figures


def _settle(server: Server, waiting: int) -> None:
    """Let one job take the slot and the others wait, and the server rest from its start."""
    server.client.post(sleep(HOUR_S))
    while (jobs := server.client.get("/status")["jobs"])["running"] == 0 or jobs["pending"] < waiting:
        time.sleep(0.5)
    time.sleep(5.0)
    for _ in range(FIRST_POSTS):
        _post(server)


def _ask(servers: Mapping[str, Server], path: str) -> dict[str, tuple[float, float]]:
    """Return the median milliseconds of a GET until its whole answer is read, and its kilobytes, of each server."""
    took_s: dict[str, list[float]] = {state: [] for state in servers}
    kilobytes: dict[str, float] = {}
    with ExitStack() as stack:
        connections = {
            state: stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)))
            for state, server in servers.items()
        }
        for n in range(REQUESTS):
            for state in in_turn(servers, n):
                began = time.perf_counter()
                connections[state].request("GET", path)
                answer = connections[state].getresponse()
                content = answer.read()
                took_s[state].append(time.perf_counter() - began)
                kilobytes[state] = len(content) / 1000
                if answer.status != 200:
                    raise RuntimeError(f"GET {path} was answered {answer.status}: {content[:200]!r}")
    return {state: (1000 * median(took_s[state]), kilobytes[state]) for state in servers}


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
