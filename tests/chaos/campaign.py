"""Campaigns: jobs under faults, and cancels. Each runs on a server or a cluster of its own, judges it, and reports."""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.chaos import verdict
from tests.chaos.clients import Book, Caller, Client, Listener, Watcher
from tests.chaos.faults import Fault, Injector, Struck, schedule
from tests.chaos.jobs import POISON, Draw, Job
from tests.chaos.site import SLOTS
from tests.chaos.target import Target

CLIENTS = 6
POISONER = "poisoner"
"""The client that sends all poison: its jobs come to wait, and to run alone."""
TELL_S = 30.0
STUCK_S = 420.0
"""How long no job may end before the campaign is over."""


@dataclass(frozen=True)
class Plan:
    """How much of what. poison: its share. short: only faults that cost seconds. minutes: how long new jobs come.

    pace_s: how long a client waits after a submission, so that jobs come for as long as faults do. restart: whether the
    history is compared with that after a restart.
    """

    jobs: int
    kills: int = 0
    cancels: int = 0
    poison: float = 0.03
    seed: int = 0
    short: bool = False
    minutes: float = math.inf
    pace_s: float = 0.0
    restart: bool = True
    kinds: Sequence[str] = POISON

    def drawn(self, draw: Draw, rng: random.Random) -> list[Job]:
        """Return the jobs: innocents, poison of every kind in turn, and those that will be cancelled.

        For each whose node is endless there is another that its client cancels.
        """
        count = round(self.jobs * self.poison)
        poison = [self.kinds[i % len(self.kinds)] for i in range(count)] if self.kinds else []
        abandoned = poison.count("PoisonEndless")
        jobs = draw.mixed(self.jobs - self.cancels - abandoned, poison) + [draw.abandoned() for _ in range(abandoned)]
        jobs += [draw.cancelled(8.0) for _ in range(self.cancels)]
        rng.shuffle(jobs)
        return jobs


@dataclass
class Report:
    """What was done and what came of it."""

    title: str
    took_s: float = 0.0
    struck: list[Struck] = field(default_factory=list)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield the report as text."""
        yield f"== {self.title}: {self.took_s:.0f} s, {len(self.violations)} violations"
        by_fault: dict[tuple[str, str], list[float | None]] = defaultdict(list)
        for struck in self.struck:
            by_fault[struck.part, struck.action].append(struck.mended_s)
        if by_fault:
            yield f"{'what was done':<24}{'times':>6}{'mended after: median':>22}{'longest':>10}"
        for (part, action), mended in sorted(by_fault.items()):
            known = [s for s in mended if s is not None]
            middle = f"{statistics.median(known):.1f} s" if known else "never"
            longest = f"{max(known):.1f} s" if len(known) == len(mended) else "never"
            yield f"{f'{part}: {action}':<24}{len(mended):>6}{middle:>22}{longest:>10}"
        states = sorted({state for _, state in self.outcomes})
        yield f"{'jobs':<30}" + "".join(f"{state:>11}" for state in states)
        for kind in sorted({kind for kind, _ in self.outcomes}):
            yield f"{kind:<30}" + "".join(f"{self.outcomes[kind, state]:>11}" for state in states)
        yield from (f"note: {note}" for note in self.notes)
        for what, count in Counter(map(_short, self.violations)).items():
            yield f"VIOLATION ({count}): {what}" if count > 1 else f"VIOLATION: {what}"


def under_faults(plan: Plan, site: Target, faults: Sequence[Fault], title: str) -> Report:
    """Run mixed jobs while these faults happen, as many as are planned, then judge, and close the target."""
    rng = random.Random(plan.seed)
    report = Report(f"{plan.jobs} jobs, {plan.kills} faults, {plan.cancels} cancels, {title}, seed {plan.seed}")
    book, began = Book(), time.monotonic()
    try:
        _run(site, plan, faults, rng, book, report)
    except (RuntimeError, TimeoutError, AssertionError, SystemExit) as error:
        report.violations.append(f"the campaign could not go on: {error}")
    finally:
        book.finished.set()
        site.close()
        report.violations += [*book.violations, *site.violations]
        report.took_s = time.monotonic() - began
    return report


def _run(site: Target, plan: Plan, faults: Sequence[Fault], rng: random.Random, book: Book, report: Report) -> None:
    draw = Draw(random.Random(rng.random()))
    jobs = plan.drawn(draw, rng)
    caller = Caller(site.url, Counter())
    # The first one warms up.
    paces_s = [] if plan.short else [verdict.pace_s(caller, draw) for _ in range(2)]
    until_s = time.monotonic() + 60 * plan.minutes
    strikes = schedule(rng, faults, plan.kills, len(jobs))
    injector = Injector(site.url, book, strikes, rng, until_s)
    innocents, guilty = [job for job in jobs if not job.poison], [job for job in jobs if job.poison]
    of_clients = {f"client-{i}": innocents[i::CLIENTS] for i in range(CLIENTS)} | {POISONER: guilty}
    listeners = {name: Listener(site.url, name, book) for name in of_clients}
    clients = [Client(name, site.url, own, book, until_s, pace_s=plan.pace_s) for name, own in of_clients.items()]
    Watcher(site.url, book)
    for thread in (*clients, injector):
        thread.start()
    told_s = time.monotonic()
    while any(thread.is_alive() for thread in (*clients, injector)):
        if time.monotonic() > told_s + TELL_S:
            told_s = time.monotonic()
            print(f"{book.ended()} of {len(jobs)} jobs have ended; {len(injector.done)} faults", file=sys.stderr)
        if stuck(book):
            book.wrong(f"no job has ended for {STUCK_S:.0f} s; open are {len(book.open())}")
            break
        time.sleep(0.5)
    report.struck = injector.done
    report.outcomes = Counter((entry.job.kind, entry.state or "open") for entry in book.entries.values())
    violations = report.violations
    violations += verdict.lost(book)
    violations += verdict.ends(book, caller, injector.windows)
    wrong, unheard = verdict.sockets(listeners, book)
    violations += wrong
    book.finished.set()
    violations += verdict.unfinished(caller)
    violations += verdict.times(caller)
    violations += verdict.idle(caller, site.replicas)
    violations += verdict.full_width(caller, draw, site.replicas)
    if paces_s:
        report.notes.append(
            f"{SLOTS} jobs of 8 steps at once took {paces_s[-1]:.1f} s on the fresh server, "
            f"{verdict.pace_s(caller, draw):.1f} s at the end"
        )
    before = verdict.recorded(caller, book)
    # What is swept by age waits for as long as the clock is set back.
    swept = not plan.short and not site.clock
    if swept:
        violations += verdict.unswept(site, before)
    with site.stopped(back=plan.restart):
        violations += verdict.files(site, before, swept=swept)
    if plan.restart:
        violations += verdict.changed(before, verdict.recorded(caller, book))
    report.notes += [f"answered {what}, {count} times" for what, count in book.strange.items()]
    connections = sum(listener.connections for listener in listeners.values())
    report.notes.append(f"`up` was started {site.starts} times; {CLIENTS} clients opened {connections} sockets")
    report.notes.append(f"{unheard} ends were lost with the socket that was to tell them")
    report.notes.append(
        f"{len(before) - len(book.entries)} jobs beside those that clients know of, the batches among them"
    )


def stuck(book: Book) -> bool:
    """Whether nothing has happened for too long."""
    with book.lock:
        moments = [max(entry.accepted_s, entry.ended_s) for entry in book.entries.values()]
    return bool(moments) and time.monotonic() - max(moments) > STUCK_S


def _short(violation: str) -> str:
    return violation if len(violation) < 1200 else f"{violation[:1200]}…"
