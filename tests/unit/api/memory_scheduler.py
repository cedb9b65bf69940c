"""A scheduler that runs nothing: jobs live in memory, and the test says what happens to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve_app.errors import JobMissingError, UnavailableError
from serve_app.events import Event, Failure, Kind
from serve_app.graph.spec import NodeSpec
from serve_app.nodes.routes import PackRoute
from serve_app.scheduler.feeds import Feeds
from serve_app.scheduler.messages import (
    Accepted,
    Attached,
    ClusterView,
    Free,
    JobPage,
    JobView,
    News,
    QueueCount,
    QueueView,
    Reader,
    Submission,
)
from serve_app.store.changes import JobQuery
from tests.unit.api.node_specs import SPECS

IDLE = ClusterView(hosts=(), replicas=(), uptime_s=1.5, epoch=1)


class MemoryScheduler:
    """Implements SchedulerClient. `refusal`, while set, is raised by every call."""

    def __init__(self, specs: Mapping[str, NodeSpec] = SPECS, cluster: ClusterView = IDLE) -> None:
        self.jobs: dict[str, JobView] = {}
        self.streams: dict[str, list[Event]] = {}
        self.refusal: UnavailableError | None = None
        self.feeds = Feeds(epoch=1)
        self.freed: list[Free] = []
        self.pack_routes: dict[str, tuple[PackRoute, ...]] = {}
        self._seq = 0
        self._specs, self._cluster = specs, cluster

    # What the test drives ---------------------------------------------------------------------------------------------

    def start(self, job_id: str) -> None:
        self._become(job_id, "started", state="running", started_s=time.time())

    def cached(self, job_id: str, nodes: list[str]) -> None:
        self._become(job_id, "cached", {"nodes": nodes}, cached=tuple(nodes))

    def executing(self, job_id: str, node: str) -> None:
        self._become(job_id, "executing", {"node": node})

    def finish(self, job_id: str, node: str) -> None:
        self._become(job_id, "finished", {"node": node})

    def progress(self, job_id: str, node: str, value: int, maximum: int) -> None:
        self._become(job_id, "progress", {"node": node, "value": value, "max": maximum}, percent=99 * value // maximum)

    def preview(self, job_id: str, node: str, image: bytes) -> None:
        self._become(job_id, "preview", {"node": node, "image": image})

    def executed(self, job_id: str, node: str, output: Mapping[str, Any]) -> None:
        self._become(job_id, "executed", {"node": node, "output": output})

    def succeed(self, job_id: str, outputs: Mapping[str, Any]) -> None:
        for node, output in outputs.items():
            self._become(job_id, "executed", {"node": node, "output": output}, outputs=outputs)
        self._become(job_id, "success", state="success", percent=100, ended_s=time.time())

    def fail(self, job_id: str, failure: Mapping[str, Any]) -> None:
        self._become(job_id, "error", failure, state="error", failure=Failure.from_json(failure), ended_s=time.time())

    def _become(self, job_id: str, kind: Kind, data: Mapping[str, Any] | None = None, **changes: Any) -> None:
        stream = self.streams[job_id]
        self._seq += 1
        event = Event(job_id, self._seq, kind, time.time(), data or {})
        stream.append(event)
        self.jobs[job_id] = job = replace(self.jobs[job_id], **changes)
        if job.client_id is not None:
            self.feeds.put(job.client_id, event)
        if event.last or kind == "queued":
            self.feeds.queue_is(sum(job.ended_s is None for job in self.jobs.values()))

    # SchedulerClient --------------------------------------------------------------------------------------------------

    async def submit(self, submission: Submission) -> Accepted:
        self._answer()
        job_id = submission.job_id
        if job_id not in self.jobs:
            number = submission.number
            if number is None:
                number = float(len(self.jobs) * (-1 if submission.front else 1))
            self.streams[job_id] = []
            self.jobs[job_id] = JobView(
                job_id=job_id,
                number=number,
                state="queued",
                prompt=submission.prompt,
                outputs_to_execute=submission.outputs,
                client_id=submission.client_id,
                extra_data=submission.extra_data,
                created_s=time.time(),
                started_s=None,
                ended_s=None,
                percent=0,
                outputs={},
                failure=Failure(),
            )
            if submission.client_id is not None:
                self.feeds.hold(job_id, submission.client_id)
            self._become(job_id, "queued")
        return Accepted(job_id, self.jobs[job_id].number)

    async def cancel(self, job_id: str) -> bool:
        self._answer()
        if job_id not in self.jobs or self.jobs[job_id].ended_s is not None:
            return False
        ran = [event.data["node"] for event in self.streams[job_id] if event.kind == "executing"]
        job = self.jobs[job_id]
        where = {"node": ran[-1], "class_type": job.prompt[ran[-1]]["class_type"], "executed": []} if ran else {}
        self._become(
            job_id, "cancelled", where, state="cancelled", failure=Failure.from_json(where), ended_s=time.time()
        )
        return True

    async def cancel_all(self, job_ids: Sequence[str] | None, which: str | None = None) -> int:
        self._answer()
        wanted = [j for j in self.jobs if job_ids is None or j in job_ids]
        return sum([await self.cancel(j) for j in wanted if which in (None, self.jobs[j].state)])

    async def count(self) -> QueueCount:
        view = await self.queue()
        return QueueCount(len(view.running), len(view.pending))

    async def queue(self) -> QueueView:
        self._answer()
        jobs = sorted(self.jobs.values(), key=lambda job: job.number)
        running = sorted((job for job in jobs if job.state == "running"), key=lambda job: job.started_s or 0)
        return QueueView(tuple(running), tuple(job for job in jobs if job.state == "queued"))

    async def job(self, job_id: str) -> JobView | None:
        self._answer()
        return self.jobs.get(job_id)

    async def events(self, job_id: str, after: int, timeout_s: float) -> list[Event]:
        self._answer()
        if job_id not in self.streams:
            raise JobMissingError(f"no job has the id {job_id!r}")
        until = time.monotonic() + timeout_s
        while not (found := [e for e in self.streams[job_id] if e.seq > after]) and time.monotonic() < until:
            if self.jobs[job_id].ended_s is not None:
                break
            await asyncio.sleep(0.005)
        return found

    async def page(self, query: JobQuery) -> JobPage:
        self._answer()
        found = [
            job
            for job in self.jobs.values()
            if job.state in query.states and (job.state != "cancelled" or job.started_s is not None)
        ]
        keys = {
            "created": lambda job: job.created_s,
            "ended": lambda job: self.streams[job.job_id][-1].seq,
            "duration": lambda job: (job.ended_s or 0) - (job.started_s or 0),
        }
        found.sort(key=keys[query.sort], reverse=query.descending)
        until = None if query.limit is None else query.offset + query.limit
        return JobPage(tuple(found[query.offset : until]), len(found))

    async def forget(self, job_ids: Sequence[str] | None) -> None:
        self._answer()
        for job_id in [
            j for j, job in self.jobs.items() if job.ended_s is not None and (job_ids is None or j in job_ids)
        ]:
            del self.jobs[job_id]

    async def free(self, wish: Free) -> None:
        self._answer()
        self.freed.append(wish)

    async def answered(self, job_id: str) -> None:
        self.feeds.release(job_id)

    async def attach(self, client_id: str, token: str) -> Attached:
        self._answer()
        running = [j.job_id for j in self.jobs.values() if j.client_id == client_id and j.state == "running"]
        return replace(self.feeds.attach(client_id, token), running=tuple(running))

    async def news(self, readers: Mapping[str, Reader], queue: int, timeout_s: float) -> News:
        self._answer()
        return await self.feeds.news(readers, queue, timeout_s)

    async def specs(self) -> Mapping[str, NodeSpec]:
        self._answer()
        return self._specs

    async def routes(self) -> Mapping[str, tuple[PackRoute, ...]]:
        self._answer()
        return self.pack_routes

    async def story(self, job_id: str) -> list[tuple[float, str]]:
        return [(1.5, "arrived")] if job_id in self.jobs else []

    async def cluster(self) -> ClusterView:
        self._answer()
        return self._cluster

    def _answer(self) -> None:
        if self.refusal is not None:
            raise self.refusal
