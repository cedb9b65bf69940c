"""What the scheduler sees to by the clock: silent replicas, jobs whose time is up, and its own state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from serve_app import log
from serve_app.events import Event
from serve_app.scheduler.core.events import Command, JobRefused, TimePassed
from serve_app.scheduler.core.machine import Machine
from serve_app.scheduler.core.records import JobRecord
from serve_app.scheduler.core.time_limit import JobTimeLimits
from serve_app.scheduler.events.client_feeds import Feeds
from serve_app.scheduler.replicas.registry import ReplicaRegistry

_log = log.get("scheduler")

WATCH_S = 1.0
"""How often it looks for replicas that have been silent, and for jobs that have taken, for too long."""
CHECK_S, CHECKED_JOBS = 30.0, 200
"""How often the machine's state is checked, while it has at most so many unfinished jobs."""


class Watch:
    """One a scheduler's life. put: takes in what the machine decides, as `Writer.put`."""

    def __init__(
        self,
        machine: Machine,
        registry: ReplicaRegistry,
        feeds: Feeds,
        time_limits: JobTimeLimits,
        put: Callable[[list[Command]], Any],
    ) -> None:
        self._machine = machine
        self._registry = registry
        self._feeds = feeds
        self._time_limits = time_limits
        self._put = put

    def take(self, event: Event) -> None:
        """Count the time of a job from its submission and its start on, until it has ended."""
        count = {"queued": self._time_limits.arrived, "started": self._time_limits.started}.get(event.kind)
        if count is not None and (job := self._machine.jobs.get(event.job_id)) is not None:
            count(job, time.time(), time.monotonic())
        if event.last:
            self._time_limits.ended(event.job_id)

    def recover(self, job: JobRecord) -> None:
        """Count the time of a job of an earlier life."""
        for count in (self._time_limits.arrived, self._time_limits.started):
            count(job, time.time(), time.monotonic())

    async def run(self) -> None:
        """Take replicas that have been silent for too long for lost, and end jobs whose time is up; until cancelled."""
        looked_s = checked_s = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_S)
            late_s = time.monotonic() - looked_s - WATCH_S
            looked_s = time.monotonic()
            self._feeds.forget_idle()
            # What this process did not hear while it was away itself is held against nobody.
            await self._registry.lose_silent(late_s if late_s > WATCH_S else 0.0)
            if checked_s + CHECK_S < looked_s and len(self._machine.jobs) <= CHECKED_JOBS:
                checked_s = looked_s
                for job_id, what in self._machine.check():
                    _log.error("the scheduler contradicts itself: %s; story=%s", what, self._machine.trace(job_id))
            for job_id, failure in self._time_limits.failures(self._machine.jobs, time.monotonic()):
                self._put(self._machine.handle(JobRefused(job_id, failure), time.time()))
            if commands := self._machine.handle(TimePassed(), time.time()):
                self._put(commands)
