"""The scheduler's interface for replicas: registration, mailboxes, reports, and loss of silent ones.

A message stays in its replica's mailbox until a poll has acknowledged it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator

from serve_app import log
from serve_app.errors import ConcurrencyLimitError, StaleAttemptError, StaleEpochError
from serve_app.graph.plan import TaskId
from serve_app.graph.spec import NodeSpec
from serve_app.scheduler.core.events import MachineEvent, ReplicaJoined, ReplicaLeft, ReplicaLost, Reported
from serve_app.scheduler.durability.lease import SchedulerLease
from serve_app.scheduler.jobs.remote_validation import RemoteValidation
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import Checked, Message, ReplicaInfo, Report, SocketFrame
from serve_app.scheduler.replicas.abilities import Abilities
from serve_app.scheduler.replicas.mailbox import Mailbox
from serve_app.store.database.changes import Change, CountersReserved
from serve_app.store.files.reserved import Contents

POLL_S = 5.0
"""How long a replica's poll waits for a message before it is answered empty."""
TROUBLE_S = 15.0
"""How long a trouble is shown that an unregistered replica reported; it repeats the report sooner."""
_log = log.get("scheduler")


class ReplicaRegistry:
    """The registered replicas of one scheduler. Implements SchedulerForReplicas.

    apply: passes an event to the machine; its future is done once that is durable. record: makes a change durable.
    is_current: whether an attempt is the current one. silence_s: how long a replica may be silent before it is lost;
    silenced: is called with it, as its process may be alive.
    """

    def __init__(
        self,
        lease: SchedulerLease,
        pools: Collection[str],
        abilities: Abilities,
        *,
        validation: RemoteValidation,
        apply: Callable[[MachineEvent], asyncio.Future[None]],
        record: Callable[[Change], Awaitable[None]],
        is_current: Callable[[TaskId], bool],
        silence_s: float,
        silenced: Callable[[str], None],
    ) -> None:
        self._lease = lease
        self._pools = pools
        self._abilities = abilities
        self._apply = apply
        self._record = record
        self._is_current = is_current
        self._silence_s = silence_s
        self._mailboxes: dict[str, Mailbox] = {}
        self._hosts: dict[str, HostStats] = {}
        self._troubles: dict[str, tuple[float, str, str]] = {}
        self._validation = validation
        self._silenced = silenced

    async def join(self, info: ReplicaInfo, specs: list[NodeSpec], host: HostStats) -> int:
        self._lease.check()
        if info.pool not in self._pools:
            raise StaleEpochError(f"pool {info.pool!r} is not one of this scheduler's")
        await self._abilities.learn(self._lease.epoch, info.pool, specs, info.routes)
        self._validation.lost(info.replica_id)
        self._mailboxes[info.replica_id] = Mailbox(last_heartbeat_s=time.monotonic())
        self._hosts[info.replica_id] = host
        self._troubles.pop(info.replica_id, None)
        await self._apply(ReplicaJoined(info, host.host))
        _log.info("replica %s joined pool %s with %d slots", info.replica_id, info.pool, info.slots)
        return self._lease.epoch

    async def poll(self, replica_id: str, epoch: int, after: int) -> list[tuple[int, Message]]:
        mailbox = self._mailbox(replica_id, epoch)
        mailbox.acknowledge(after)
        if not mailbox.due.is_set():
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
                async with asyncio.timeout(POLL_S):
                    await mailbox.due.wait()
        self._mailbox(replica_id, epoch)
        return mailbox.take()

    async def report(self, replica_id: str, epoch: int, reports: list[Report], host: HostStats | None) -> None:
        """Apply a replica's reports in order, and return once they are durable."""
        self._mailbox(replica_id, epoch)
        if host is not None:
            self._hosts[replica_id] = host
        for report in reports:
            if isinstance(report, Checked):
                self._validation.answered(report)
        applied = [self._apply(Reported(replica_id, report)) for report in reports if not isinstance(report, Checked)]
        # Most reports change nothing durable.
        if waiting := [durable for durable in applied if not durable.done() or durable.exception() is not None]:
            await asyncio.gather(*waiting)

    async def reserve(
        self, task_id: TaskId, node_id: str, key: str, at_least: int, contents: Contents
    ) -> tuple[int, bool]:
        self._lease.check()
        if not self._is_current(task_id):
            raise StaleAttemptError(f"attempt {task_id.attempt} of job {task_id.job_id} has been replaced")
        change = CountersReserved(task_id.job_id, node_id, key, at_least, contents)
        await self._record(change)
        # If the database refuses the job, the change may be filled in but not committed.
        if change.again is None or not self._is_current(task_id):
            raise StaleAttemptError(f"job {task_id.job_id} has ended meanwhile")
        return change.first, change.again

    async def leave(self, replica_id: str, epoch: int) -> None:
        if epoch == self._lease.epoch:
            _log.info("replica %s leaves", replica_id)
            await self._gone(replica_id, ReplicaLeft(replica_id))

    async def lost(self, replica_id: str, why: str = "") -> None:
        """Retry the tasks of a replica that has died or is silent, and count the loss for their jobs."""
        _log.warning("replica %s is lost%s", replica_id, why and f": {why}")
        await self._gone(replica_id, ReplicaLost(replica_id, self._validation.under_way(replica_id), why))

    async def report_trouble(self, replica_id: str, pool: str, why: str) -> None:
        self._lease.check()
        now_s = time.monotonic()
        self._troubles = {name: trouble for name, trouble in self._troubles.items() if now_s - trouble[0] < TROUBLE_S}
        self._troubles[replica_id] = (now_s, pool, why)
        if replica_id in self._mailboxes:
            await self.lost(replica_id, why)

    def troubles(self) -> Iterator[tuple[str, str, str]]:
        """Yield (replica, pool, reason) of unregistered replicas that have reported a trouble lately."""
        now_s = time.monotonic()
        for replica_id, (said_s, pool, why) in self._troubles.items():
            if now_s - said_s < TROUBLE_S:
                yield replica_id, pool, why

    async def _gone(self, replica_id: str, event: MachineEvent) -> None:
        if self._mailboxes.pop(replica_id, None) is not None:
            self._hosts.pop(replica_id, None)
            self._validation.lost(replica_id)
            await self._apply(event)

    def _mailbox(self, replica_id: str, epoch: int) -> Mailbox:
        self._lease.check()
        mailbox = self._mailboxes.get(replica_id)
        if mailbox is None or epoch != self._lease.epoch:
            raise StaleEpochError(
                f"replica {replica_id} is not registered in epoch {self._lease.epoch} and must join again"
            )
        mailbox.last_heartbeat_s = time.monotonic()
        return mailbox

    def mail(self, replica_id: str, message: Message) -> None:
        """Put a message into a replica's mailbox, if it is registered."""
        if mailbox := self._mailboxes.get(replica_id):
            mailbox.put(message)

    def pass_on(self, replica_id: str, frame: SocketFrame) -> None:
        """Put a websocket frame into a replica's mailbox, if it is registered. Errors: ConcurrencyLimitError if it is
        full.
        """
        if (mailbox := self._mailboxes.get(replica_id)) is not None:
            if not mailbox.has_room():
                raise ConcurrencyLimitError(f"replica {replica_id} does not read what clients say", retry_after_s=5)
            mailbox.put(frame)

    def mail_all(self, message: Message) -> None:
        """Put a message into every mailbox."""
        for mailbox in self._mailboxes.values():
            mailbox.put(message)

    def hosts(self) -> Iterable[HostStats]:
        """Return the replicas' last statistics of their hosts."""
        return self._hosts.values()

    async def lose_silent(self, late_s: float) -> None:
        """Lose replicas that have been silent for silence_s. late_s: how long this process was suspended."""
        for mailbox in self._mailboxes.values():
            mailbox.last_heartbeat_s += late_s
        now_s = time.monotonic()
        for replica_id in [
            name for name, box in self._mailboxes.items() if now_s - box.last_heartbeat_s > self._silence_s
        ]:
            _log.error("replica %s has said nothing for %g s", replica_id, self._silence_s)
            self._silenced(replica_id)
            await self.lost(replica_id)
