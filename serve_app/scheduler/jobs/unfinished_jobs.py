"""The jobs that clients know of and whose end they cannot know yet, in the orders in which they are listed.

A list, a count and the job that has waited longest are read without a look at the other jobs. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeAlias

from serve_app.scheduler.core.records import JobRecord

QueuePosition: TypeAlias = tuple[float, ...]
"""Where a job is in an order; its place in the order of submission tells equal ones apart."""


class Ordered:
    """Jobs in an order that does not change while they are in it."""

    def __init__(self, place: Callable[[JobRecord], QueuePosition]) -> None:
        self._place = place
        self._places: list[QueuePosition] = []
        self._jobs: dict[QueuePosition, JobRecord] = {}
        self._found: dict[str, QueuePosition] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[JobRecord]:
        return (self._jobs[place] for place in self._places)

    def add(self, job: JobRecord) -> None:
        place = self._found[job.row.job_id] = self._place(job)
        self._jobs[place] = job
        insort(self._places, place)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._found

    def position(self, job_id: str) -> int | None:
        """Return a job's place in the order, from 1; None of one that is not there."""
        place = self._found.get(job_id)
        return None if place is None else bisect_left(self._places, place) + 1

    def discard(self, job_id: str) -> None:
        """Take out a job if it is there."""
        if (place := self._found.pop(job_id, None)) is not None:
            del self._places[bisect_left(self._places, place)]
            del self._jobs[place]


class UnfinishedJobs(Mapping[str, JobRecord]):
    """Every one by its id, in the order of arrival.

    running: those whose start clients know of, the first to start first. waiting: the others, in the order they will
    start.
    """

    def __init__(self) -> None:
        # Not dicts: the first key of one whose first keys have been deleted is found by a scan over their places.
        self._jobs: OrderedDict[str, JobRecord] = OrderedDict()
        self._unstarted: OrderedDict[str, JobRecord] = OrderedDict()
        self.running = Ordered(lambda job: (job.started_s or 0.0, job.row.order))
        self.waiting = Ordered(lambda job: job.priority)
        self._of: dict[str, UnfinishedJobs] = {}

    def __getitem__(self, job_id: str) -> JobRecord:
        return self._jobs[job_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    def within(self, tenant: str) -> UnfinishedJobs:
        """Return those that a tenant knows of."""
        return self._of.get(tenant) or UnfinishedJobs() if tenant else self

    def by_tenant(self) -> dict[str, int]:
        """Return how many there are of each tenant that has some."""
        return {tenant: len(jobs) for tenant, jobs in self._of.items()}

    def by_arrival(self, states: Collection[str], *, descending: bool) -> tuple[Iterator[JobRecord], int]:
        """Return the jobs that are queued, running or both in the order of their arrival, and how many they are."""
        if states == {"running"}:
            running = sorted(self.running, key=lambda job: job.row.order, reverse=descending)
            return iter(running), len(running)
        jobs = self._unstarted if states == {"queued"} else self._jobs if states else OrderedDict[str, JobRecord]()
        return (jobs[job_id] for job_id in (reversed(jobs) if descending else jobs)), len(jobs)

    def oldest_waiting(self) -> JobRecord | None:
        """Return the one that has waited longest."""
        return next(iter(self._unstarted.values()), None)

    def add(self, job: JobRecord, *, started: bool) -> None:
        """Add a job that is not among them."""
        if job.tenant:
            self._of.setdefault(job.tenant, UnfinishedJobs())._put(job, started=started)
        self._put(job, started=started)

    def _put(self, job: JobRecord, *, started: bool) -> None:
        self._jobs[job.row.job_id] = job
        if started:
            self.running.add(job)
        else:
            self.waiting.add(job)
            self._unstarted[job.row.job_id] = job

    def start(self, job_id: str) -> JobRecord | None:
        """Note that clients know of a job's start; return it if it has waited until now."""
        if (job := self._unstarted.pop(job_id, None)) is not None:
            self.waiting.discard(job_id)
            self.running.add(job)
            if (own := self._of.get(job.tenant)) is not None:
                own.start(job_id)
        return job

    def discard(self, job_id: str) -> JobRecord | None:
        """Take out a job and return it, if it is there."""
        self._unstarted.pop(job_id, None)
        self.running.discard(job_id)
        self.waiting.discard(job_id)
        job = self._jobs.pop(job_id, None)
        if job is not None and (own := self._of.get(job.tenant)) is not None:
            own.discard(job_id)
            if not own:
                del self._of[job.tenant]
        return job
