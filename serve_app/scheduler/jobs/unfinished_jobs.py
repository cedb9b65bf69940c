"""The published unfinished jobs, in the orders of their lists.

Lists, counts and the longest waiting job are read without a scan. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeAlias

from serve_app.scheduler.core.records import JobRecord

QueuePosition: TypeAlias = tuple[float, ...]
"""A job's sort key; its position in the order of submission distinguishes equal ones."""


class Ordered:
    """Jobs sorted by a key that does not change while they are contained."""

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
        """Return a job's position, from 1, or None."""
        place = self._found.get(job_id)
        return None if place is None else bisect_left(self._places, place) + 1

    def discard(self, job_id: str) -> None:
        """Remove a job if it is contained."""
        if (place := self._found.pop(job_id, None)) is not None:
            del self._places[bisect_left(self._places, place)]
            del self._jobs[place]


class UnfinishedJobs(Mapping[str, JobRecord]):
    """The unfinished jobs by id, in order of arrival.

    running: those whose start is published, by start. waiting: the others, in the order in which they will start.
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
        """Return the jobs that a tenant can see."""
        return self._of.get(tenant) or UnfinishedJobs() if tenant else self

    def by_tenant(self) -> dict[str, int]:
        """Return the number of jobs of each tenant."""
        return {tenant: len(jobs) for tenant, jobs in self._of.items()}

    def by_arrival(self, states: Collection[str], *, descending: bool) -> tuple[Iterator[JobRecord], int]:
        """Return queued or running jobs or both, in order of arrival, and their number."""
        if states == {"running"}:
            running = sorted(self.running, key=lambda job: job.row.order, reverse=descending)
            return iter(running), len(running)
        jobs = self._unstarted if states == {"queued"} else self._jobs if states else OrderedDict[str, JobRecord]()
        return (jobs[job_id] for job_id in (reversed(jobs) if descending else jobs)), len(jobs)

    def oldest_waiting(self) -> JobRecord | None:
        """Return the job that has waited longest, or None."""
        return next(iter(self._unstarted.values()), None)

    def add(self, job: JobRecord, *, started: bool) -> None:
        """Add a new job."""
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
        """Move a waiting job to the running ones; return it, or None if it was not waiting."""
        if (job := self._unstarted.pop(job_id, None)) is not None:
            self.waiting.discard(job_id)
            self.running.add(job)
            if (own := self._of.get(job.tenant)) is not None:
                own.start(job_id)
        return job

    def discard(self, job_id: str) -> JobRecord | None:
        """Remove and return a job, or return None."""
        self._unstarted.pop(job_id, None)
        self.running.discard(job_id)
        self.waiting.discard(job_id)
        job = self._jobs.pop(job_id, None)
        if job is not None and (own := self._of.get(job.tenant)) is not None:
            own.discard(job_id)
            if not own:
                del self._of[job.tenant]
        return job
