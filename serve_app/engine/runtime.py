"""RUNTIME over an engine and its weights: what nodes await, done in the engine's thread.

One `EngineRuntime` a replica; `bind` gives what one node is handed. Weights are loaded beside the engine's thread
(`loads`) and used in it alone, so neither the event loop nor other jobs wait for them. A node that is cancelled while
it awaits takes its work with it.
A strict node's work is done apart from all other, so that its outcome does not depend on that, to the bit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import cache, partial
from math import isclose
from traceback import clear_frames
from typing import Any, TypeAlias, TypeVar
from weakref import ref

import torch
from torch import Tensor

from serve_app.config.limits import SizeLimits
from serve_app.engine.autoencoding import Autoencoding
from serve_app.engine.device_lost import is_lost
from serve_app.engine.engine import Engine
from serve_app.engine.forwards import Counters
from serve_app.engine.loads import AheadCounters, Loads
from serve_app.engine.node_runtime import NodeRuntime
from serve_app.engine.preview import Pictures, picture
from serve_app.engine.text_generation import TEXTS_TOGETHER, Job, go_on
from serve_app.engine.trajectory import Trajectory
from serve_app.errors import DeviceMemoryError, ModelFileError, UnavailableError
from serve_app.models.backbone import RecipeBackbone
from serve_app.models.control import control
from serve_app.models.forward import ReplayCounters
from serve_app.models.kernels.cuda_graphs import replays_of
from serve_app.models.tiling import Tiles
from serve_app.models.unet_patches import gligen
from serve_app.models.weights.recipes import Need
from serve_app.models.weights.residency import Hold
from serve_app.models.weights.weights import LoadCounters, Weights
from serve_app.recipe import HookChange, PackFunctions, Recipe, tiny_vae
from serve_app.sampling.beginning import Beginning, beginning_of
from serve_app.sampling.guidance.hooks import changes, hooks_of
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.request import Sampled, SamplingRequest
from serve_app.values import (
    Cfg,
    GenerationRequest,
    Guider,
    PreviewMethod,
)

M = TypeVar("M")
Q = TypeVar("Q")
T = TypeVar("T")

Show: TypeAlias = Callable[[Any], None]
"""Takes a picture, (h,w,3) in 0…255."""

Loading: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Is entered while a node waits for weights to be loaded."""


def ignored(text: str) -> None:
    """Tell nobody."""


def uncounted() -> AbstractContextManager[None]:
    """Count nothing."""
    return nullcontext()


class EngineRuntime:
    """A replica's engine and weights, as nodes share them.

    latent_cells: the most cells that one run's latents may have, and its references beside them; None sets no limit.
    latent_pairs: the most pairs of those cells that attend to each other.
    limits: how long schedules may be, and the texts that models read and generate.
    """

    def __init__(
        self,
        engine: Engine,
        weights: Weights,
        *,
        latent_cells: int | None = None,
        latent_pairs: int | None = None,
        limits: SizeLimits | None = None,
    ) -> None:
        self.latent_cells, self.latent_pairs = latent_cells, latent_pairs
        self.limits = limits or SizeLimits()
        self._engine = engine
        self.weights = weights
        self.autoencoding = Autoencoding(weights, engine.memory)
        self._loads = Loads(weights, self._failed_to_load, engine.timeline)

    @property
    def counters(self) -> Counters:
        """What the engine has done since it began."""
        return self._engine.counters

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._engine.alive

    @property
    def turns(self) -> tuple[int, int]:
        """The numbers of the engine's turn and of the load that is under way, 0 where there is none."""
        return self._engine.turn, self._loads.turn

    @property
    def unwanted_turn(self) -> int:
        """The number of the engine's turn where all that it computes in it was cancelled; else 0."""
        return self._engine.unwanted_turn

    @property
    def replays(self) -> ReplayCounters:
        """What forwards of its device have been recorded and replayed."""
        return replays_of(self.weights.device).counters

    @property
    def loads(self) -> LoadCounters:
        """What weights have come and gone."""
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
    ) -> NodeRuntime:
        """Return the RUNTIME of one node. progress: called in the event loop with (steps done, steps in all).

        strict: its work is done apart from all other. show: called there with a picture of each step. previews: how
        the pictures are made. remark: called there with what the job's client should know of the models it names.
        loading: entered there while the node waits for weights to be loaded.
        """
        return NodeRuntime(self, progress, strict, show, previews, remark, loading)

    async def release(self) -> None:
        """Evict all weights that are not in use."""
        await self._answer(self._engine.call(self.weights.release))

    async def warm(self, recipes: Sequence[Recipe]) -> None:
        """Load weights that nobody has asked for yet, one after another and between other work.

        Errors: ModelFileError for a file that has not the part.
        """
        for recipe in recipes:
            await self._hold(recipe, uncounted)

    async def load_ahead(self, recipe: Recipe, spared: Callable[[str], bool]) -> bool:
        """Load weights that jobs are about to ask for, as `Loads.load_ahead`. Errors: ModelFileError."""
        try:
            need = await asyncio.to_thread(self.weights.need, recipe)
            return await asyncio.wrap_future(self._loads.load_ahead(need, spared))
        except asyncio.CancelledError:
            self._loads.ahead.dropped += 1
            raise

    @property
    def ahead(self) -> AheadCounters:
        """What was loaded ahead, and what became of it."""
        return self._loads.ahead

    def resident(self) -> tuple[str, ...]:
        """Return short names of the weights that are held, as `Weights.resident`."""
        return self.weights.resident()

    def load_times(self) -> tuple[tuple[str, float], ...]:
        """Return what was loaded since this was last asked, as `Weights.load_times`."""
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
    ) -> Sampled:
        """Run a trajectory; as `Runtime.sample`. strict, show, previews, remark, loading: as `bind`."""
        loop = asyncio.get_running_loop()
        # Held weakly: the run holds what it calls, and a circle would keep its model longer than the run.
        running_now: ref[Trajectory]
        remarks: list[str] = []

        shows = show is not None and previews != "none"
        pictures = Pictures(self._engine.timeline, self._engine.pool) if shows else None

        def on_step(done: int, steps: int) -> Callable[[], None]:
            run = running_now()
            if pictures is not None and run is not None:
                picture_of = partial(self._picture, run.backbone.latent_format, decoded=previews == "taesd")
                pictures.make(run.shown, picture_of)

            def told() -> None:
                loop.call_soon_threadsafe(progress, done, steps)
                if show is not None and pictures is not None and (image := pictures.take()) is not None:
                    loop.call_soon_threadsafe(show, image.numpy())

            return told

        guider = request.guider

        @cache
        def with_bases() -> dict[Recipe, Recipe]:
            return {c: self.weights.with_base(c, guider.backbone) for c in control.recipes(guider.conds)}

        @cache
        def vaes() -> tuple[Recipe, ...]:
            given = control.vaes(guider.conds).items()
            return tuple({vae for net, own in given if self.weights.encodes_hint(net) for vae in own})

        beside, grounding = _of_negative(guider), gligen.recipes(guider.conds)
        hooked = [changes(own) for own in hooks_of(guider.conds)]

        def needed(backbone: Recipe) -> Iterator[Recipe]:
            yield from (backbone, *beside, *grounding, *map(backbone.with_patches, hooked))
            yield from (*with_bases().values(), *vaes())

        @cache
        def fitted() -> Recipe:
            return self.weights.fitted(*needed(guider.backbone))

        def need() -> Need:
            return self.weights.need(*needed(fitted()))

        def begin(hold: Hold, beginning: Beginning) -> Generator[None, None, Future[Sampled]]:
            def variant(further: tuple[HookChange, ...], _held: Hold = hold) -> RecipeBackbone:
                backbone = self.weights.backbone(fitted().with_patches(further))
                return backbone.exclusive() if strict else backbone

            nets = {given: self.weights.control_net(recipe) for given, recipe in with_bases().items()}
            backbone, *others = (self.weights.backbone(recipe) for recipe in (fitted(), *beside))
            for recipe, own in zip((fitted(), *beside), (backbone, *others), strict=True):
                remarks.extend(self.weights.remarks(recipe))
                yield from own.prepared()
            if strict:
                backbone, *others = (own.exclusive() for own in (backbone, *others))
            encoders = {recipe: self.weights.vae(recipe) for recipe in vaes()}
            patches = {recipe: self.weights.model_patch(recipe) for recipe in grounding}
            conds = backbone.activated(guider.conds, nets, encoders, patches)
            controlled = replace(request, guider=replace(guider, conds=conds))
            nonlocal running_now
            changing = variant if hooked else None
            trajectory = Trajectory(backbone, controlled, on_step, changing, *others, beginning=beginning)
            running_now = ref(trajectory)
            return self._engine.submit(trajectory)

        # Begun in the engine's thread, a run joins the very next forward. Its beginning holds the models until then,
        # and from then on the trajectory alone.
        hold = await self._ready(need, loading)
        try:
            begins_with = await asyncio.to_thread(self._beginning, request, fitted())
            started = self._engine.work(begin(hold, begins_with))
        finally:
            del hold
        try:
            running = await self._answer(started)
        except asyncio.CancelledError:
            started.add_done_callback(_cancel_run)
            raise
        for text in remarks:
            remark(text)
        return await self._answer(running)

    def _beginning(self, request: SamplingRequest, backbone: Recipe) -> Beginning:
        """Return the initial state of a run on a resident backbone. An error keeps no reference to the weights."""
        try:
            lent = self.weights.backbone(backbone)
            levels, latent_format = lent.levels, lent.latent_format
            del lent
            with torch.no_grad():
                return beginning_of(request, levels, latent_format)
        except BaseException as error:
            clear_frames(error.__traceback__)
            raise

    def _picture(self, latent_format: LatentFormat, shown: Tensor, *, decoded: bool) -> Tensor | None:
        """Return latents as `picture` does; decoded, if that is wished for and their tiny VAE is here."""
        if decoded and latent_format.tiny:
            # A picture of it is no reason for a run to fail.
            with suppress(ModelFileError, DeviceMemoryError, torch.OutOfMemoryError):
                return self.weights.vae(tiny_vae(latent_format.tiny)).picture(latent_format.from_model(shown[:1]))
        return picture(shown, latent_format)

    async def generate_text(
        self,
        clip: Recipe,
        request: GenerationRequest,
        progress: Callable[[int, int], None],
        *,
        strict: bool,
        loading: Loading = uncounted,
    ) -> str:
        """Generate a text a token at a time, with others of the same model; forwards run in between."""
        loop = asyncio.get_running_loop()
        job = Job(request, lambda done: loop.call_soon_threadsafe(progress, done, request.max_tokens))
        hold = await self._hold(clip, loading)
        generated = self._engine.gather(
            job,
            lambda jobs: go_on(jobs, lambda: self.weights.clip(clip)),
            None if strict else (clip, "generate"),
            most=TEXTS_TOGETHER,
            keeps=hold,
        )
        try:
            return await self._answer(generated)
        except asyncio.CancelledError:
            job.cancelled = True
            raise
        finally:
            del hold

    async def use(
        self, recipe: Recipe, load: Callable[[Recipe], M], work: Callable[[M], T], loading: Loading = uncounted
    ) -> T:
        """Do one piece of work with a recipe's model, once there is room for it. load: the method of Weights for it."""
        hold = await self._hold(recipe, loading)
        try:
            done = self._engine.call(lambda: self._in_room(lambda: work(load(recipe))), beside=True, keeps=hold)
            return await self._answer(done)
        finally:
            # An error that is kept keeps this frame, which must not keep the weights.
            del hold

    async def use_tiled(
        self,
        recipe: Recipe,
        load: Callable[[Recipe], M],
        work: Callable[[M], Tiles],
        progress: Callable[[int, int], None],
        loading: Loading = uncounted,
    ) -> Tensor:
        """Do work with a recipe's model tile by tile; forwards run in between, and the work holds the model."""
        tiles = await self.use(recipe, load, work, loading)
        while True:
            made = await self._answer(self._engine.call(partial(_next_tile, tiles), beside=True, keeps=tiles))
            if isinstance(made, Tensor):
                return made
            progress(*made)

    async def use_together(
        self,
        recipe: Recipe,
        load: Callable[[Recipe], M],
        work: Callable[[M, list[Q]], Sequence[T]],
        question: Q,
        key: Hashable,
        *,
        cost: int | None = None,
        most: int,
        loading: Loading = uncounted,
    ) -> T:
        """Do work with a recipe's model for several nodes at once, as the engine gathers it; as `use`.

        key: beside the recipe, what is equal for those. cost, most: as `Engine.gather`.
        """

        def answers(questions: list[Q]) -> Sequence[T]:
            together = partial(work, load(recipe), questions)
            # Several that do not fit are asked one by one.
            return together() if len(questions) > 1 else self._in_room(together)

        hold = await self._hold(recipe, loading)
        try:
            return await self._answer(
                self._engine.gather(
                    question,
                    answers,
                    (recipe, key),
                    cost=cost,
                    most=most,
                    keeps=hold,
                )
            )
        finally:
            del hold

    async def _hold(self, recipe: Recipe, loading: Loading) -> Hold:
        return await self._ready(lambda: self.weights.need(recipe), loading)

    async def _ready(self, need: Callable[[], Need], loading: Loading) -> Hold:
        """Return what keeps weights in use, which are loaded by then. need: says what they are, beside the loop."""
        hold = await asyncio.wrap_future(self._loads.room(need))
        if not self.weights.is_loaded(hold):
            try:
                with loading():
                    await asyncio.wrap_future(self._loads.load(hold))
            except BaseException:
                del hold
                raise
        return hold

    def _in_room(self, work: Callable[[], T]) -> T:
        """Do work in the engine's thread; where the device runs out of memory, again without idle weights.

        Errors: DeviceMemoryError.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                said = DeviceMemoryError.figures(error)
            # Only here has the error let go of what the work had made.
            if not self.weights.release():
                raise DeviceMemoryError(f"this does not fit the device's memory by itself: {said}")

    def _failed_to_load(self, error: BaseException) -> None:
        """Have the engine close where the error says that the device is lost."""

        def again() -> None:
            raise error

        if is_lost(error):
            with suppress(UnavailableError):
                self._engine.call(again)

    async def _answer(self, future: Future[T]) -> T:
        """Await the engine's answer. An error keeps its traceback but lets go of the models in it."""
        try:
            return await asyncio.wrap_future(future)
        except Exception as error:
            # Cleared in the engine's thread, because only there have the frames that raised it surely ended.
            with suppress(UnavailableError):
                self._engine.call(partial(clear_frames, error.__traceback__))
            raise


def _of_negative(guider: Guider) -> tuple[Recipe, ...]:
    """Return the backbone that answers for a guider's negative, if it is another and the negative counts.

    Functions of node packs are those of the guider's backbone, as in ComfyUI.
    """
    recipe, rule = guider.negative_backbone, guider.rule
    if recipe is None or (isinstance(rule, Cfg) and isclose(rule.scale, 1.0)):
        return ()
    kept = tuple(patch for patch in recipe.patches if not isinstance(patch, PackFunctions))
    return (replace(recipe, patches=(*kept, *guider.backbone.all(PackFunctions))),)


def _cancel_run(beginning: Future[Future[Sampled]]) -> None:
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().cancel()


def _next_tile(tiles: Tiles) -> tuple[int, int] | Tensor:
    try:
        return next(tiles)
    except StopIteration as end:
        whole: Tensor = end.value
        return whole
