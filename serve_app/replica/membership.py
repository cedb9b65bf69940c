"""A replica's membership with the scheduler: it joins, polls for messages, sends reports, and joins again.

Reports are batched, one call at a time: those of nodes wait a moment for more or for their task's end, a deferrable
task's end for others if a call has just been made, and of progress only the newest value per node is sent. With a
scheduler of another epoch, running tasks are void: all are dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol

from serve_app import log
from serve_app.errors import NotReadyError, StaleEpochError, UnavailableError
from serve_app.graph.spec import NodeSpec
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import (
    Evicted,
    Message,
    NodeFinished,
    NodePreviewed,
    NodeProgressed,
    NodesCached,
    NodeStarted,
    ReplicaInfo,
    Report,
    ResidentWeights,
    SchedulerForReplicas,
)

_log = log.get("deployments.membership")

PROGRESS_S = 0.05
"""How long progress may wait for other reports to be batched with."""
GATHER_S = 0.01
"""How long reports of nodes wait to be batched: a call costs both processes more than its content."""
ASK_S = 0.005
"""How long the next poll after a message waits for a report to go with it."""
HOST_S = 2.0
"""How often the host's memory and GPUs are reported."""


class MembershipListener(Protocol):
    """The replica's reactions to events of its membership."""

    def joined(self) -> None: ...

    def take(self, message: Message) -> None: ...

    async def lost_touch(self) -> None:
        """Drop all running tasks: a scheduler that does not know this replica has reassigned them."""
        ...


class Membership:
    """The membership of one replica. specs: of the node classes that it can run. host: measures its host."""

    def __init__(
        self,
        scheduler: SchedulerForReplicas,
        info: ReplicaInfo,
        specs: Mapping[str, NodeSpec],
        host: Callable[[], HostStats],
        member: MembershipListener,
    ) -> None:
        self._scheduler = scheduler
        self._info = info
        self._specs = specs
        self._host = host
        self._member = member
        self._outbox: dict[Hashable, Report] = {}
        self._numbers = itertools.count()
        self._due = asyncio.Event()
        self._reporting = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = float("inf")
        self._epoch = 0
        self._reported_s = float("-inf")
        self.leaving = False

    async def run(self) -> None:
        """Run until cancelled, or until the replica leaves; reconnects to new schedulers."""
        reported = ""
        while True:
            try:
                self._epoch = await self._scheduler.join(self._info, list(self._specs.values()), self._host())
                reported = ""
                self._member.joined()
                await self._serve_epoch()
            except (StaleEpochError, UnavailableError) as error:
                if self.leaving:
                    return
                if str(error) != reported:  # another server may own the database for long
                    reported = str(error)
                    _log.warning("joining again: %s", error)
                await self._member.lost_touch()
                await asyncio.sleep(0.2)

    async def leave(self) -> None:
        """Leave the scheduler's registry."""
        self.leaving = True
        try:
            await self._scheduler.leave(self._info.replica_id, self._epoch)
        except (StaleEpochError, NotReadyError) as error:
            _log.info("left without a word: %s", error)

    def send(self, report: Report, *, deferrable: bool = False) -> None:
        """Queue a report, to be sent in order. deferrable: it may wait to be batched, as `Task.deferrable`."""
        key: Hashable = next(self._numbers)
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        match report:
            case NodeProgressed() | NodePreviewed():
                # A newer value replaces a waiting one: after the node's start and before its end.
                key = report.task_id, report.node_id, type(report)
                due_s += PROGRESS_S
            case NodeStarted() | NodeFinished() | NodesCached() | Evicted() | ResidentWeights():
                due_s += GATHER_S
            case _ if deferrable:
                due_s = max(due_s, self._reported_s + GATHER_S)
        self._outbox[key] = report
        if due_s <= loop.time():
            self._due.set()
        elif due_s < self._timer_s:
            self._cancel_timer()
            self._timer, self._timer_s = loop.call_at(due_s, self._due.set), due_s

    async def send_and_wait(self, report: Report) -> None:
        """Send a report at once, and return once it has arrived, or the scheduler no longer knows this replica."""
        with contextlib.suppress(StaleEpochError, UnavailableError):
            await self._scheduler.report(self._info.replica_id, self._epoch, [report], None)

    def discard_unsent(self) -> None:
        """Discard reports that have not been sent."""
        self._outbox.clear()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_s = None, float("inf")

    async def _serve_epoch(self) -> None:
        loops = [asyncio.create_task(f()) for f in (self._take_messages, self._send_reports, self._watch_host)]
        try:
            await asyncio.gather(*loops)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def _take_messages(self) -> None:
        cursor = 0
        while True:
            messages = await self._scheduler.poll(self._info.replica_id, self._epoch, cursor)
            for seen, message in messages:
                cursor = seen
                self._member.take(message)
            if messages:
                self._reporting.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_S):
                        await self._reporting.wait()

    async def _send_reports(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            self._cancel_timer()
            reports, self._outbox = list(self._outbox.values()), {}
            if not reports:  # discarded
                continue
            self._reported_s = asyncio.get_running_loop().time()
            self._reporting.set()
            await self._scheduler.report(self._info.replica_id, self._epoch, reports, None)

    async def _watch_host(self) -> None:
        while True:
            await asyncio.sleep(HOST_S)
            await self._scheduler.report(self._info.replica_id, self._epoch, [], await asyncio.to_thread(self._host))
