"""The loop that answers evaluations: one thread, one forward at a time, rows of many jobs in each.

Trajectories join when they are submitted, are answered as `batcher.share` decides, and leave at their end, when they
are cancelled or when they fail; what one raises, or a call, is its own and does not end the loop. Only an error after
which the device answers nothing more (`device_lost`) closes the engine. One-off model work (`call`) runs in the same
thread, so a device and its weights are only ever used from here. Between two forwards it takes about as long as one: a
job that begins does not hold up those that are sampled by more than a step, and jobs that come together are not let in
one by one. Equal work for several jobs (`gather`) is done at once, as far as it fits into that time. What alone takes
longer than a forward is not split here.

A GPU is asked ahead of its work, but by no more than two forwards: so a job that comes joins, and one that is cancelled
leaves, within two. Durations are the device's own, and progress and results are told when it has come to them. Calls
that no run depends on go beside forwards there (`Timeline.beside`), and take none of their time but the host's.

Once everybody has cancelled what a forward or a call is for, it ends between two operations of a CPU (`stopping`). What
several jobs share goes on as long as one of them waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

import torch

from serve_app.engine.batcher import in_turn, share
from serve_app.engine.curve import Curves
from serve_app.engine.device_lost import DeviceLostError, check, is_lost
from serve_app.engine.forwards import Counters, Forwards
from serve_app.engine.in_flight import Flight, Flights, News, Run
from serve_app.engine.memory import Beside, Memory
from serve_app.engine.side_stream_pool import BesidePool
from serve_app.engine.side_work import PAUSED, Call, Calls, fail
from serve_app.engine.stopping import Asked, Stoppable, StoppedError, unwanted
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
"""How many turns of forwards the device is asked for at most before it has done the first of them; calls beside too."""

BRIEF_S = 0.5
"""What has been in a forward that took less is no reason to have one end before its time: that costs some microseconds
an operation, of which small networks have hundreds in some tens of milliseconds.
"""

OVERTAKES = 16
"""How many forwards are asked for at most while a call beside them is not done; then they wait for it."""


class _Close:
    pass


_Item: TypeAlias = Run | Call | _Close


class Engine:
    """Runs trajectories and one-off model work in a thread of its own, without autograd.

    max_cells: the most latent cells of all rows in one forward; fewer where the device has run out of memory.
    timeline: of the device of its models (`timeline_of`). memory: of that device, where it can
    be asked. beside: what is held there, and makes way for forwards.
    """

    def __init__(
        self,
        max_cells: int,
        timeline: Timeline,
        memory: Memory | None = None,
        beside: Beside | None = None,
    ) -> None:
        self.counters = Counters()
        self.memory = memory
        self.turn = 0
        """What its thread does, numbered from 1: a run that joins, a forward, a call; 0 while it waits for work."""
        self._turns = 0
        self._at_work_for: tuple[Asked[Any], ...] = ()
        self.pool = BesidePool(memory, beside) if timeline.beside is not None else BesidePool()
        """Of what is asked for beside forwards."""
        self._forwards = Forwards(max_cells, self.counters, memory, beside, self.pool)
        self._curves = Curves()
        self.timeline = timeline
        self._flights, self._beside = Flights(), Flights()
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self._runs: list[Run] = []
        self._calls = Calls()
        self._calls_beside = self._calls if timeline.beside is None else Calls()
        # What the last forward that is done took, and what trajectories have waited for calls since one was asked for.
        self._forward_s = 0.0
        self._calls_s = 0.0
        self._closed = False
        self._closing = Lock()
        self._thread = Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it answers: neither has it closed, nor has its thread ended."""
        return self._thread.is_alive() and not self._closed

    @property
    def unwanted_turn(self) -> int:
        """The number of its turn where all that its thread computes in it was cancelled; else 0."""
        at_work_for, turn = self._at_work_for, self.turn
        return turn if at_work_for and unwanted(at_work_for) else 0

    def submit(self, trajectory: Trajectory) -> Future[Sampled]:
        """Let a trajectory join at the next forward; the future holds what it ended with.

        Once the future is cancelled, the run leaves before its next evaluation, and the forward ends that it has alone.
        Errors, in the future: UnavailableError
        if the engine closes first, DeviceMemoryError if one of its pieces does not fit the device alone, and whatever
        the run itself raises.
        """
        future: Asked[Sampled] = Asked()
        self._send(Run(trajectory, future))
        return future

    def call(self, function: Callable[[], T], *, beside: bool = False, keeps: object = None) -> Future[T]:
        """Run a function in the engine's thread. Tensors that it makes are ordinary ones, without autograd.

        While trajectories wait, calls run between two forwards, oldest first, until they have taken as long as the last
        forward did; at least one does. beside: it may run beside forwards, where the device does that: what it makes is
        used there or on the host. keeps: what is kept until the device has done it, weights it uses for one.
        Errors, in the future: the function's.
        """
        future: Asked[T] = Asked()
        self._send(Call(lambda _: [function()], future, beside=beside, keeps=keeps))
        return future

    def work(self, steps: Generator[None, None, T]) -> Future[T]:
        """Run a generator to its end in the engine's thread; what waits may run where it yields, as after a `call`."""
        future: Asked[T] = Asked()

        def advance(_: object) -> Sequence[Any]:
            try:
                next(steps)
            except StopIteration as end:
                return [end.value]
            return [PAUSED]

        self._send(Call(advance, future))
        return future

    def gather(
        self,
        question: Q,
        answers: Callable[[list[Q]], Sequence[A]],
        key: Hashable,
        *,
        cost: int | None = None,
        most: int,
        keeps: object = None,
    ) -> Future[A]:
        """Have a question answered together with others of its key that wait; as `call`, beside forwards.

        cost: how much work it is, in a unit of its key (pixels for a VAE), 1 where nobody knows (a text); at most
        `most` of it is answered together. While trajectories wait, no more is than fits into what is left of the time
        between two forwards, by past durations of the key; the oldest is asked regardless. answers: the same for all of
        a key. If it fails for several, each is asked alone.
        """
        future: Asked[A] = Asked()
        even, cost = cost is not None, 1 if cost is None else cost
        self._send(Call(answers, future, question, key, cost, most, even, beside=True, keeps=keeps))
        return future

    def close(self) -> None:
        """End after the forward or call in progress; what has not ended by then fails with UnavailableError."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._inbox.put(_Close())
        self._thread.join()

    def _send(self, item: Run | Call) -> None:
        # The lock keeps anything from being put in after the loop's last look at the inbox.
        with self._closing:
            if self._closed:
                raise UnavailableError("the engine has closed")
            self._inbox.put(item)

    def _loop(self) -> None:
        # No run or call is a local here: while the loop waits, it would keep their models in use.
        try:
            with torch.inference_mode(), self.timeline.asked():
                busy = False
                while self._receive(wait=not busy):
                    self._begin_turn()
                    busy = self._run_a_call() or self._run_a_forward()
                    self._keep_pace()
                self._flights.land_all()
                self._beside.land_all()
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
    def _work_for(self, answers: Iterable[Asked[Any]], *, brief: bool = False) -> Iterator[Callable[[], None]]:
        """Let what is computed inside end by StoppedError once all these were cancelled. Gives what raises it then.

        brief: it ends soon by itself, and does without.
        """
        self._at_work_for = wanted = tuple(answers)
        stoppable = Stoppable(wanted)
        try:
            with nullcontext() if brief or not self.timeline.at_once else stoppable:
                yield stoppable.check
        finally:
            self._at_work_for = ()

    def _receive(self, wait: bool) -> bool:
        """Take in what has arrived; False once the engine is closed. wait: for something."""
        while True:
            if wait:
                self.turn = 0
            try:
                item = self._inbox.get(wait)
            except Empty:
                return True
            self._begin_turn()
            wait = False
            if isinstance(item, _Close):
                return False
            if isinstance(item, Call):
                (self._calls_beside if item.beside else self._calls).add(item)
            elif not _leaves(item):
                self._join(item)
            # A run that fails as it joins leaves this frame behind its error's, and must not be kept by it.
            del item

    def _join(self, run: Run) -> None:
        run.since = self.counters.forwards
        began = self.timeline.mark()
        try:
            with self._work_for([run.future]):
                run.trajectory.start()
        except BaseException as error:
            if is_lost(error):
                # Told with all others, once it is known that the engine has closed.
                self._runs.append(run)
            check(error)
            fail(run.future, error)
            return
        if run.trajectory.result is None:
            self._runs.append(run)
            return
        news = News()
        news.take(run)
        self._flights.add(Flight(began, self.timeline.mark(), _learn_nothing, news))

    def _run_a_call(self) -> bool:
        """Run the oldest call beside forwards or else between them, and what is gathered with it.

        False if there is none, or the trajectories have waited long enough.
        """
        if self._runs and 0 < self._calls_s >= self._forward_s:
            return False
        return self._run_beside() or self._run_between()

    def _run_beside(self) -> bool:
        beside = self.timeline.beside
        if beside is None or len(self._beside) >= IN_FLIGHT or not (calls := self._calls_beside.take(None)):
            return False
        with self.pool.measured():
            flight = self._asked(self._calls_beside, calls, beside)
        self._beside.add(flight)
        if self._runs:
            self._calls_s += flight.ended.asked_s - flight.began.asked_s
        return True

    def _run_between(self) -> bool:
        calls = self._calls.take(self._forward_s - self._calls_s if self._runs else None)
        if not calls:
            return False
        flight = self._asked(self._calls, calls, self.timeline)
        self._flights.add(flight)
        began, ended = flight.began, flight.ended
        if self._runs and ended.done():
            self._calls_s += ended.since(began)
        elif self._runs:
            # Until the device has done it, what the host took to ask and what it took before stand for what it takes.
            self._calls_s += max(ended.asked_s - began.asked_s, self._calls.expected_s(calls))
        return True

    def _asked(self, waiting: Calls, calls: list[Call], timeline: Timeline) -> Flight:
        """Ask for calls that were taken together."""
        with timeline.asked():
            began = timeline.mark()
            with self._work_for((call.future for call in calls), brief=0 < waiting.takes_s(calls) < BRIEF_S):
                answers = waiting.run(calls)
            ended = timeline.mark()
        keeps = tuple(call.keeps for call in calls)
        return Flight(began, ended, waiting.learn(calls), News(answers=answers), False, self.counters.forwards, keeps)

    def _run_a_forward(self) -> bool:
        """Answer those evaluations that share the next forward; False if no trajectory waits."""
        if not self._runs:
            return False
        self._calls_s = 0.0
        self._runs = [run for run in self._runs if not _leaves(run)]
        if self._runs:
            news = News()
            began = self.timeline.mark()
            oldest = in_turn(self._runs)[0].trajectory
            key, limit = oldest.budget_key, self._forwards.limit(oldest.largest)
            # What fails keeps this frame, whose locals must not keep the runs' models in use: `groups` ends empty.
            del oldest
            groups = [share(self._runs, limit, partial(self._curves.enough, key))]
            size, forwards = sum(run.cost for run in groups[0]), self.counters.forwards
            while groups:
                groups += self._answer(groups.pop(), news)
            # Of several forwards it is not known which took how much, and none that was stopped is done.
            done = self.counters.forwards - forwards
            learn = partial(self._took_by_size, key, size) if done == 1 else self._took if done else _learn_nothing
            self._flights.add(Flight(began, self.timeline.mark(), learn, news, is_forward=True))
            self._runs = [run for run in self._runs if not run.over]
        return True

    def _took_by_size(self, key: Hashable, size: int, seconds: float) -> None:
        self._curves.took(key, size, seconds)
        self._took(seconds)

    def _took(self, seconds: float) -> None:
        self._forward_s = seconds
        self.counters.seconds += seconds

    def _keep_pace(self) -> None:
        """Wait until the device may be asked for another forward, or for all it was asked if no run waits."""
        while self._flights:
            if self._runs and self._flights.forwards < IN_FLIGHT and not self._flights.oldest.ended.done():
                break
            self._flights.land()
        while self._beside:
            oldest = self._beside.oldest
            overtaken = self.counters.forwards - oldest.after >= OVERTAKES
            if self._runs and not overtaken and not oldest.ended.done():
                break
            self._beside.land()

    def _answer(self, runs: list[Run], news: News) -> list[list[Run]]:
        """Answer the evaluations of these runs together, and return []. news: takes what they come to.

        If that fails, return the halves of the runs, to be answered the last one first: so only those fail that fail
        alone. Nothing is answered where all were cancelled meanwhile.
        """
        began_s = perf_counter()
        try:
            with self._work_for((run.future for run in runs), brief=all(run.is_brief for run in runs)) as check_wanted:
                answers = self._forwards.answer([run.trajectory.pieces for run in runs], check_wanted)
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
        for run, answered in zip(runs, answers, strict=True):
            if isinstance(answered, DeviceMemoryError):
                _fail(run, answered)
                continue
            self.counters.evaluations += 1
            run.since = self.counters.forwards
            self._own(run, partial(run.trajectory.feed, answered))
        left = [run for run in runs if not run.over]
        while left:
            self._together(compute, [latents for run in left for latents in run.trajectory.pending])
            asking = {run: of_run for run in left if (of_run := run.trajectory.error_estimate) is not None}
            # The host waits for what it reads: what follows for other runs is asked for before.
            for run in left:
                if run not in asking:
                    self._own(run, run.trajectory.advance)
                    news.take(run)
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

    def _together(self, compute: Callable[[Iterable[W]], None], written: Iterable[W]) -> None:
        """Compute what runs have written down, together; if that fails each is computed as its run goes on."""
        try:
            compute(written)
        except BaseException as error:
            check(error)
            log.warning("steps of several runs could not be computed together: error=%s", repr(error))

    def _abandon(self) -> None:
        with self._closing:
            self._closed = True
        error = UnavailableError("the engine has closed")
        self._calls.fail(error)
        self._calls_beside.fail(error)
        left: list[Future[Any]] = [run.future for run in self._runs]
        left += [*self._flights.abandon(), *self._beside.abandon()]
        while not self._inbox.empty():
            if not isinstance(item := self._inbox.get(), _Close):
                left.append(item.future)
        for future in left:
            if future.cancelled() or not future.done():
                fail(future, error)


def _leaves(run: Run) -> bool:
    """Whether a run has been cancelled; whoever waits for it then hears of it."""
    return run.future.cancelled() and not run.future.set_running_or_notify_cancel()


def _fail(run: Run, error: BaseException) -> None:
    run.over = True
    fail(run.future, error)


def _learn_nothing(_seconds: float) -> None:
    pass
