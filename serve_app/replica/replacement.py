"""Closes and replaces a replica whose nodes or engine go on after their task, or whose machine is about to go."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from serve_app import log
from serve_app.execution.executing import Underway
from serve_app.graph.plan import Task, TaskId
from serve_app.replica.membership import Membership
from serve_app.replica.watchdog import REPLACED, exit_process
from serve_app.scheduler.core.backoff import Owner
from serve_app.scheduler.protocol.messages import Draining, NodesLinger, Reopened

_log = log.get("replica")

LOOK_S = 0.1
"""How often a draining replica checks whether it may stay."""
CANCELLED, CANCELLED_S = 64, 1.0
"""How many cancellations are remembered, and the delay until the engine's unwanted work is detected."""
LEAVE_S = 5.0
"""How long a replica that must end waits for the scheduler to take its tasks back; its notice to leave by a time."""


class ReplicaReplacement:
    """Watches the runs of one replica's tasks and checks, and replaces the replica, since a thread cannot be killed.

    running: the runs of its tasks. leave: hands its tasks back. stop_s: how long a cancelled node may go on. Then the
    replica takes no more tasks, and hands over those that wait for a thread; unless the node stops within finish_s, or
    as soon as nothing else runs, it hands over the others too and ends its process by `exit`. cancelled_time_s: how
    long the engine may compute cancelled work; after that the process ends at once.
    """

    def __init__(
        self,
        membership: Membership,
        running: Mapping[TaskId, asyncio.Task[None]],
        leave: Callable[[], Awaitable[None]],
        *,
        stop_s: float,
        finish_s: float,
        cancelled_time_s: float,
        exit: Callable[[int], object],
    ) -> None:
        self._membership = membership
        self._running = running
        self._leave = leave
        self._stop_s, self._finish_s, self._cancelled_time_s = stop_s, finish_s, cancelled_time_s
        self._exit = exit
        # By run of a task or check, also of an ended one whose nodes go on. Not by the task's id, which a scheduler
        # that has forgotten it may reuse.
        self._watched: dict[asyncio.Task[None], Underway] = {}
        self._tasks: dict[asyncio.Task[None], Task] = {}
        self._stuck: set[asyncio.Task[None]] = set()
        self._blamed: set[Draining] = set()
        # Times and owners of the last cancellations.
        self.cancelled: deque[tuple[float, Draining]] = deque(maxlen=CANCELLED)
        self._replacing: asyncio.Task[None] | None = None
        self.left_for = ""
        """Why this replica has left by a time, for good; "" if it has not."""
        self._closed_for = ""
        """Why this replica takes no more tasks; "" if it does."""
        self._engine_closed = False
        self._computed_for: Draining | None = None
        """Whose cancelled job the engine computes."""
        self._going_on: frozenset[Owner] = frozenset()

    def names(self) -> list[str]:
        """Return which nodes of which jobs run here. Callable from any thread."""
        return [name for underway in list(self._watched.values()) for name in underway.names()]

    @property
    def waiting(self) -> set[asyncio.Task[None]]:
        """The tasks' runs that only wait for a thread."""
        return {run for run in self._running.values() if self._watched[run].waits}

    @property
    def stuck(self) -> int:
        """The number of runs whose nodes go on though they had to stop."""
        return len(self._stuck)

    def joined(self) -> None:
        """Report to a scheduler that the replica has joined why it takes no tasks, if so."""
        self._going_on = frozenset()
        if self._closed_for:
            self._membership.send(Draining(by_job=False, why=self._closed_for))

    def watch(self, run: asyncio.Task[None], underway: Underway, task: Task | None = None) -> None:
        """Watch a run of a task, or of a check."""
        self._watched[run] = underway
        if task is not None:
            self._tasks[run] = task

    def cancel(self, run: asyncio.Task[None]) -> Task | None:
        """Cancel a run, and see that its nodes stop. Return its task, None if it is a check's."""
        loop, task = asyncio.get_running_loop(), self._tasks.get(run)
        self.cancelled.append((loop.time(), _whose(task)))
        run.cancel()
        loop.call_later(self._stop_s, self._see_stopped, run)
        return task

    def blame_nobody(self) -> None:
        """Blame no owner for nodes of the present runs that go on: their jobs are not cancelled."""
        self._tasks.clear()

    def left(self, runs: set[asyncio.Task[None]]) -> None:
        """Note runs that go on after stop_s, if there are some."""
        if runs:
            self._stuck |= runs
            self._replace(Draining(by_job=False))

    async def leave_by(self, why: str, end_s: float) -> None:
        """Take no more tasks, and leave once those that run have ended, at the latest LEAVE_S before a Unix time."""
        self._replacing = asyncio.current_task()
        self._membership.send(Draining(by_job=False, why=self._close(why)))
        while self._running and time.time() < end_s - LEAVE_S:
            await asyncio.sleep(LOOK_S)
        await self._leave()
        self.left_for = why

    def over(self, run: asyncio.Task[None]) -> None:
        """Note that a task or check has ended, and make sure that its nodes stop."""
        loop, underway = asyncio.get_running_loop(), self._watched.get(run)
        if underway is not None:
            # Before it is looked whether any goes on, for the last may end meanwhile.
            underway.ended = partial(self._call_in, loop, self._forget, run)
        if underway:
            loop.call_later(self._stop_s, self._see_stopped, run)
            self._say_going_on()
        else:
            self._forget(run)

    def _call_in(self, loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
        """Have a function called in the loop; from any thread, also as the loop ends."""
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(function, *arguments)

    def _say_going_on(self) -> None:
        """Report the owners of nodes that go on after their task's end, unless they were reported or blamed already."""
        over = [_whose(self._tasks.get(run)) for run, underway in self._watched.items() if run.done() and underway]
        blamed = {_owner(whose) for whose in self._blamed}
        answering = [whose for whose in (*over, self._computed_for) if whose is not None and whose.by_job]
        if (owners := frozenset(map(_owner, answering)) - blamed) != self._going_on:
            self._going_on = owners
            self._membership.send(NodesLinger(owners))

    def _see_stopped(self, run: asyncio.Task[None]) -> None:
        if self._watched.get(run):
            self._stuck.add(run)
            self._replace(_whose(self._tasks.get(run)))
        else:
            self._forget(run)

    def _forget(self, run: asyncio.Task[None]) -> None:
        """Note that all nodes of an ended run have stopped."""
        self._watched.pop(run, None)
        self._tasks.pop(run, None)
        self._stuck.discard(run)
        self._say_going_on()

    def _replace(self, because: Draining) -> None:
        """Begin to replace this replica: a cancelled node goes on, and a thread cannot be killed."""
        if because not in self._blamed:
            self._blamed.add(because)
            self._say_going_on()
            why = self._close(f"a node goes on {self._stop_s:g} s after it had to stop")
            reported = asyncio.create_task(self._membership.send_and_wait(replace(because, why=why)))
            self._replacing = self._replacing or asyncio.create_task(self._give_way(reported, why))

    async def _give_way(self, reported: asyncio.Task[None], why: str) -> None:
        await asyncio.wait([reported], timeout=LEAVE_S)
        if not await self._stops_while_others_finish():
            await self._hand_over(why)

    def _close(self, why: str) -> str:
        """Note why this replica takes no more tasks, and return that."""
        self._closed_for = why
        _log.warning("taking no more tasks: %s; running: %s", why, ", ".join(self.names()) or "no node")
        return why

    def _reopen(self) -> None:
        """Take tasks again, if nothing goes on any more that had to stop."""
        if self._closed_for and not (self._stuck or self._engine_closed or self._replacing):
            self._closed_for = ""
            _log.info("taking tasks again: what went on has stopped")
            self._membership.send(Reopened())

    def computes_unwanted(self, seconds: float) -> None:
        """Note for how long the engine has been computing nothing but cancelled work; 0 once it has stopped."""
        why = f"the engine has been computing for {seconds:g} s what was cancelled"
        self._computed_for = self._cancelled_before(seconds) if seconds else None
        self._say_going_on()
        if seconds >= self._cancelled_time_s:
            if self._replacing is None:
                self._replacing = asyncio.create_task(self._give_way_at_once(why, self._cancelled_before(seconds)))
        elif seconds >= self._stop_s and not self._engine_closed:
            self._engine_closed = True
            self._membership.send(Draining(by_job=False, why=self._close(why)))
        elif not seconds and self._engine_closed:
            self._engine_closed = False
            self._reopen()

    def _cancelled_before(self, seconds: float) -> Draining:
        """Return the owner of the last job that was cancelled before that time: the engine computes its work."""
        began_s = asyncio.get_running_loop().time() - seconds + CANCELLED_S
        return next((whose for at_s, whose in reversed(self.cancelled) if at_s <= began_s), Draining(by_job=False))

    async def _give_way_at_once(self, why: str, because: Draining) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._membership.send_and_wait(replace(because, why=why)), LEAVE_S)
        await self._hand_over(why)

    async def _hand_over(self, why: str) -> None:
        """Hand all tasks back to the scheduler, and end this process."""
        _log.warning("leaving, for another replica to take over: %s; running: %s", why, ", ".join(self.names()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._leave(), self._stop_s + LEAVE_S)
        exit_process(REPLACED, why, self.names, self._exit)

    async def _stops_while_others_finish(self) -> bool:
        """Let other tasks go on for finish_s; return whether the cancelled node has stopped meanwhile.

        Those that only wait for a thread, which the node that goes on may never free, are handed over at once.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._finish_s
        waited: set[asyncio.Task[None]] = set()
        while loop.time() < end_s and set(self._running.values()) - self._stuck and not self._membership.leaving:
            await asyncio.sleep(LOOK_S)
            # Twice in a row: a call whose thread has just returned looks the same for a moment.
            waiting = self.waiting
            for run in waiting & waited:
                run.cancel()
            waited = waiting
            for run in [run for run in self._stuck if not self._watched.get(run)]:
                self._forget(run)
            if not self._stuck:
                self._blamed.clear()
                self._replacing = None
                self._reopen()
                return True
        return False


def _whose(task: Task | None) -> Draining:
    """Return the owner to blame for a task that goes on; of None nobody."""
    return Draining(by_job=False) if task is None else Draining(task.tenant, task.client_id)


def _owner(whose: Draining) -> Owner:
    """Return the owner that is charged with it."""
    return whose.tenant, None if whose.tenant else whose.client_id
