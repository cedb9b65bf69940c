"""One sampling of a node: which weights it needs, what it begins with, its run in the engine, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from math import isclose
from typing import Any, TypeAlias

import torch
from torch import Tensor

from serve_app import tracing
from serve_app.engine.engine import Engine
from serve_app.engine.preview import Pictures, picture
from serve_app.engine.run_state import Answer, StateSaver
from serve_app.engine.trajectory import Trajectory
from serve_app.errors import DeviceMemoryError, ModelFileError, UnavailableError
from serve_app.models.backbone import RecipeBackbone
from serve_app.models.control import control
from serve_app.models.unet_patches import gligen
from serve_app.models.weights.memory_plan import ACTIVATIONS_MARGIN
from serve_app.models.weights.planner import Size, change_to_fit
from serve_app.models.weights.recipes import Need
from serve_app.models.weights.residency import Hold
from serve_app.models.weights.weights import Weights
from serve_app.nested_tensor import parts_of
from serve_app.recipe.hooks import HookChange
from serve_app.recipe.layers import EasyCache
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.recipe.recipe import Recipe, tiny_vae, tiny_video_vae
from serve_app.sampling.beginning import Beginning, beginning_of
from serve_app.sampling.guidance.hooks import changes, hooks_of
from serve_app.sampling.request import Sampled, SamplingRequest
from serve_app.values import Cfg, Guider, PreviewMethod

GB = 10**9
Show: TypeAlias = Callable[[Any], None]
"""Takes a picture, (h,w,3) in 0…255."""


class SamplingRun:
    """A run of a sampler from its request to its latents, on weights that a hold keeps.

    | state | what happens | in | next |
    |---|---|---|---|
    | waiting | `requirements`: until its weights have room | the thread of rooms | loading |
    | loading | absent weights are loaded | the thread of loads | preparing |
    | preparing | `prepare`: schedule and noise | a worker thread | resolving |
    | resolving | `start`: models, conditionings, LoRAs; a `Trajectory` | the engine's thread | running |
    | running | forwards; `on_step` after each step was enqueued | the engine's thread | closed |
    | closed | `close`: nothing of it is on the device any more | the engine's thread | |

    Until it runs, the caller closes the hold, in whichever state it ends or is cancelled; a run has a hold of its own,
    which the engine closes. strict: it shares no forward, so what else runs changes no bit. progress: called in the
    event loop with (steps done, steps in all); show: there, with a picture of each step, made as `previews` says;
    remark: there, with what the job's client should know. saver: of its state; None: it has none.
    step_cache: for a backbone that has none of its own, unless strict; None: none.
    """

    def __init__(
        self,
        engine: Engine,
        weights: Weights,
        request: SamplingRequest,
        progress: Callable[[int, int], None],
        *,
        strict: bool = False,
        show: Show | None = None,
        previews: PreviewMethod = "none",
        remark: Callable[[str], None] = lambda text: None,
        saver: StateSaver | None = None,
        step_cache: EasyCache | None = None,
    ) -> None:
        self.remarks: list[str] = []
        """What users should know of the models, once it runs."""
        self._engine = engine
        self._weights = weights
        self._request = request
        self._guider = request.guider if strict or step_cache is None else _with_cache(request.guider, step_cache)
        self._strict = strict
        self._loop = asyncio.get_running_loop()
        self._trace = tracing.traceparent()
        self._progress = progress
        self._show = show
        self._decodes_pictures = previews == "taesd"
        shows = show is not None and previews != "none"
        self._pictures = Pictures(engine.timeline, engine.pool) if shows else None
        self._hooks = [changes(own) for own in hooks_of(self._guider.conds)]
        self._hold: Hold | None = None
        self._preview_hold: Hold | None = None
        self._trajectory: Trajectory | None = None
        self._running: Future[Sampled] | None = None
        self._cancelled = False
        self._remark = remark
        self._saver = saver
        self._state: Sequence[Answer] = ()

    def requirements(self) -> Need:
        """Return all weights that the run needs at once. It opens files. Errors: ModelFileError."""
        return self._weights.needs.of(*self._needed(self._backbone), activation_bytes=self._activation_bytes)

    def prepare(self, hold: Hold) -> Beginning:
        """Return schedule, noise and first latents; read its state.

        Errors: NodeError for an unknown sampler or schedule.
        """
        if self._saver is not None:
            self._state = self._saver.read()
        backbone = self._weights.backbone(self._backbone, hold)
        with torch.no_grad():
            return beginning_of(self._request, backbone.levels, backbone.latent_format)

    def start(self, hold: Hold, beginning: Beginning) -> Generator[None, None, Future[Sampled]]:
        """Submit the run to the engine, in whose thread it joins the next forward; yield between long parts.

        hold: of `requirements`, loaded. Errors: NodeError for what does not go with its models.
        """
        nets = {given: self._weights.control_net(recipe, hold) for given, recipe in self._control_nets.items()}
        backbone, *others = (self._weights.backbone(recipe, hold) for recipe in self._backbones)
        for recipe, own in zip(self._backbones, (backbone, *others), strict=True):
            self.remarks.extend(self._weights.remarks(recipe))
            yield from own.prepared(beginning.layout)
        if self._strict:
            backbone, *others = (own.exclusive() for own in (backbone, *others))
        encoders = {recipe: self._weights.vae(recipe, hold) for recipe in self._hint_vaes}
        patches = {recipe: self._weights.model_patch(recipe, hold) for recipe in self._grounding}
        conds = backbone.activated(self._guider.conds, nets, encoders, patches)
        request = replace(self._request, guider=replace(self._guider, conds=conds))
        variant = self._variant if self._hooks else None
        self._hold = hold.share()
        self._trajectory = Trajectory(
            backbone,
            request,
            self.on_step,
            variant,
            *others,
            beginning=beginning,
            state=self._state,
            keeps_answers=self._saver is not None,
            activation_bytes=self._activation_bytes,
        )
        self._running = self._engine.submit(self._trajectory, uses=self, trace=self._trace)
        if self._cancelled:
            self._running.cancel()
        return self._running

    def cancel(self) -> None:
        """Have the run leave the engine, which it may be joining at this moment in the engine's thread."""
        self._cancelled = True
        if self._running is not None:
            self._running.cancel()

    def on_step(self, done: int, steps: int) -> Callable[[], None]:
        """Have a picture made of a step that was enqueued; return what reports the step once the device has done it."""
        trajectory = self._trajectory
        assert trajectory is not None, "a run that steps is not closed"
        if self._pictures is not None:
            self._pictures.make(trajectory.shown, self._picture)
        if done == trajectory.resumed_at and self._saver is not None:
            self._saver.resumed(done)
            text = f"went on at step {done + 1} of {steps} on another replica"
            self._loop.call_soon_threadsafe(self._remark, text)
        return partial(self._report, done, steps, self._taken(trajectory) if done < steps else None)

    def _taken(self, trajectory: Trajectory) -> Callable[[], object] | None:
        """Take the run's answers if its saver wants them; return what has them saved."""
        saver, answers = self._saver, trajectory.answers
        if saver is None or answers is None:
            return None
        if self._state and not trajectory.has_state:
            saver.restart()
        self._state = ()
        if saver.is_full:
            trajectory.answers = None
        elif saver.wants(answers):
            trajectory.answers = []
            return saver.take(answers)
        return None

    def take_all(self) -> Callable[[], Future[None]] | None:
        """Take all of its state that is not saved; return what saves it once the device has done the copies.

        Called in the engine's thread, as another replica is to go on with it.
        """
        trajectory = self._trajectory
        if self._saver is None or trajectory is None or trajectory.answers is None:
            return None
        answers, trajectory.answers = trajectory.answers, None
        return self._saver.take(answers, now=True)

    def forget(self) -> None:
        """Delete its state: the run has ended."""
        if self._saver is not None:
            self._saver.delete()

    def close(self) -> None:
        """Let its weights go. Called by the engine once the device has done all of the run, in the engine's thread."""
        self._trajectory = None
        if self._hold is not None:
            self._hold.close()
        if self._preview_hold is not None:
            # Pictures are made on the side stream, which may not have done the last one.
            with suppress(UnavailableError):
                self._engine.call(lambda: None, side_stream=True, uses=self._preview_hold)

    def _report(self, done: int, steps: int, save: Callable[[], object] | None) -> None:
        self._loop.call_soon_threadsafe(self._progress, done, steps)
        if save is not None:
            save()
        if self._show is not None and self._pictures is not None and (image := self._pictures.take()) is not None:
            self._loop.call_soon_threadsafe(self._show, image.numpy())

    def _picture(self, shown: Tensor) -> Tensor | None:
        """Return latents as `picture` does; decoded, if that is asked for and their tiny VAE is here."""
        assert self._trajectory is not None, "a run that shows something is not closed"
        latent_format = self._trajectory.backbone.latent_format
        if self._decodes_pictures and latent_format.tiny:
            name = latent_format.tiny
            recipe = tiny_video_vae(f"{name}.safetensors") if latent_format.frames else tiny_vae(name)
            # A picture of it is no reason for a run to fail.
            with suppress(ModelFileError, DeviceMemoryError, torch.OutOfMemoryError):
                if self._preview_hold is None:
                    self._preview_hold = self._weights.open(recipe)
                vae = self._weights.vae(recipe, self._preview_hold)
                return vae.picture(latent_format.from_model(shown[:1]))
        return picture(shown, latent_format)

    def _variant(self, further: tuple[HookChange, ...]) -> RecipeBackbone:
        """Return the backbone with the LoRAs of hooks."""
        assert self._hold is not None, "only a run has hooks"
        backbone = self._weights.backbone(self._backbone.with_patches(further), self._hold)
        return backbone.exclusive() if self._strict else backbone

    @cached_property
    def _backbone(self) -> Recipe:
        """The guider's backbone; one that streams where not all weights fit beside its forwards.

        Errors: DeviceMemoryError, with what would fit, where a forward of one row has no room even so.
        """
        self._refuse_too_large()
        return self._weights.needs.fitted(*self._needed(self._guider.backbone), activation_bytes=self._activation_bytes)

    def _refuse_too_large(self) -> None:
        needed = self._activation_bytes
        if not needed:
            return
        own, elsewhere = self._weights.needs.room_with(*self._needed(self._guider.backbone))
        # What is counted has a margin, which a forward that would just fit need not have.
        if needed <= ACTIVATIONS_MARGIN * own:
            return
        # Of joint latents the first part is the video.
        size = Size.of(parts_of(self._request.latents)[0], self._weights.latent_format(self._guider.backbone))
        change = change_to_fit(size, needed, own, elsewhere)
        raise DeviceMemoryError(
            f"{size}: one row's forward takes {needed / GB:.1f} GB of the GPU, which beside streaming weights has room "
            f"for {max(0, own) / GB:.1f} GB; what would fit: {change or 'nothing near; take a smaller size'}"
        )

    @cached_property
    def _activation_bytes(self) -> int:
        """What a forward of one of its rows takes of the device, beside weights."""
        request = self._request
        return self._weights.needs.activation_bytes(
            self._guider.backbone, request.latents, self._guider.conds, request.factor
        )

    @cached_property
    def _backbones(self) -> tuple[Recipe, ...]:
        return (self._backbone, *_of_negative(self._guider))

    @cached_property
    def _control_nets(self) -> dict[Recipe, Recipe]:
        """The recipes of ControlNets with the backbones whose weights they change, by those of the conditionings."""
        recipes = control.recipes(self._guider.conds)
        return {recipe: self._weights.with_base(recipe, self._guider.backbone) for recipe in recipes}

    @cached_property
    def _hint_vaes(self) -> tuple[Recipe, ...]:
        given = control.vaes(self._guider.conds).items()
        return tuple({vae for net, own in given if self._weights.encodes_hint(net) for vae in own})

    @cached_property
    def _grounding(self) -> tuple[Recipe, ...]:
        """The networks that read the boxes of texts."""
        return tuple(gligen.recipes(self._guider.conds))

    def _needed(self, backbone: Recipe) -> tuple[Recipe, ...]:
        """Return the recipes of all models of the run, with a backbone's."""
        hooked = map(backbone.with_patches, self._hooks)
        others = (*_of_negative(self._guider), *self._grounding, *hooked)
        return (backbone, *others, *self._control_nets.values(), *self._hint_vaes)


def _with_cache(guider: Guider, cache: EasyCache) -> Guider:
    """Return a guider whose backbone has a step cache: its own, or this one."""
    recipe = guider.backbone
    return guider if recipe.all(EasyCache) else replace(guider, backbone=recipe.with_patch(cache))


def _of_negative(guider: Guider) -> tuple[Recipe, ...]:
    """Return the backbone that answers for a guider's negative, if it is another and the negative counts.

    Functions of node packs are those of the guider's backbone, as in ComfyUI.
    """
    recipe, rule = guider.negative_backbone, guider.rule
    if recipe is None or (isinstance(rule, Cfg) and isclose(rule.scale, 1.0)):
        return ()
    kept = tuple(patch for patch in recipe.patches if not isinstance(patch, PackFunctions))
    return (replace(recipe, patches=(*kept, *guider.backbone.all(PackFunctions))),)
