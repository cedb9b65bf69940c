"""Pools that go from no replica to several and back, while the hosts below them come and go."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.chaos import verdict
from tests.chaos.clients import Caller
from tests.chaos.jobs import Draw
from tests.cluster.server import wait_for
from tests.hosts.cluster import WORKERS, Cluster

POOLS = ("encode", "denoise", "decode")
"""Those of the shipped configuration that have no replica without work."""
JOBS = 24
ENDED_S = 400.0


@dataclass
class Scaled:
    """What was seen in each round, and what was wrong."""

    rounds: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield the report as text."""
        yield from self.rounds
        yield from (f"VIOLATION: {violation}" for violation in self.violations)
        yield f"{len(self.violations)} violations"


def scaled(site: Cluster, seed: int) -> Scaled:
    """Have every pool go from zero to work to zero: with all hosts, and twice while one leaves and joins."""
    report, draw = Scaled(), Draw(random.Random(seed))
    first, second = (site.workers[name] for name in WORKERS)

    def power_lost() -> None:
        first.kill()
        time.sleep(10)
        first.start()

    def stopped() -> None:
        second.stop()
        second.start()

    for name, meanwhile in {
        "all hosts stay": None,
        f"{first.name} loses its power": power_lost,
        f"{second.name} is stopped in good order and started": stopped,
    }.items():
        _round(site, draw, name, meanwhile, report)
        site.wait_until_joined()
    return report


def _round(site: Cluster, draw: Draw, name: str, meanwhile: Callable[[], None] | None, report: Scaled) -> None:
    caller = Caller(site.url, Counter())
    wait_for(lambda: not any(map(site.replicas_of, POOLS)), "pools without a replica", ENDED_S)
    jobs, began = draw.fresh(JOBS), time.monotonic()
    for job in jobs:
        caller.ask("POST", "/prompt", {"prompt": job.prompt, "prompt_id": job.job_id})
    most: Counter[str] = Counter()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            most.update({pool: max(0, site.replicas_of(pool) - most[pool]) for pool in POOLS})

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        if meanwhile is not None:
            wait_for(lambda: site.replicas_of("denoise"), "a replica")
            meanwhile()
        states = Counter(verdict.ended(caller, str(job.job_id), ENDED_S) for job in jobs)
    finally:
        over.set()
    ended_s = time.monotonic() - began
    watcher.join(ENDED_S)
    wait_for(lambda: not any(map(site.replicas_of, POOLS)), "pools without a replica", ENDED_S)
    none_s = time.monotonic() - began - ended_s
    seen = ", ".join(f"{pool} {most[pool]}" for pool in POOLS)
    report.rounds.append(f"{name}: {JOBS} jobs in {ended_s:.0f} s; at most {seen}; none left {none_s:.0f} s later")
    if states != {"success": JOBS}:
        report.violations.append(f"{name}: {dict(states)}")
