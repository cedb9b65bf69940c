"""Two clusters as cells behind one front: a tenant moves from one to the other with its queue, as docs/scale.md has it.

Each cell has its own head, worker, database and files. Meanwhile the tenant's clients submit and listen, and so does
another tenant of each cell.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cells_front import CellsFront
from tests.chaos import verdict
from tests.chaos.clients import Book, Caller, Client, Listener, Watcher
from tests.chaos.jobs import Draw, Job
from tests.cluster.server import wait_for
from tests.hosts.cluster import HEAD, NEXT_HEAD, NEXT_WORKERS, SERVE, WORKERS, Cluster, surroundings
from tests.hosts.data import Cell

TENANTS = {"studio": "north", "neighbour": "north", "southerner": "south"}
"""Where each is at first."""
MOVES = "studio"
AREAS = ("input", "output", "temp")
JOBS = {"studio": 90, "neighbour": 30, "southerner": 30}
ARGUMENTS = {
    "tenants": {},
    "pools": [{"name": "cpu", "runtime": False, "min_replicas": 2, "max_replicas": 2, "tasks_per_replica": 4}],
}
"""Of either cell: no models, whose processes take minutes to start where five hosts share two cores."""
WIDTH = 60
"""How many jobs one client has in hand: more than its cell runs at once, so that some wait."""
ENDED_S = 300.0


@dataclass
class Moved:
    """What was seen, and what was wrong."""

    notes: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield the report as text."""
        yield from self.notes
        yield from (f"VIOLATION: {violation}" for violation in self.violations)
        yield f"{len(self.violations)} violations"


class Tenant:
    """One tenant with a client. books: what it was promised."""

    def __init__(self, name: str, url: str, key: str, jobs: Sequence[Job]) -> None:
        self.name = name
        self.book = Book()
        self.caller = Caller(url, Counter(), key)
        self.listener = Listener(url, name, self.book, key)
        self.client = Client(name, url, jobs, self.book, math.inf, width=WIDTH, pace_s=0.1, key=key)
        Watcher(url, self.book, key)
        self.client.start()

    def over(self) -> bool:
        """Whether all of its jobs were submitted and have ended."""
        return not self.client.is_alive() and not self.book.open()

    def judged(self) -> Iterator[str]:
        """Yield what was wrong for it."""
        yield from verdict.lost(self.book)
        yield from verdict.ends(self.book, self.caller, [])
        wrong, _ = verdict.sockets({self.name: self.listener}, self.book)
        yield from wrong
        yield from self.book.violations


def moved(root: Path, seed: int) -> Moved:
    """Run two cells, move a tenant while jobs of its wait, and judge."""
    report, draw = Moved(), Draw(random.Random(seed))
    with surroundings(root) as (network, shared), contextlib.ExitStack() as undo:
        hosts = {"north": (HEAD, WORKERS[0]), "south": (NEXT_HEAD, NEXT_WORKERS[0])}
        addresses = {name: f"{network.addresses[worker]}:{SERVE}" for name, (_, worker) in hosts.items()}
        cells = {}
        for name, (head, worker) in hosts.items():
            cells[name] = Cluster(
                root, network, shared, f"http://{addresses[name]}", head, [worker], Cell(name, name), ARGUMENTS
            )
            undo.callback(cells[name].close)
        for cell in cells.values():
            cell.wait_until_joined()
            cell.deploy(cell.configuration())
        keys = {tenant: _said(cells[cell], "keys", "create", tenant) for tenant, cell in TENANTS.items()}
        (root / "cells").mkdir()
        front = CellsFront(root / "cells", addresses, {_id(keys[tenant]): cell for tenant, cell in TENANTS.items()})
        undo.callback(front.close)
        tenants = {name: Tenant(name, front.url, key, _light(draw, JOBS[name])) for name, key in keys.items()}
        undo.callback(lambda: [tenant.book.finished.set() for tenant in tenants.values()])
        studio = tenants[MOVES].book
        wait_for(lambda: studio.ended() >= JOBS[MOVES] // 9, "some jobs of the tenant that moves", ENDED_S)
        report.notes.append(
            f"the tenant had {studio.ended()} jobs that had ended and {len(studio.open())} that had not"
        )
        report.notes += _move(cells["north"], cells["south"], front, root / "studio.gz", _id(keys[MOVES]))
        wait_for(lambda: all(tenant.over() for tenant in tenants.values()), "the end of all jobs", ENDED_S)
        report.notes += [f"{name}: {len(tenant.book.entries)} jobs" for name, tenant in tenants.items()]
        report.violations += itertools.chain.from_iterable(tenant.judged() for tenant in tenants.values())
        if left := [line for line in _said(cells["north"], "tenants").splitlines() if line.startswith(MOVES)]:
            report.violations.append(f"the first cell still has of the tenant: {left}")
        for name, cell in cells.items():
            with cell.stopped(back=False):
                status, said = cell.command("check")
            if status != 0:
                report.violations.append(f"`serve-app check` of {name} ended with {status}: {said}")
    return report


def _move(north: Cluster, south: Cluster, front: CellsFront, file: Path, key: str) -> Iterator[str]:
    """Do what docs/scale.md says, and yield how long each step took."""

    def copied() -> str:
        folders = [f"{area}/@{MOVES}" for area in AREAS]
        return f"{sum(north.data.copy(north.cell, south.cell, folder) for folder in folders)} files"

    def routed(cell: str) -> str:
        front.route(key, cell)
        return ""

    steps = {
        "files copied": copied,
        "front closed for the tenant": lambda: routed("moving"),
        "export-tenant": lambda: _said(north, "export-tenant", MOVES, str(file)),
        "files copied again": copied,
        "import-tenant": lambda: _said(south, "import-tenant", str(file)),
        "front open at the new cell": lambda: routed("south"),
    }
    for name, step in steps.items():
        began = time.monotonic()
        said = step()
        yield f"{name}: {time.monotonic() - began:.1f} s {said}".rstrip()


def _light(draw: Draw, count: int) -> list[Job]:
    """Return jobs that take a second or two and little of a processor; each third saves a picture."""
    return [draw.plain() if number % 3 == 0 else draw.nap() for number in range(count)]


def _said(cell: Cluster, *arguments: str) -> str:
    """Return what a command said. Errors: RuntimeError if it failed."""
    status, said = cell.command(*arguments)
    if status != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {status}: {said}")
    return said.strip()


def _id(key: str) -> str:
    return key.split("_")[1]
