"""The loop that answers evaluations: one thread, one forward at a time, rows of many jobs in each.

Trajectories join when they are submitted, are answered as `batcher.share` decides, and leave at their end, when they
are cancelled or when they fail; what one raises, or a call, is its own and does not end the loop. Only an error after
which the device answers nothing more (`device_lost`) closes the engine. One-off model work (`call`) runs in the same
thread, so a device and its weights are only ever used from here. Between two forwards it takes about as long as one: a
job that begins does not hold up those that are sampled by more than a step, and jobs that come together are not let in
one by one. Equal work for several jobs (`gather`) is done at once, as far as it fits into that time. What alone takes
longer than a forward is not split here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from serve_app.engine.batcher import share
from serve_app.engine.budget import Budget
from serve_app.engine.device_lost import DeviceLostError, check, is_lost
from serve_app.engine.side_work import PAUSED, Call, Calls, fail
from serve_app.engine.trajectory import Trajectory
from serve_app.errors import DeviceMemoryError, UnavailableError
from serve_app.log import get
from serve_app.sampling.forward import Piece, denoise
from serve_app.sampling.request import Sampled

log = get("engine")

A = TypeVar("A")
Q = TypeVar("Q")
T = TypeVar("T")

RETRY_S = 0.05
"""How often an engine with nothing else to do asks whether a call may run now."""


@dataclass(slots=True, eq=False)
class _Run:
    """A trajectory in the engine, as the batcher sees it. over: its future has its result or its error."""

    trajectory: Trajectory
    future: Future[Sampled]
    since: int = 0
    over: bool = False

    @property
    def key(self) -> Hashable:
        return self.trajectory.key

    @property
    def cost(self) -> int:
        return self.trajectory.cells


class _Close:
    pass


_Item: TypeAlias = _Run | Call | _Close


@dataclass(slots=True)
class Counters:
    """What an engine has done since it began: evaluations answered, forwards run and rows in them, forwards failed.

    seconds: spent in forwards.
    """

    evaluations: int = 0
    forwards: int = 0
    rows: int = 0
    failures: int = 0
    seconds: float = 0.0


class Engine:
    """Runs trajectories and one-off model work in a thread of its own, without autograd.

    max_cells: the most latent cells of all rows in one forward; fewer where the device has run out of memory.
    """

    def __init__(self, max_cells: int) -> None:
        self.counters = Counters()
        self.turn = 0
        """The number of the forward or call that its thread is in, from 1; 0 in between."""
        self._budget = Budget(max_cells)
        self._inbox: SimpleQueue[_Item] = SimpleQueue()
        self._runs: list[_Run] = []
        self._calls = Calls()
        # What the last forward took, and what trajectories have waited for calls since.
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

    def submit(self, trajectory: Trajectory) -> Future[Sampled]:
        """Let a trajectory join at the next forward; the future holds what it ended with.

        Once the future is cancelled, the run leaves before its next evaluation. Errors, in the future: UnavailableError
        if the engine closes first, DeviceMemoryError if one of its pieces does not fit the device alone, and whatever
        the run itself raises.
        """
        future: Future[Sampled] = Future()
        self._send(_Run(trajectory, future))
        return future

    def call(self, function: Callable[[], T], when: Callable[[], bool] | None = None) -> Future[T]:
        """Run a function in the engine's thread. Tensors that it makes are ordinary ones, without autograd.

        While trajectories wait, calls run between two forwards, oldest first, until they have taken as long as the last
        forward did; at least one does. when: asked in the engine's thread; the call waits until it says True, and
        later calls with a `when` wait behind it. Errors, in the future: the function's and those of `when`.
        """
        future: Future[T] = Future()
        self._send(Call(lambda _: [function()], future, when))
        return future

    def work(self, steps: Generator[None, None, T], when: Callable[[], bool] | None = None) -> Future[T]:
        """Run a generator to its end in the engine's thread; what waits may run where it yields, as after a `call`."""
        future: Future[T] = Future()

        def advance(_: object) -> Sequence[Any]:
            try:
                next(steps)
            except StopIteration as end:
                return [end.value]
            return [PAUSED]

        self._send(Call(advance, future, when))
        return future

    def gather(
        self,
        question: Q,
        answers: Callable[[list[Q]], Sequence[A]],
        key: Hashable,
        *,
        cost: int = 1,
        most: int,
        when: Callable[[], bool] | None = None,
    ) -> Future[A]:
        """Have a question answered together with others of its key that wait; as `call`.

        cost: how much work it is, in a unit of its key (1 a text, pixels for a VAE); at most `most` of it is answered
        together. While trajectories wait, no more is than fits into what is left of the time between two forwards, by
        past durations of the key; the oldest is asked regardless. answers: the same for all of a key. If it fails for
        several, each is asked alone.
        """
        future: Future[A] = Future()
        self._send(Call(answers, future, when, question, key, cost, most))
        return future

    def close(self) -> None:
        """End after the forward or call in progress; what has not ended by then fails with UnavailableError."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._inbox.put(_Close())
        self._thread.join()

    def _send(self, item: _Run | Call) -> None:
        # The lock keeps anything from being put in after the loop's last look at the inbox.
        with self._closing:
            if self._closed:
                raise UnavailableError("the engine has closed")
            self._inbox.put(item)

    def _loop(self) -> None:
        # No run or call is a local here: while the loop waits, it would keep their models in use.
        try:
            with torch.inference_mode():
                busy, turns = False, 0
                while self._receive(wait=not busy):
                    turns += 1
                    self.turn = turns
                    busy = self._run_a_call() or self._run_a_forward()
                    self.turn = 0
        except DeviceLostError as lost:
            log.error("the engine closes: %s", lost)
        finally:
            self._abandon()

    def _receive(self, wait: bool) -> bool:
        """Take in what has arrived; False once the engine is closed. wait: for something, or until a call may run."""
        timeout_s = RETRY_S if self._calls else None
        while True:
            try:
                item = self._inbox.get(wait, timeout_s)
            except Empty:
                return True
            wait = False
            if isinstance(item, _Close):
                return False
            if isinstance(item, Call):
                self._calls.add(item)
            elif not _leaves(item):
                self._join(item)
            # A run that fails as it joins leaves this frame behind its error's, and must not be kept by it.
            del item

    def _join(self, run: _Run) -> None:
        run.since = self.counters.forwards
        try:
            run.trajectory.start()
            ended = _ends(run)
        except BaseException as error:
            if is_lost(error):
                # Told with all others, once it is known that the engine has closed.
                self._runs.append(run)
            check(error)
            fail(run.future, error)
            return
        if not ended:
            self._runs.append(run)

    def _run_a_call(self) -> bool:
        """Run the oldest call that may run, and what is gathered with it.

        False if there is none, or the trajectories have waited long enough.
        """
        if self._runs and 0 < self._calls_s >= self._forward_s:
            return False
        calls = self._calls.take(self._forward_s - self._calls_s if self._runs else None)
        if not calls:
            return False
        began = perf_counter()
        self._calls.run(calls)
        took_s = perf_counter() - began
        self._calls.took(calls, took_s)
        if self._runs:
            self._calls_s += took_s
        return True

    def _run_a_forward(self) -> bool:
        """Answer those evaluations that share the next forward; False if no trajectory waits."""
        if not self._runs:
            return False
        self._calls_s = 0.0
        self._runs = [run for run in self._runs if not _leaves(run)]
        if self._runs:
            began = perf_counter()
            # What fails keeps this frame, whose locals must not keep the runs' models in use: `groups` ends empty.
            oldest = min(self._runs, key=lambda run: run.since)
            groups = [share(self._runs, self._budget.limit(oldest.trajectory.budget_key))]
            del oldest
            while groups:
                groups += self._answer(groups.pop())
            self._forward_s = perf_counter() - began
            self.counters.seconds += self._forward_s
            self._runs = [run for run in self._runs if not run.over]
        return True

    def _answer(self, runs: list[_Run]) -> list[list[_Run]]:
        """Answer the evaluations of these runs with one forward, and return [].

        If it fails, return the halves of the runs, to be answered the last one first: so only those fail that fail
        alone.
        """
        pieces = [piece for run in runs for piece in run.trajectory.pieces]
        try:
            answers = self._denoise(pieces)
        except BaseException as error:
            self.counters.failures += 1
            check(error)
            if len(runs) == 1:
                _fail(runs[0], error)
                return []
            # The error's text alone: whoever keeps log records would keep the failed forward's tensors with it.
            log.warning("a forward failed and is tried in halves: evaluations=%d error=%s", len(runs), repr(error))
            return [runs[len(runs) // 2 :], runs[: len(runs) // 2]]
        self.counters.evaluations += len(runs)
        first = 0
        for run in runs:
            end = first + len(run.trajectory.pieces)
            run.since = self.counters.forwards
            try:
                run.trajectory.feed(answers[first:end])
                _ends(run)
            except BaseException as error:
                check(error)
                _fail(run, error)
            first = end
        return []

    def _denoise(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Return each piece's denoised rows, from as few forwards as they fit into. Errors: DeviceMemoryError.

        Where the device runs out of memory, its cache is emptied and the same pieces are tried in smaller forwards.
        """
        answers: dict[int, Tensor] = {}
        left = list(range(len(pieces)))
        while left:
            first = pieces[left[0]]
            key = first.backbone.network.key, first.group_key
            group = _group(pieces, left, self._budget.limit(key))
            asked = [pieces[i] for i in group]
            cells = sum(piece.cells for piece in asked)
            try:
                answers.update(zip(group, denoise(asked), strict=True))
            except torch.OutOfMemoryError as error:
                said = str(error)
            else:
                self._budget.answered(key, cells)
                self.counters.forwards += 1
                self.counters.rows += sum(piece.rows for piece in asked)
                left = [i for i in left if i not in answers]
                continue
            # Only here has the error let go of what the failed forward held.
            self.counters.failures += 1
            self._budget.failed(key, cells)
            torch.cuda.empty_cache()
            if len(asked) == 1:
                raise _does_not_fit(first, said)
            log.warning("a forward did not fit the device: cells=%d limit=%d", cells, self._budget.limit(key))
        return [answers[i] for i in range(len(pieces))]

    def _abandon(self) -> None:
        with self._closing:
            self._closed = True
        error = UnavailableError("the engine has closed")
        self._calls.fail(error)
        left: list[_Item] = [*self._runs]
        while not self._inbox.empty():
            left.append(self._inbox.get())
        for item in left:
            if not isinstance(item, _Close):
                fail(item.future, error)


def _group(pieces: Sequence[Piece], left: Sequence[int], limit: int) -> list[int]:
    """Return those of the indices left that share the first one's forward: of its network and group, within a limit.

    Those that are tied to one in it go with it whatever the limit.
    """
    first = pieces[left[0]]
    group, cells, full = [left[0]], first.cells, False
    ties = {first.tie} - {None}
    for i in left[1:]:
        of_another = pieces[i].backbone.network.key != first.backbone.network.key
        if of_another or pieces[i].group_key != first.group_key:
            continue
        full = full or cells + pieces[i].cells > limit
        if full and pieces[i].tie not in ties:
            continue
        cells += pieces[i].cells
        group.append(i)
        ties |= {pieces[i].tie} - {None}
    return group


def _does_not_fit(piece: Piece, said: str) -> DeviceMemoryError:
    """Return the error for a piece that does not fit alone. said: torch's words, which give the sizes."""
    size = "×".join(str(side) for side in reversed(piece.x.shape[2:]))
    # What follows is advice on torch's own settings.
    sizes = said.partition(" If reserved but unallocated")[0].partition("\n")[0]
    return DeviceMemoryError(
        f"a batch of {piece.rows} latents of {size} cells does not fit the device's memory by itself; "
        f"a smaller image or batch may. {sizes}"
    )


def _leaves(run: _Run) -> bool:
    """Whether a run has been cancelled; whoever waits for it then hears of it."""
    return run.future.cancelled() and not run.future.set_running_or_notify_cancel()


def _fail(run: _Run, error: BaseException) -> None:
    run.over = True
    fail(run.future, error)


def _ends(run: _Run) -> bool:
    """Whether a run has its result; its future then holds it."""
    result = run.trajectory.result
    if result is None:
        return False
    run.over = True
    if run.future.set_running_or_notify_cancel():
        # A copy made outside inference mode is an ordinary tensor, which whoever gets it may change in place.
        with torch.inference_mode(False):
            run.future.set_result(Sampled(result.latents.clone(), result.denoised.clone()))
    return True
