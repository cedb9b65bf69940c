"""The RUNTIME that nodes await: model work, done in the engine's thread on weights that a hold keeps.

One `EngineRuntime` per replica; `bind` makes the RUNTIME of one node. Weights are loaded in threads of their own
(`loads`) and used in the engine's thread alone, so neither the event loop nor other jobs wait for them. Cancelling a
node that awaits cancels its work. The work of a strict node shares no forward, so that other jobs change no bit of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any, Generic, TypeAlias, TypeVar

from serve_app.config.limits import SizeLimits
from serve_app.config.resume import ResumeConfig
from serve_app.engine.autoencoding import Autoencoding
from serve_app.engine.device_lost import is_lost, is_out_of_memory
from serve_app.engine.engine import Engine
from serve_app.engine.forwards import Counters
from serve_app.engine.loads import Loads, PrefetchCounters
from serve_app.engine.node_runtime import NodeRuntime
from serve_app.engine.run_state import RunStateCounters, StateFiles, StateSaver
from serve_app.engine.sampling_run import SamplingRun, Show
from serve_app.engine.text_generation import TEXTS_TOGETHER, Job, add_token
from serve_app.errors import DeviceMemoryError, UnavailableError
from serve_app.models.forward import ReplayCounters
from serve_app.models.kernels.cuda_graphs import replays_of
from serve_app.models.weights.load_progress import LoadProgress
from serve_app.models.weights.recipes import Need
from serve_app.models.weights.residency import Hold
from serve_app.models.weights.weights import LoadCounters, Weights
from serve_app.recipe.layers import EasyCache
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.request import Sampled, SamplingRequest
from serve_app.values import (
    GenerationRequest,
    PreviewMethod,
)

M = TypeVar("M")
Q = TypeVar("Q")
T = TypeVar("T")

Load: TypeAlias = Callable[[Recipe, Hold], M]
"""Returns a recipe's model, whose weights a hold keeps; a method of Weights."""

STOPPING_S = 1.0
"""The most that forwards wait for runs that are handed over to be cancelled."""

Loading: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Makes a context that is entered while a node waits for weights to be loaded."""


def ignored(text: str) -> None:
    """Ignore a remark."""


def uncounted() -> AbstractContextManager[None]:
    """Return a context that counts nothing."""
    return nullcontext()


class EngineRuntime:
    """A replica's engine and weights, which all its nodes share.

    latent_cells: the most cells of one run's latents, and of its references; None: no limit.
    latent_pairs: the most pairs of these cells that attend to each other; None: no limit.
    limits: of schedules, and of texts that models read and generate. resume: which runs have a state; None: none has.
    step_cache: as `SamplingRun`.
    """

    def __init__(
        self,
        engine: Engine,
        weights: Weights,
        *,
        latent_cells: int | None = None,
        latent_pairs: int | None = None,
        limits: SizeLimits | None = None,
        resume: ResumeConfig | None = None,
        step_cache: EasyCache | None = None,
    ) -> None:
        self._step_cache = step_cache
        self.latent_cells, self.latent_pairs = latent_cells, latent_pairs
        self.limits = limits or SizeLimits()
        self.engine = engine
        self.weights = weights
        self.autoencoding = Autoencoding(weights, engine.memory)
        self._loads = Loads(weights, self._failed_to_load, engine.timeline)
        self._resume = resume
        self._writer = ThreadPoolExecutor(1, "run-states")
        self._sampling: set[SamplingRun] = set()
        self.run_states = RunStateCounters()
        """Counts of saved states, and of runs that went on from one."""

    @property
    def counters(self) -> Counters:
        """What the engine has done since it began."""
        return self.engine.counters

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self.engine.alive

    @property
    def turns(self) -> tuple[int, int]:
        """The numbers of the engine's turn and of the load under way, 0 where there is none."""
        return self.engine.turn, self._loads.turn

    @property
    def unwanted_turn(self) -> int:
        """The number of the engine's turn if all jobs that it computes for have cancelled; else 0."""
        return self.engine.unwanted_turn

    @property
    def replays(self) -> ReplayCounters:
        """Counts of recorded and replayed forwards on its device."""
        return replays_of(self.weights.device).counters

    @property
    def loads(self) -> LoadCounters:
        """Counts of loads and evictions."""
        return self.weights.counters

    def bind(
        self,
        progress: Callable[[int, int], None],
        *,
        strict: bool = False,
        show: Show | None = None,
        previews: PreviewMethod = "none",
        remark: Callable[[str], None] = ignored,
        loading: Loading = uncounted,
        states: Callable[[], StateFiles] | None = None,
    ) -> NodeRuntime:
        """Return the RUNTIME of one node. progress: called in the event loop with (steps done, steps in all).

        strict: its work is done apart from all other. show: called there with a picture of each step. previews: how
        the pictures are made. remark: called there with what the job's client should know of the models it names.
        loading: entered there while the node waits for weights to be loaded. states: makes the files for the state of
        the node's next sampler run; None: its runs have no state.
        """
        return NodeRuntime(self, progress, strict, show, previews, remark, loading, states)

    def close(self) -> None:
        """End its threads: the engine's after what it computes, those of loads after what is asked of them."""
        self.engine.close()
        self._loads.close()

    async def release(self) -> None:
        """Evict all weights that are not in use."""
        await asyncio.wrap_future(self.engine.call(self.weights.release))

    async def warm(self, recipes: Sequence[Recipe]) -> None:
        """Load weights that no job needs yet, one after another.

        Errors: ModelFileError for a file that has not the part.
        """
        for recipe in recipes:
            (await self._ready(partial(self.weights.needs.expected, recipe), uncounted)).close()

    async def prefetch(self, recipe: Recipe, spared: Callable[[str], bool]) -> bool:
        """Load weights that jobs are expected to need, as `Loads.prefetch`. Errors: ModelFileError."""
        try:
            need = await asyncio.to_thread(self.weights.needs.expected, recipe)
            return await asyncio.wrap_future(self._loads.prefetch(need, spared))
        except asyncio.CancelledError:
            self._loads.prefetched.dropped += 1
            raise

    @property
    def prefetched(self) -> PrefetchCounters:
        """Counts of prefetches."""
        return self._loads.prefetched

    def resident(self) -> tuple[str, ...]:
        """Return short names of the resident weights, as `Weights.resident`."""
        return self.weights.resident()

    @property
    def load_under_way(self) -> LoadProgress | None:
        """How far the model is read that is loaded at the moment; None without one."""
        return self.weights.load_under_way

    def load_times(self) -> tuple[tuple[str, float], ...]:
        """Return the loads since the last call, as `Weights.load_times`."""
        return self.weights.load_times()

    async def sample(
        self,
        request: SamplingRequest,
        progress: Callable[[int, int], None],
        *,
        strict: bool = False,
        show: Show | None = None,
        previews: PreviewMethod = "none",
        remark: Callable[[str], None] = ignored,
        loading: Loading = uncounted,
        state: StateFiles | None = None,
    ) -> Sampled:
        """Run a sampler, as `SamplingRun`. remark, loading: as `bind`. state: the files of its state, if it has one."""
        saver = None if state is None or self._resume is None else self._saver(state, self._resume)
        run = SamplingRun(
            self.engine,
            self.weights,
            request,
            progress,
            strict=strict,
            show=show,
            previews=previews,
            remark=remark,
            saver=saver,
            step_cache=self._step_cache,
        )
        self._sampling.add(run)
        try:
            sampled = await self._run(run, remark, loading)
        except (asyncio.CancelledError, UnavailableError):
            # The job has not ended: another replica goes on.
            raise
        except BaseException:
            run.forget()
            raise
        else:
            run.forget()
            return sampled
        finally:
            self._sampling.discard(run)

    async def _run(self, run: SamplingRun, remark: Callable[[str], None], loading: Loading) -> Sampled:
        with await self._ready(run.requirements, loading) as hold:
            beginning = await asyncio.to_thread(run.prepare, hold)
            started = self.engine.work(run.start(hold, beginning), uses=hold.share())
            try:
                running = await asyncio.wrap_future(started)
            except asyncio.CancelledError:
                run.cancel()
                raise
        for text in run.remarks:
            remark(text)
        return await asyncio.wrap_future(running)

    def _saver(self, state: StateFiles, resume: ResumeConfig) -> StateSaver:
        after_s, max_bytes = resume.after_s, resume.max_bytes
        return StateSaver(state, self._writer, self.run_states, after_s=after_s, max_bytes=max_bytes)

    async def hand_over(self, stop: Callable[[], object]) -> None:
        """Save the states of all runs, for other replicas to go on with them. stop: cancels them, in the event loop.

        Nothing is computed between the two, so no step is repeated.
        """
        taken: Future[list[Callable[[], Future[None]]]] = Future()
        stopped, runs = Event(), [*self._sampling]

        def take() -> None:
            found = [run.take_all() for run in runs]
            taken.set_result([save for save in found if save is not None])
            stopped.wait(STOPPING_S)

        done: asyncio.Future[None] = asyncio.wrap_future(self.engine.call(take))
        futures: set[asyncio.Future[Any]] = {done, asyncio.wrap_future(taken)}
        try:
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop()
            stopped.set()
        with suppress(UnavailableError):
            # The device has done the copies then.
            await done
            await asyncio.gather(*(asyncio.wrap_future(save()) for save in taken.result()))

    async def generate_text(
        self,
        clip: Recipe,
        request: GenerationRequest,
        progress: Callable[[int, int], None],
        *,
        strict: bool,
        loading: Loading = uncounted,
    ) -> Any:
        """Return what a model writes token by token, batched with others of the same model; forwards run in between."""
        loop = asyncio.get_running_loop()
        job = Job(request, lambda done: loop.call_soon_threadsafe(progress, done, request.max_tokens))
        hold = await self._hold(clip, loading)
        generated = self.engine.gather(
            job,
            lambda jobs: add_token(jobs, self.weights.clip(clip, hold)),
            None if strict else (clip, "generate"),
            most=TEXTS_TOGETHER,
            uses=hold,
        )
        try:
            return await asyncio.wrap_future(generated)
        except asyncio.CancelledError:
            job.cancelled = True
            raise

    async def use(self, recipe: Recipe, load: Load[M], work: Callable[[M], T], loading: Loading = uncounted) -> T:
        """Return what `work` makes with a recipe's model, once that has room. load: the method of Weights for it."""
        hold = await self._hold(recipe, loading)
        return await self._call(hold, lambda: work(load(recipe, hold)))

    async def use_tiled(
        self,
        recipe: Recipe,
        load: Load[M],
        work: Callable[[M], Generator[tuple[int, int], None, T]],
        progress: Callable[[int, int], None],
        loading: Loading = uncounted,
    ) -> T:
        """Return what `work` makes with a recipe's model, tile by tile; forwards run in between."""
        with await self._hold(recipe, loading) as hold:
            tiles = await self._call(hold.share(), lambda: work(load(recipe, hold)))
            while True:
                call = self.engine.call(partial(_next_tile, tiles), side_stream=True, uses=hold.share())
                made = await asyncio.wrap_future(call)
                if isinstance(made, _Whole):
                    return made.made
                progress(*made)

    async def use_together(
        self,
        recipe: Recipe,
        load: Load[M],
        work: Callable[[M, list[Q]], Sequence[T]],
        question: Q,
        key: Hashable,
        *,
        cost: int | None = None,
        most: int,
        loading: Loading = uncounted,
    ) -> T:
        """Return what `work` makes of a question, batched with questions of other nodes; as `use`.

        key: equal, with the recipe, for questions of one batch. cost, most: as `Engine.gather`.
        """

        def answers(questions: list[Q]) -> Sequence[T]:
            together = partial(work, load(recipe, hold), questions)
            # Where several do not fit, the engine asks them one by one.
            return together() if len(questions) > 1 else self._in_room(together)

        hold = await self._hold(recipe, loading)
        gathered = self.engine.gather(question, answers, (recipe, key), cost=cost, most=most, uses=hold)
        return await asyncio.wrap_future(gathered)

    async def _call(self, hold: Hold, work: Callable[[], T]) -> T:
        """Do work in the engine's thread, which closes the hold of its weights after it."""
        done = self.engine.call(lambda: self._in_room(work), side_stream=True, uses=hold)
        return await asyncio.wrap_future(done)

    async def _hold(self, recipe: Recipe, loading: Loading) -> Hold:
        return await self._ready(lambda: self.weights.needs.of(recipe), loading)

    async def _ready(self, need: Callable[[], Need], loading: Loading) -> Hold:
        """Return a hold of weights, which are loaded by then; the caller closes it. need: called in another thread."""
        room = self._loads.room(need)
        try:
            hold = await asyncio.wrap_future(room)
        except asyncio.CancelledError:
            # It may have come at the same moment.
            room.add_done_callback(_close_hold)
            raise
        try:
            if not self.weights.is_loaded(hold):
                with loading():
                    await asyncio.wrap_future(self._loads.load(hold))
        except BaseException:
            hold.close()
            raise
        return hold

    def _in_room(self, work: Callable[[], T]) -> T:
        """Return what `work` makes; if the device runs out of memory, it is done again after idle weights are evicted.

        Errors: DeviceMemoryError.
        """
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                figures = DeviceMemoryError.figures(error)
            # Here the error is gone, and with it what the work had made.
            if not self.weights.release():
                raise DeviceMemoryError(f"this does not fit the device's memory by itself: {figures}")

    def _failed_to_load(self, error: BaseException) -> None:
        """Close the engine if the error means that the device is lost."""

        def again() -> None:
            raise error

        if is_lost(error):
            with suppress(UnavailableError):
                self.engine.call(again)


def _close_hold(room: Future[Hold]) -> None:
    if not room.cancelled() and room.exception() is None:
        room.result().close()


@dataclass(frozen=True, slots=True)
class _Whole(Generic[T]):
    """What tiles made."""

    made: T


def _next_tile(tiles: Generator[tuple[int, int], None, T]) -> tuple[int, int] | _Whole[T]:
    try:
        return next(tiles)
    except StopIteration as end:
        return _Whole(end.value)
