"""What thousands of jobs leave behind: `python -m bench.soak --jobs 10000`.

A server runs them a few at a time. After each of POINTS stretches it is left alone for a moment; then the memory that a
process shares with no other is written down, and the size of the database. The slope of a process is the least squares
line through what was written down after the first WARM_UP of all jobs, by when the server has tidied its files once.
Exits with 1 if one is beyond SLOPE_MB.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from statistics import linear_regression
from tempfile import TemporaryDirectory

import psutil

from bench.client import Client
from bench.servers import Contender, Server, running
from bench.workflows import noop
from serve_app.scheduler.housekeeping.tidying import EVERY_S

POINTS = 20
WARM_UP = 0.25
CONNECTIONS = 4
SETTLE_S = 3.0
SLOPE_MB = 1.0
"""What a process may gain in a thousand jobs."""
POOL = {"name": "gpu", "results_bytes": 8 * 2**20}
KEPT = {"events": {"streams": 100}}
"""What is kept on purpose, up to a bound, is full within the warm-up, so that what grows beyond it shows."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="default: %(default)s")
    jobs = max(POINTS * CONNECTIONS, parser.parse_args().jobs)
    made: list[Path] = []
    with TemporaryDirectory() as models:
        contender = Contender(
            "serve-app", Path(models), pools=[POOL], ready="/readyz", arguments=KEPT, prepare=made.append
        )
        with running(contender) as server:
            done, memory, database_mb = _run(server, jobs, made[0])
    slopes = sorted(_slopes(done, memory), reverse=True)
    for slope, first_mb, last_mb, name in slopes:
        print(f"{slope:+8.2f} MB in 1,000 jobs  {first_mb:7.1f} -> {last_mb:7.1f} MB  {name}")
    kept = f"{1000 * database_mb[-1] / done[-1]:.2f} kB a job"
    print(f"database: {database_mb[0]:.2f} MB -> {database_mb[-1]:.2f} MB, {kept}")
    return 1 if slopes and slopes[0][0] > SLOPE_MB else 0


def _run(server: Server, jobs: int, directory: Path) -> tuple[list[int], dict[str, list[float]], list[float]]:
    """Return after how many jobs it was looked, each process's MB and the database's at those moments."""
    done: list[int] = []
    memory: dict[str, list[float]] = {}
    database_mb: list[float] = []
    started_s = time.perf_counter()
    for point in range(POINTS):
        share = (jobs * (point + 1) // POINTS - (done[-1] if done else 0)) // CONNECTIONS
        began = time.perf_counter()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(_client, [(server.port, share)] * CONNECTIONS))
        took_s = time.perf_counter() - began
        done.append((done[-1] if done else 0) + share * CONNECTIONS)
        tidied_s = started_s + EVERY_S if point == int(WARM_UP * POINTS) else 0.0
        time.sleep(SETTLE_S + max(0.0, tidied_s - time.perf_counter()))
        for name, own_mb in _memory(server):
            memory.setdefault(name, []).append(own_mb)
        database_mb.append(sum(path.stat().st_size for path in directory.glob("jobs.sqlite*")) / 1e6)
        print(
            f"{done[-1]} jobs, {share * CONNECTIONS / took_s:.1f} a second, database {database_mb[-1]:.2f} MB",
            flush=True,
        )
    return done, memory, database_mb


def _client(work: tuple[int, int]) -> None:
    port, share = work
    with closing(Client(port)) as client:
        client.run([noop() for _ in range(share)])


def _memory(server: Server) -> Iterator[tuple[str, float]]:
    for process in server.processes():
        try:
            yield f"{process.pid} {' '.join(process.cmdline())[:60]}", process.memory_full_info().uss / 1e6
        except psutil.Error:
            continue


def _slopes(done: list[int], memory: dict[str, list[float]]) -> Iterator[tuple[float, float, float, str]]:
    """Yield each process's slope, first and last MB and name, of those that were there all the time."""
    first = int(WARM_UP * len(done))
    for name, own_mb in memory.items():
        if len(own_mb) == len(done):
            slope = linear_regression(done[first:], own_mb[first:]).slope * 1000
            yield slope, own_mb[first], own_mb[-1], name


if __name__ == "__main__":
    sys.exit(main())
