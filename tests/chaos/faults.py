"""What is done to a running server: each fault by name, and the one who does them, at moments drawn from a seed."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import psutil

from tests.chaos.clients import Book, Caller
from tests.chaos.jobs import Draw
from tests.chaos.site import Site
from tests.chaos.target import Target

Strike = Callable[[random.Random], bool]
"""Does it and, if it passes, waits until it is over. False if what it is done to is not there."""

PARTS = {
    "proxy": r"/haproxy -db ",
    "controller": r"^ray::ServeController",
    "replica": r"^ray::ServeReplica:serve-app:(?!ingress)",
    "ingress": r"^ray::ServeReplica:serve-app:ingress",
    "rank": r"^ray::Rank",
    "scheduler": r"^ray::SchedulerActor",
    "gcs": r"/gcs/gcs_server ",
    "raylet": r"/raylet/raylet ",
    # Once it serves, what waits in its place has its arguments; its supervisor has the command among its own.
    "server": r"^\S+ (-I -S -c [^-]*)?-P -m serve_app\.deployments\.process\.serving ",
}
"""How a part's process names itself; it is looked for among the server's own processes only."""
FOUND_S = 150.0
"""How long a part that is being replaced is waited for."""
MENDED_S = 300.0


@dataclass(frozen=True)
class Fault:
    """Something that can happen to a part. weight: how often it is drawn."""

    part: str
    action: str
    strike: Strike
    weight: int


def named(found: Sequence[Fault], name: str) -> list[Fault]:
    """Return the faults whose name, as `rank: kill`, has this regular expression in it. Errors: SystemExit for none."""
    names = [f"{fault.part}: {fault.action}" for fault in found]
    chosen = [fault for fault, full in zip(found, names, strict=True) if re.search(name, full)]
    if not chosen:
        raise SystemExit(f"no fault has {name!r} in its name, but there are: {', '.join(names)}")
    return chosen


@dataclass(frozen=True)
class Struck:
    """A fault that was done. mended_s: until a job that was submitted then was done; None for never.

    jobs: those that were open or accepted meanwhile. load: of the machine as it began, over a minute.
    """

    part: str
    action: str
    mended_s: float | None
    jobs: frozenset[str]
    load: float


def faults(site: Site, *, short: bool = False) -> list[Fault]:
    """Return what can be done to this server. short: only what is mended within seconds."""
    kills = [("replica", 5), ("scheduler", 3), ("ingress", 2), ("controller", 2)]
    if site.setting.devices > 1:
        kills.append(("rank", 5))
    found = [Fault(part, "kill", partial(killed, site, part), weight) for part, weight in kills]
    if site.setting.clock:
        return [*found[:2], Fault("clock", "jump", partial(_jump, site), 20)]
    if short:
        return [*found, Fault("replica", "stop", partial(_stop, site, "replica", 1, 3), 1)]
    found.append(Fault("proxy", "kill", partial(killed, site, "proxy"), 2))
    found += [Fault(part, "kill", partial(killed, site, part), 1) for part in ("gcs", "raylet", "server")]
    found.append(Fault("up", "kill", partial(_kill_up, site), 1))
    found += [
        Fault(part, "stop", partial(_stop, site, part, 2, 15), 1)
        for part in ("proxy", "controller", "ingress", "scheduler", "gcs", "raylet")
    ]
    found.append(Fault("replica", "stop", partial(_stop, site, "replica", 2, 15), 2))
    # Longer than a silent replica is waited for.
    found.append(Fault("replica", "long stop", partial(_stop, site, "replica", 25, 60), 1))
    if site.postgres is None:
        found.append(Fault("database", "lock", partial(_lock_database, site), 2))
    else:
        found.append(Fault("database", "kill", partial(_kill_postgres, site), 3))
        found.append(Fault("database", "terminate", partial(_terminate_backends, site), 3))
        found.append(Fault("database", "read-only", partial(_demote, site), 2))
    if site.seaweed is not None:
        found.append(Fault("store", "kill", partial(_kill_seaweed, site), 3))
    elif os.geteuid() != 0 or shutil.which("chattr"):
        found.append(Fault("store", "read-only", partial(_lock_output, site), 2))
    return found


def schedule(rng: random.Random, faults: Sequence[Fault], count: int, jobs: int) -> list[tuple[int, Fault]]:
    """Return so many faults, each with the number of ended jobs at which it comes; every kind once if they suffice."""
    drawn = rng.sample(faults, min(count, len(faults)))
    drawn += rng.choices(faults, [fault.weight for fault in faults], k=count - len(drawn))
    rng.shuffle(drawn)
    last = max(1, int(jobs * 0.95))
    return list(zip(sorted(rng.randrange(last) for _ in drawn), drawn, strict=True))


class Injector(threading.Thread):
    """Does the faults of a schedule, now and then before the one before is mended."""

    def __init__(
        self, url: str, book: Book, plan: Sequence[tuple[int, Fault]], rng: random.Random, until_s: float
    ) -> None:
        super().__init__(daemon=True)
        self._until_s = until_s
        self._url, self._book, self._plan, self._rng = url, book, plan, rng
        self._draw = Draw(random.Random(rng.random()))
        self._probes: list[threading.Thread] = []
        self.done: list[Struck] = []
        self.windows: list[tuple[float, float]] = []
        """When files could not be saved."""

    def run(self) -> None:
        for at, fault in self._plan:
            while self._book.ended() < at and not self._over():
                time.sleep(0.05)
            time.sleep(self._rng.uniform(0.0, 1.0))
            if self._over():
                break
            began, load = time.monotonic(), os.getloadavg()[0]
            print(f"{fault.part}: {fault.action}", file=sys.stderr)
            if not fault.strike(self._rng):
                self._book.wrong(f"no {fault.part} to {fault.action} for {FOUND_S:.0f} s")
                continue
            if fault.part == "store":
                self.windows.append((began, time.monotonic()))
            probe = threading.Thread(target=self._probe, args=(fault, began, load), daemon=True)
            probe.start()
            self._probes.append(probe)
            if self._rng.random() < 0.7:
                probe.join(MENDED_S)
        for probe in self._probes:
            probe.join(MENDED_S)

    def _over(self) -> bool:
        return self._book.finished.is_set() or time.monotonic() > self._until_s

    def _probe(self, fault: Fault, began: float, load: float) -> None:
        """Measure until a job that is submitted now, before all others, has been done."""
        caller, job = Caller(self._url, self._book.strange), self._draw.plain()
        mended_s = None
        try:
            body = {"prompt": job.prompt, "prompt_id": job.job_id, "front": True}
            job_id = caller.ask("POST", "/prompt", body)["prompt_id"]
            self._book.accepted(job_id, job, "probe")
            while time.monotonic() - began < MENDED_S:
                if self._book.entries[job_id].state is not None:
                    mended_s = time.monotonic() - began
                    break
                time.sleep(0.1)
        except (RuntimeError, TimeoutError) as error:
            self._book.wrong(f"after a {fault.action} of {fault.part}: {error}")
        self.done.append(Struck(fault.part, fault.action, mended_s, self._book.since(began), load))


def _found(site: Target, part: str) -> psutil.Process | None:
    """Return a living process of a part, one of them at random if there are several."""
    deadline = time.monotonic() + FOUND_S
    while time.monotonic() < deadline:
        for process in site.processes():
            with contextlib.suppress(psutil.Error):
                if re.search(PARTS[part], " ".join(process.cmdline())) and process.status() != psutil.STATUS_STOPPED:
                    return process
        time.sleep(0.2)
    return None


def killed(site: Target, part: str, rng: random.Random) -> bool:
    """SIGKILL a process of a part. False if there is none."""
    if (process := _found(site, part)) is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    return True


def _stop(site: Target, part: str, least_s: float, most_s: float, rng: random.Random) -> bool:
    if (process := _found(site, part)) is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGSTOP)
        time.sleep(rng.uniform(least_s, most_s))
        process.send_signal(signal.SIGCONT)
    return True


def _kill_up(site: Site, rng: random.Random) -> bool:
    site.kill_up()
    return True


def _lock_database(site: Site, rng: random.Random) -> bool:
    with site.locked_database():
        time.sleep(rng.uniform(2, 12))
    return True


def _kill_postgres(site: Site, rng: random.Random) -> bool:
    assert site.postgres is not None
    site.postgres.kill()
    time.sleep(rng.uniform(0, 8))
    site.postgres.start()
    return True


def _terminate_backends(site: Site, rng: random.Random) -> bool:
    for _ in range(rng.randint(1, 10)):
        site.terminate_backends()
        time.sleep(rng.uniform(0, 0.5))
    return True


def _demote(site: Site, rng: random.Random) -> bool:
    with site.read_only_database():
        time.sleep(rng.uniform(2, 8))
    return True


def _kill_seaweed(site: Site, rng: random.Random) -> bool:
    assert site.seaweed is not None
    site.seaweed.kill()
    time.sleep(rng.uniform(0, 5))
    site.seaweed.start()
    return True


def _jump(site: Site, rng: random.Random) -> bool:
    site.set_clock(rng.randint(-3600, 3600))
    return True


def _lock_output(site: Site, rng: random.Random) -> bool:
    with _read_only(site):
        time.sleep(rng.uniform(1, 6))
    return True


@contextlib.contextmanager
def _read_only(site: Site) -> Iterator[None]:
    """Let nobody make a file in the output directory meanwhile. Modes do not hold root back; an attribute does."""
    root = os.geteuid() == 0
    lock = ["chattr", "+i"] if root else ["chmod", "0555"]
    unlock = ["chattr", "-i"] if root else ["chmod", "0755"]
    subprocess.run([*lock, str(site.output)], check=True)
    try:
        yield
    finally:
        subprocess.run([*unlock, str(site.output)], check=True)
