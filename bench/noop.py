"""Jobs per second of a workflow that computes next to nothing: what accepting, running and recording a job costs.

Who awaits a job is told of its end by a websocket. An image is shown or saved: one that is saved has a counted name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.client import Awaiting, Client
from bench.series import Ratio, Series, ratio
from bench.servers import Contender, Server, running
from bench.workflows import noop

NAME = "noop"
JOBS = 50
EARLIER = 2000
"""After so many jobs more each load is measured again: what a server remembers of them may slow it down."""
CONNECTIONS = 8
SETTLE_S = 10.0
"""After this a server has done what it does beside its first jobs, such as importing the classes of models."""


def measure(contenders: Sequence[Contender], rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Run every contender in turn: one connection that waits for each job, then one and several that queue many."""
    loads: dict[str, Callable[[Server, bool], int]] = {
        "1 connection, each job awaited": _one_by_one,
        "1 connection, all queued first": lambda server, saved: _queued(server, 1, saved=saved),
        f"{CONNECTIONS} connections, all queued first": lambda server, saved: _queued(server, CONNECTIONS, saved=saved),
    }
    phases = {"": (0, False), ", saved": (0, True), f", {EARLIER} jobs later": (EARLIER, False)}
    labels = [load + phase for phase in phases for load in loads]
    rates: dict[tuple[str, str], list[float]] = {(c.kind, label): [] for label in labels for c in contenders}
    for _ in range(rounds):
        for contender in contenders:
            with running(contender) as server:
                _queued(server, CONNECTIONS)
                time.sleep(SETTLE_S)
                for phase, (earlier, saved) in phases.items():
                    _queued(server, CONNECTIONS, earlier)
                    for load, work in loads.items():
                        began = time.perf_counter()
                        jobs = work(server, saved)
                        rates[contender.kind, load + phase].append(jobs / (time.perf_counter() - began))
    series = {key: Series(NAME, key[1], key[0], "jobs/s", values) for key, values in rates.items()}
    others = [kind for kind in dict.fromkeys(c.kind for c in contenders) if kind != "serve-app"]
    ratios = [
        ratio(NAME, f"{label}: over {kind}", series["serve-app", label], series[kind, label])
        for label in labels
        for kind in others
    ]
    return list(series.values()), ratios


def _one_by_one(server: Server, saved: bool) -> int:
    client = Awaiting(server.client, server.port, NAME)
    for _ in range(JOBS):
        client.run(noop(saved=saved))
    client.close()
    return JOBS


def _queued(server: Server, connections: int, jobs: int = 4 * JOBS, *, saved: bool = False) -> int:
    share = jobs // connections

    def client() -> None:
        connection = Client(server.port)
        connection.run([noop(saved=saved) for _ in range(share)])
        connection.close()

    with ThreadPoolExecutor(connections) as pool:
        for done in [pool.submit(client) for _ in range(connections)]:
            done.result()
    return share * connections
