"""What one cluster carries, by its hosts: `python -m bench.hosts`, as root.

Each cluster is one of tests/hosts: a head and one or more worker hosts in network namespaces of this machine, with
PostgreSQL, Redis and a bucket on a host of their own. Measured are jobs that save a small picture, from the first
submission until the last has ended, and then jobs that tell of many steps: jobs and events a second, the bytes that
hosts send each other, and processor time by kind of process. All hosts share this machine's processors, so what they
carry together is the machine's; what a cluster of whole machines carries follows from the processor time that one job
takes of the one scheduler.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from bench import workflows
from bench.sleepers import PACKS, cpu_ms
from tests.cluster.server import wait_for
from tests.hosts import cluster, network
from tests.hosts.alone import alone, limit
from tests.hosts.cluster import WORKERS, Cluster

CONNECTIONS = 8
REPLICAS = 2
"""Of the pool without models, on each worker host."""
STEPS = 100
IDLE_S = 10.0
ENDED_S = 600.0
SCHEDULER = "SchedulerActor"


class Counters(NamedTuple):
    """What had been used at a moment: bytes between hosts, processor milliseconds by kind of process."""

    at_s: float
    sent_bytes: int
    cpu_ms: Mapping[str, float]


class Load(NamedTuple):
    """What a number of jobs took. sent_bytes: between hosts, less what the idle cluster sends in that time."""

    jobs: int
    events: int
    took_s: float
    sent_bytes: float
    cpu_ms: Mapping[str, float]

    def line(self) -> str:
        """Return it as text."""
        total = sum(self.cpu_ms.values())
        scheduler = self.cpu_ms.get(SCHEDULER, 0.0)
        kinds = sorted(self.cpu_ms.items(), key=lambda item: -item[1])[:6]
        return (
            f"{self.jobs / self.took_s:.1f} jobs/s, {self.events / self.took_s:.0f} events/s, "
            f"{self.sent_bytes / self.jobs / 1024:.0f} KiB between hosts a job, {total / self.jobs:.1f} ms a job, "
            f"of which the scheduler {scheduler / self.jobs:.1f} ms ({scheduler / total:.0%}); "
            + ", ".join(f"{name} {ms / self.jobs:.1f}" for name, ms in kinds)
        )


def main() -> int:
    """Measure a cluster for each number of worker hosts, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.hosts", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="worker hosts (default: 1 and 2)")
    parser.add_argument("--jobs", type=int, default=400, help="that save a picture (default: %(default)s)")
    parser.add_argument("--telling", type=int, default=32, help=f"that tell of {STEPS} steps (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=3600, help="seconds it may take (default: %(default)s)")
    arguments = parser.parse_args()
    if (why := network.missing() or cluster.missing()) is not None:
        print(f"not run: {why}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    limit(arguments.limit)
    with alone(arguments.limit) as root:
        for count in arguments.workers:
            _measure(root / str(count), WORKERS[:count], arguments.jobs, arguments.telling)
    return 0


def _measure(root: Path, workers: Sequence[str], jobs: int, telling: int) -> None:
    root.mkdir()
    replicas = REPLICAS * len(workers)
    pool = {"name": "cpu", "runtime": False, "min_replicas": replicas, "max_replicas": replicas, "num_cpus": 0}
    arguments = {"custom_nodes_dir": str(PACKS), "pools": [{**pool, "tasks_per_replica": 4}]}
    with cluster.started(root, workers, arguments) as site, httpx.Client(base_url=site.url, timeout=60.0) as http:
        wait_for(lambda: http.get("/status").json()["load"]["pools"][0]["replicas"] == replicas, "all replicas")
        _run(site, http, 5 * CONNECTIONS, lambda: workflows.noop(saved=True))
        time.sleep(IDLE_S)
        before = _counted(site)
        time.sleep(IDLE_S)
        idle = _less(_counted(site), before)
        print(f"{len(workers)} worker hosts, load {os.getloadavg()[0]:.1f}")
        print(f"idle: {idle.sent_bytes / idle.at_s / 1024:.1f} KiB/s, {sum(idle.cpu_ms.values()) / idle.at_s:.0f} ms/s")
        saved = _loaded(site, http, idle, jobs, lambda: workflows.noop(saved=True))
        print(f"jobs that save a picture: {saved.line()}")
        told = _loaded(site, http, idle, telling, lambda: workflows.sleep(5.0, STEPS))
        print(f"jobs of 5 s that tell of {STEPS} steps: {told.line()}")
        print(f"load {os.getloadavg()[0]:.1f}", flush=True)


def _loaded(site: Cluster, http: httpx.Client, idle: Counters, jobs: int, make: Callable[[], dict[str, Any]]) -> Load:
    """Run jobs and return the resources that they took beyond those of the idle cluster."""
    before = _counted(site)
    events = _run(site, http, jobs, make)
    taken = _less(_counted(site), before)
    share = taken.at_s / idle.at_s
    cpu = {name: max(0.0, ms - share * idle.cpu_ms.get(name, 0.0)) for name, ms in taken.cpu_ms.items()}
    return Load(jobs, events, taken.at_s, taken.sent_bytes - share * idle.sent_bytes, cpu)


def _run(site: Cluster, http: httpx.Client, jobs: int, make: Callable[[], dict[str, Any]]) -> int:
    """Submit jobs by a few connections, wait until all have ended, and return the number of events."""

    def submit(prompts: Sequence[dict[str, Any]]) -> str:
        with httpx.Client(base_url=site.url, timeout=60.0) as own:
            answers = [own.post("/prompt", json={"prompt": each}).raise_for_status() for each in prompts]
        return str(answers[-1].json()["prompt_id"])

    made = [make() for _ in range(jobs)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        accepted = list(pool.map(submit, [made[i::CONNECTIONS] for i in range(CONNECTIONS)]))

    def over() -> bool:
        return not any(http.get("/status").raise_for_status().json()["jobs"].values())

    wait_for(over, "the end of all jobs", ENDED_S)
    last = http.get(f"/jobs/{accepted[-1]}/events", params={"after": 0, "timeout_s": 0}).raise_for_status().json()
    assert last["events"][-1]["kind"] == "success", last["events"][-1]
    return jobs * len(last["events"])


def _counted(site: Cluster) -> Counters:
    return Counters(time.monotonic(), site.network.sent_bytes(), cpu_ms(site.processes()))


def _less(after: Counters, before: Counters) -> Counters:
    spent = {name: ms - before.cpu_ms.get(name, 0.0) for name, ms in after.cpu_ms.items()}
    return Counters(after.at_s - before.at_s, after.sent_bytes - before.sent_bytes, spent)


if __name__ == "__main__":
    sys.exit(main())
