"""Periodic checks of the scheduler: silent replicas, jobs over their time limit, and its own invariants."""

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
"""The interval of the checks of replicas and time limits."""
CHECK_S, CHECKED_JOBS = 30.0, 200
"""The interval of the checks of the machine's invariants, and the most unfinished jobs with which they run."""


class Watch:
    """The periodic checks of one scheduler. put: queues the machine's commands, as `Writer.put`."""

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
        """Start a job's time limits at its submission and its start, and stop them at its end."""
        count = {"queued": self._time_limits.arrived, "started": self._time_limits.started}.get(event.kind)
        if count is not None and (job := self._machine.jobs.get(event.job_id)) is not None:
            count(job, time.time(), time.monotonic())
        if event.last:
            self._time_limits.ended(event.job_id)

    def recover(self, job: JobRecord) -> None:
        """Start the time limits of a job of an earlier epoch."""
        for count in (self._time_limits.arrived, self._time_limits.started):
            count(job, time.time(), time.monotonic())

    async def run(self) -> None:
        """Run the checks until cancelled."""
        looked_s = checked_s = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_S)
            late_s = time.monotonic() - looked_s - WATCH_S
            looked_s = time.monotonic()
            self._feeds.forget_idle()
            # While this process itself was suspended, replicas could not be heard.
            await self._registry.lose_silent(late_s if late_s > WATCH_S else 0.0)
            if checked_s + CHECK_S < looked_s and len(self._machine.jobs) <= CHECKED_JOBS:
                checked_s = looked_s
                for job_id, what in self._machine.check():
                    _log.error("the scheduler contradicts itself: %s; trace=%s", what, self._machine.trace(job_id))
            for job_id, failure in self._time_limits.failures(self._machine.jobs, time.monotonic()):
                self._put(self._machine.handle(JobRefused(job_id, failure), time.time()))
            if commands := self._machine.handle(TimePassed(), time.time()):
                self._put(commands)
