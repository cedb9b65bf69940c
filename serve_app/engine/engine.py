"""The engine's loop: one thread that answers evaluations of many jobs with one forward after another.

Trajectories join when they are submitted, are answered as `batcher.share` decides, and leave when they end, fail or are
cancelled. An error of a trajectory or a call is its own and does not end the loop; only the loss of the device
(`device_lost`) closes the engine. One-off model work (`call`) runs in the same thread, so a device and its weights are
only used from here. Between two forwards calls get about the time of one forward: a job that begins delays the others
by a step at most, and jobs that come together begin together. Equal work of several jobs is batched (`gather`). A
single call that takes longer than a forward is not split here; its caller splits it (`work`, tiles).

A GPU runs asynchronously, with at most two forwards enqueued ahead: so a job joins, and a cancelled one leaves, within
two forwards. Durations are measured on the device; progress and results are delivered once it has reached them. Calls
that no run depends on go to the side stream (`Timeline.side_stream`) and cost forwards only the host's time.

Once all jobs of a forward or call have cancelled it, a CPU ends it between two operations (`stopping`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import perf_counter, time
from typing import Any, TypeAlias, TypeVar

import torch

from serve_app import tracing
from serve_app.engine.batcher import in_turn, share
from serve_app.engine.curve import Curves
from serve_app.engine.device_lost import DeviceLostError, check, is_lost
from serve_app.engine.forwards import Counters, Forwards
from serve_app.engine.in_flight import Closeable, Completion, InFlight, InFlightQueue, Run, close
from serve_app.engine.memory import EvictableWeights, Memory
from serve_app.engine.side_stream_pool import SideStreamPool
from serve_app.engine.side_work import PAUSED, Call, Calls, fail
from serve_app.engine.stopping import Stoppable, StoppableFuture, StoppedError, unwanted
from serve_app.engine.timeline import Timeline
from serve_app.engine.trajectory import Trajectory
from serve_app.errors import DeviceMemoryError, UnavailableError
from serve_app.log import get
from serve_app.sampling.lazy_sum import compute
from serve_app.sampling.request import Sampled
from serve_app.sampling.samplers.error_estimate import read

log = get("engine")

A = TypeVar("A")
Q = TypeVar("Q")
T = TypeVar("T")
W = TypeVar("W")

IN_FLIGHT = 2
"""How many turns with forwards may be in flight; as many calls on the side stream."""

BRIEF_S = 0.5
"""Pieces that were in a forward that took less are not checked for cancellation within forwards: that costs some
microseconds per operation, of which small networks have hundreds in some tens of milliseconds.
"""

OVERTAKES = 16
"""How many forwards may overtake a call on the side stream; then they wait for it."""


class _Close:
    pass


_Item: TypeAlias = Run | Call | _Close


class Engine:
    """Runs trajectories and one-off model work in a thread of its own, without autograd.

    max_cells: the most latent cells of all rows in one forward; fewer where the device has run out of memory.
    timeline: of the device of its models (`timeline_of`). memory: of that device, if known.
    weights: those on it, of which idle ones make way for forwards.
    """

    def __init__(
        self,
        max_cells: int,
        timeline: Timeline,
        memory: Memory | None = None,
        weights: EvictableWeights | None = None,
    ) -> None:
        self.counters = Counters()
        self.memory = memory
        self.turn = 0
        """The number of its thread's turn, from 1: a run that joins, a forward, a call; 0 while it waits for work."""
        self._turns = 0
        self._at_work_for: tuple[StoppableFuture[Any], ...] = ()
        self.pool = SideStreamPool(memory, weights) if timeline.side_stream is not None else SideStreamPool()
        """The memory of the side stream."""
        self._forwards = Forwards(max_cells, self.counters, memory, weights, self.pool)
        self._curves = Curves()
        self.timeline = timeline
        self._in_flight, self._side_in_flight = InFlightQueue(), InFlightQueue()
        self.inbox: SimpleQueue[_Item] = SimpleQueue()
        """What its thread has not taken in yet."""
        self._runs: list[Run] = []
        self._calls = Calls()
        self._side_calls = self._calls if timeline.side_stream is None else Calls()
        # The costs of the largest evaluation of each forward, added up: the time that the batcher's rule counts by.
        self._worked = 0
        # What the last completed forward took, and how long trajectories have waited for calls since one was enqueued.
        self._forward_s = 0.0
        self._calls_s = 0.0
        self._closed = False
        self._closing = Lock()
        self._thread = Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs and it has not been closed."""
        return self._thread.is_alive() and not self._closed

    @property
    def unwanted_turn(self) -> int:
        """The number of its turn if all jobs that it computes for have cancelled; else 0."""
        at_work_for, turn = self._at_work_for, self.turn
        return turn if at_work_for and unwanted(at_work_for) else 0

    def submit(
        self, trajectory: Trajectory, *, uses: Closeable | None = None, trace: str | None = None
    ) -> Future[Sampled]:
        """Let a trajectory join at the next forward; the future holds what it ended with.

        Once the future is cancelled, the run leaves before its next evaluation, and the forward ends that it has alone.
        uses: what the run uses, weights for one: the engine closes it in any case, also where this raises
        UnavailableError, and not before the device has done all that uses it. trace: the span of which its forwards are
        parts. Errors, in the future: UnavailableError if the engine closes first, DeviceMemoryError if one of its
        pieces does not fit the device alone, and whatever the run itself raises.
        """
        future: StoppableFuture[Sampled] = StoppableFuture()
        self._send(Run(trajectory, future, uses, trace=trace))
        return future

    def call(self, function: Callable[[], T], *, side_stream: bool = False, uses: Closeable | None = None) -> Future[T]:
        """Run a function in the engine's thread. Tensors that it makes are ordinary ones, without autograd.

        While trajectories wait, calls run between two forwards, oldest first, until they have taken as long as the last
        forward did; at least one does. side_stream: it may run on the side stream, if the device has one: what it makes
        is then used there or on the host. uses: as `submit`. Errors, in the future: the function's.
        """
        future: StoppableFuture[T] = StoppableFuture()
        self._send(Call(lambda _: [function()], future, side_stream=side_stream, uses=uses))
        return future

    def work(self, steps: Generator[None, None, T], *, uses: Closeable | None = None) -> Future[T]:
        """Run a generator to its end in the engine's thread; other work may run where it yields. uses: as `submit`."""
        future: StoppableFuture[T] = StoppableFuture()

        def advance(_: object) -> Sequence[Any]:
            try:
                next(steps)
            except StopIteration as end:
                return [end.value]
            return [PAUSED]

        self._send(Call(advance, future, uses=uses))
        return future

    def gather(
        self,
        question: Q,
        answers: Callable[[list[Q]], Sequence[A]],
        key: Hashable,
        *,
        cost: int | None = None,
        most: int,
        uses: Closeable | None = None,
    ) -> Future[A]:
        """Have a question answered in a batch with others of its key that wait, on the side stream; as `call`.

        answers: from questions to their answers, the same function for all of a key. If it fails for several, each is
        asked alone. cost: of the question, in a unit of its key (pixels for a VAE); None: unknown (a text), counted as
        1. most: the highest cost of a batch. While trajectories wait, a batch is no larger than fits the time left
        before the next forward, by past durations of the key; the oldest question is always answered.
        """
        future: StoppableFuture[A] = StoppableFuture()
        even, cost = cost is not None, 1 if cost is None else cost
        self._send(Call(answers, future, question, key, cost, most, even, side_stream=True, uses=uses))
        return future

    def close(self) -> None:
        """End after the forward or call in progress; what has not ended by then fails with UnavailableError."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self.inbox.put(_Close())
        self._thread.join()

    def _send(self, item: Run | Call) -> None:
        # The lock keeps anything from being put in after the loop's last look at the inbox.
        with self._closing:
            if not self._closed:
                self.inbox.put(item)
                return
        close(item.uses)
        raise UnavailableError("the engine has closed")

    def _loop(self) -> None:
        try:
            with torch.inference_mode(), self.timeline.enqueueing():
                busy = False
                while self._receive(wait=not busy):
                    self._begin_turn()
                    busy = self._run_a_call() or self._run_a_forward()
                    self._keep_pace()
                self._in_flight.complete_all()
                self._side_in_flight.complete_all()
        except (DeviceLostError, RuntimeError) as error:
            # Marks and streams of a device that is lost raise too, wherever they are asked.
            if not isinstance(error, DeviceLostError) and not is_lost(error):
                raise
            log.error("the engine closes: %s", str(error).partition("\n")[0])
        finally:
            self._abandon()
            self.turn = 0

    def _begin_turn(self) -> None:
        self._turns += 1
        self.turn = self._turns

    @contextmanager
    def _work_for(
        self, answers: Iterable[StoppableFuture[Any]], *, brief: bool = False
    ) -> Iterator[Callable[[], None]]:
        """End the work inside by StoppedError once all these futures are cancelled; yields a check that raises it.

        brief: the work ends soon by itself, and is not checked in between.
        """
        self._at_work_for = wanted = tuple(answers)
        stoppable = Stoppable(wanted)
        try:
            with nullcontext() if brief or not self.timeline.at_once else stoppable:
                yield stoppable.check
        finally:
            self._at_work_for = ()

    def _receive(self, wait: bool) -> bool:
        """Take in all items that have arrived; False once the engine is closed. wait: until there is one."""
        while True:
            if wait:
                self.turn = 0
            try:
                if not self._take_in(self.inbox.get(wait)):
                    return False
            except Empty:
                return True
            wait = False

    def _take_in(self, item: _Item) -> bool:
        """Take in an item; False if it closes the engine."""
        self._begin_turn()
        if isinstance(item, _Close):
            return False
        if isinstance(item, Call):
            (self._side_calls if item.side_stream else self._calls).add(item)
        elif _leaves(item):
            close(item.uses)
        else:
            self._join(item)
        return True

    def _join(self, run: Run) -> None:
        run.since = self._worked
        # Where the device is lost it stays here: its future gets the error with all others, once the engine has closed.
        self._runs.append(run)
        began = self.timeline.mark()
        try:
            with self._work_for([run.future]):
                run.trajectory.start()
        except BaseException as error:
            check(error)
            _fail(run, error)
        if run.over or run.trajectory.result is not None:
            ended, completion = self.timeline.mark(), Completion()
            completion.add(run)
            closes = self._take_out_ended()
            self._in_flight.add(InFlight(began, ended, _learn_nothing, completion, closes=closes))

    def _run_a_call(self) -> bool:
        """Run the oldest call, on the side stream or else between forwards, with those batched with it.

        False if there is none, or the trajectories have waited long enough.
        """
        if self._runs and 0 < self._calls_s >= self._forward_s:
            return False
        return self._run_side_call() or self._run_between()

    def _run_side_call(self) -> bool:
        side_stream = self.timeline.side_stream
        if side_stream is None or len(self._side_in_flight) >= IN_FLIGHT or not (calls := self._side_calls.take(None)):
            return False
        with self.pool.measured():
            work = self._enqueue(self._side_calls, calls, side_stream)
        self._side_in_flight.add(work)
        if self._runs:
            self._calls_s += work.ended.enqueued_s - work.began.enqueued_s
        return True

    def _run_between(self) -> bool:
        calls = self._calls.take(self._forward_s - self._calls_s if self._runs else None)
        if not calls:
            return False
        work = self._enqueue(self._calls, calls, self.timeline)
        self._in_flight.add(work)
        began, ended = work.began, work.ended
        if self._runs and ended.done():
            self._calls_s += ended.since(began)
        elif self._runs:
            # Until the device has done it: at least what the host took, and what such calls took before.
            self._calls_s += max(ended.enqueued_s - began.enqueued_s, self._calls.expected_s(calls))
        return True

    def _enqueue(self, waiting: Calls, calls: list[Call], timeline: Timeline) -> InFlight:
        """Enqueue calls that were taken together."""
        with timeline.enqueueing():
            began = timeline.mark()
            with self._work_for((call.future for call in calls), brief=0 < waiting.takes_s(calls) < BRIEF_S):
                answers = waiting.run(calls)
            ended = timeline.mark()
        closes = [call.uses for call in calls if call.over]
        return InFlight(
            began, ended, waiting.learn(calls), Completion(answers=answers), False, self.counters.forwards, closes
        )

    def _run_a_forward(self) -> bool:
        """Answer those evaluations that share the next forward; False if no trajectory waits."""
        if not self._runs:
            return False
        self._calls_s = 0.0
        began = self.timeline.mark()
        for run in self._runs:
            run.over = _leaves(run)
        if closes := self._take_out_ended():
            self._in_flight.add(InFlight(began, began, _learn_nothing, closes=closes))
        if self._runs:
            completion = Completion()
            due = in_turn(self._runs)
            oldest = due[0].trajectory
            self._forwards.plan(oldest.largest, oldest.activation_bytes)
            key, limit = oldest.budget_key, self._forwards.limit(oldest.largest)
            groups = [share(due, limit, partial(self._curves.enough, key))]
            self._worked += max(run.cost for run in groups[0])
            size, forwards = sum(run.cost for run in groups[0]), self.counters.forwards
            while groups:
                groups += self._answer(groups.pop(), completion)
            # How much each of several forwards took is not known; a stopped one does not count.
            done = self.counters.forwards - forwards
            learn = partial(self.learn_size, key, size) if done == 1 else self.learn if done else _learn_nothing
            ended, closes = self.timeline.mark(), self._take_out_ended()
            self._in_flight.add(InFlight(began, ended, learn, completion, is_forward=True, closes=closes))
        return True

    def _take_out_ended(self) -> list[Closeable]:
        """Take out the runs that are over; return what they used, of which the device may not have done all."""
        closes = [run.uses for run in self._runs if run.over and run.uses is not None]
        self._runs = [run for run in self._runs if not run.over]
        return closes

    def learn_size(self, key: Hashable, size: int, seconds: float) -> None:
        """Note what one forward of a size took, by which the sizes of later ones are chosen."""
        self._curves.took(key, size, seconds)
        self.learn(seconds)

    def learn(self, seconds: float) -> None:
        """Note what the forwards of a turn took."""
        self._forward_s = seconds
        self.counters.seconds += seconds

    def _keep_pace(self) -> None:
        """Wait until another forward may be enqueued, or for all work in flight if no run waits."""
        while self._in_flight:
            if self._runs and self._in_flight.forwards < IN_FLIGHT and not self._in_flight.oldest.ended.done():
                break
            self._in_flight.complete()
        while self._side_in_flight:
            oldest = self._side_in_flight.oldest
            overtaken = self.counters.forwards - oldest.after >= OVERTAKES
            if self._runs and not overtaken and not oldest.ended.done():
                break
            self._side_in_flight.complete()

    def _answer(self, runs: list[Run], completion: Completion) -> list[list[Run]]:
        """Answer the evaluations of these runs together; return groups of runs that are to be tried again.

        If a forward of several runs fails, those are its halves, the last one first: so only a run that fails alone
        gets the error. completion: takes steps and results. Nothing is answered once all runs are cancelled.
        """
        began_s, at_s = perf_counter(), time()
        try:
            with self._work_for(
                (run.future for run in runs), brief=all(run.is_brief for run in runs)
            ) as check_cancelled:
                outputs = self._forwards.answer([run.trajectory.pieces for run in runs], check_cancelled)
                answers = [
                    given if isinstance(given, DeviceMemoryError) else run.trajectory.denoised(given)
                    for run, given in zip(runs, outputs, strict=True)
                ]
                # Guidance that does more than add up needs numbers.
                compute(
                    latents
                    for run, answered in zip(runs, answers, strict=True)
                    if not run.trajectory.is_sum and not isinstance(answered, DeviceMemoryError)
                    for latents in answered
                )
        except StoppedError:
            self.counters.stopped += 1
            return []
        except BaseException as error:
            self.counters.failures += 1
            check(error)
            if len(runs) == 1:
                _fail(runs[0], error)
                return []
            # The error's text alone: whoever keeps log records would keep the failed forward's tensors with it.
            log.warning("a forward failed and is tried in halves: evaluations=%d error=%s", len(runs), repr(error))
            return [runs[len(runs) // 2 :], runs[: len(runs) // 2]]
        if self.timeline.at_once and perf_counter() - began_s < BRIEF_S:
            for run in runs:
                run.was_brief()
        for run in runs:
            tracing.record("forward", at_s, time(), run.trace, evaluations=len(runs))
        for run, answered in zip(runs, answers, strict=True):
            if isinstance(answered, DeviceMemoryError):
                _fail(run, answered)
                continue
            self.counters.evaluations += 1
            run.since = self._worked
            self._own(run, partial(run.trajectory.feed, answered))
        left = [run for run in runs if not run.over]
        while left:
            self._together(compute, [latents for run in left for latents in run.trajectory.pending])
            asking = {run: of_run for run in left if (of_run := run.trajectory.error_estimate) is not None}
            # Reading waits for the device, so what follows for other runs is enqueued before.
            for run in left:
                if run not in asking:
                    self._own(run, run.trajectory.advance)
                    completion.add(run)
            self._together(read, asking.values())
            for run in asking:
                self._own(run, run.trajectory.go_on)
            left = [run for run in asking if not run.over]
        return []

    def _own(self, run: Run, step: Callable[[], None]) -> None:
        """Take a step of one run; what it raises is its own."""
        try:
            # A sampler's own operations are few; one of a node pack that goes on is for the watchdog.
            with self._work_for([run.future], brief=True):
                step()
        except BaseException as error:
            check(error)
            _fail(run, error)

    def _together(self, compute: Callable[[Iterable[W]], None], pending: Iterable[W]) -> None:
        """Compute what runs wait for together; if that fails each is computed as its run goes on."""
        try:
            compute(pending)
        except BaseException as error:
            check(error)
            log.warning("steps of several runs could not be computed together: error=%s", repr(error))

    def _abandon(self) -> None:
        with self._closing:
            self._closed = True
        error = UnavailableError("the engine has closed")
        self._calls.fail(error)
        self._side_calls.fail(error)
        left: list[Future[Any]] = [run.future for run in self._runs]
        close(*(run.uses for run in self._runs))
        left += [*self._in_flight.abandon(), *self._side_in_flight.abandon()]
        while not self.inbox.empty():
            if not isinstance(item := self.inbox.get(), _Close):
                left.append(item.future)
                close(item.uses)
        for future in left:
            if future.cancelled() or not future.done():
                fail(future, error)


def _leaves(run: Run) -> bool:
    """Whether a run has been cancelled; its future then notifies those who wait."""
    return run.future.cancelled() and not run.future.set_running_or_notify_cancel()


def _fail(run: Run, error: BaseException) -> None:
    run.over = True
    fail(run.future, error)


def _learn_nothing(_seconds: float) -> None:
    pass
