"""One run of a sampler as an object: it exposes the rows it waits for, takes their answers, and ends with latents.

It knows one job and one backbone, no other job and no thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from torch import Tensor

from serve_app.engine.run_state import Answer, check_outputs
from serve_app.errors import NodeError, RunStateError
from serve_app.log import get
from serve_app.nested_tensor import Samples
from serve_app.recipe.context import ContextWindows
from serve_app.recipe.layers import EasyCache
from serve_app.sampling.beginning import Beginning, beginning_of
from serve_app.sampling.forward import Backbone, Canvas, ModelInput, Piece, denoised_by, model_inputs
from serve_app.sampling.guidance.guidance import Guidance
from serve_app.sampling.guidance.hooks import HookSchedule, Variant
from serve_app.sampling.guidance.layers import LayerPatches
from serve_app.sampling.guidance.rules import rule_of
from serve_app.sampling.latents.inpaint import Inpainting, changing_mask, joint_mask
from serve_app.sampling.latents.layout import ONE_PART
from serve_app.sampling.lazy_sum import Latents, LazySum, compute, value
from serve_app.sampling.noise import after_noise
from serve_app.sampling.request import Sampled, SamplingRequest
from serve_app.sampling.samplers import autoregressive
from serve_app.sampling.samplers.error_estimate import ErrorEstimate
from serve_app.sampling.samplers.evaluation import Evaluation, Sampler
from serve_app.sampling.transfer import to_device, to_host

log = get("engine")

OnStep: TypeAlias = Callable[[int, int], Callable[[], object] | None]


class Trajectory:
    """One run of a sampler.

    | state | what it waits for | next |
    |---|---|---|
    | new | `start`, in the engine's thread | evaluating, or ended |
    | evaluating | `feed` with the answers to its `pieces` | pending |
    | pending | `advance`; sums in `pending` may be computed before, together with other runs' | evaluating, or ended |
    | pending, with a `error_estimate` | `go_on`; it may be read before, together with other runs' | pending |
    | ended | nothing: there is a `result` | |

    A GPU may not have done by then what was enqueued: results and previews have their numbers once it has. on_step:
    called with (steps done, steps in all) after each step was enqueued, in the thread that settles it; what it returns
    is called once the device has done the step (`take_callbacks`). variant: gives the backbone with further LoRAs, for
    conditionings that have hooks. negative: the backbone that answers for the negative, if that is another. beginning:
    schedule, noise and first latents; made by `start` if it is not given. state: the answers of an earlier run of the
    request, after which this one goes on; one that does not go with it is left out. keeps_answers: whether `answers`
    has those to come. activation_bytes: what a forward of one row is planned to take of the device; 0: unknown.
    """

    # Set by `start`, which needs the engine's thread for them.
    _guidance: Guidance
    _sampler: Sampler
    _evaluation: Evaluation
    _denoised: Latents
    _last_sigma: float
    largest: Piece
    """The piece with most latent cells; its group key is part of `key`."""
    _group_key: Hashable

    def __init__(
        self,
        backbone: Backbone,
        request: SamplingRequest,
        on_step: OnStep | None = None,
        variant: Variant | None = None,
        negative: Backbone | None = None,
        *,
        beginning: Beginning | None = None,
        state: Sequence[Answer] = (),
        keeps_answers: bool = False,
        activation_bytes: int = 0,
    ) -> None:
        self.backbone = backbone
        self.activation_bytes = activation_bytes
        self.pieces: tuple[Piece, ...] = ()
        """What it waits for; empty before `start` and after the end."""
        self.pending: tuple[Latents, ...] = ()
        """What `advance` needs; computed there if it is not by then."""
        self.error_estimate: ErrorEstimate | None = None
        """What its sampler waits for instead of an evaluation: to be read once `pending` is computed."""
        self.cells = 0
        """How much work those are, in latent cells."""
        self.result: Sampled | None = None
        """What it ended with; None until then."""
        self.steps = 0
        """Steps in all, once started."""
        self.answers: list[Answer] | None = [] if keeps_answers else None
        """The answers since they were taken last, after those of `state`; None if they are not kept."""
        self.resumed_at = 0
        """How many steps `state` has brought it."""
        self.has_state = bool(state)
        """Whether it goes on after `state`; False too if that does not go with it."""
        self._request = request
        self._on_step = on_step
        self._variant = variant
        self._negative = negative
        self._beginning = beginning
        self._callbacks: list[Callable[[], object]] = []
        self._state = deque(state)
        self._replays = False
        self._reset()

    def _reset(self) -> None:
        self.pieces, self.pending, self.error_estimate, self.result = (), (), None, None
        self._steps_done = 0
        self._seen_step = (-1, 0)
        self._layout = ONE_PART
        self._inpainting: Inpainting | None = None
        self._sums = True
        self._next: Evaluation | None = None
        self._model_input: ModelInput | None = None
        self._reached: Latents | None = None

    def start(self) -> None:
        """Run to the first evaluation, after those of its state.

        Errors: NodeError for an unknown sampler, schedule or guider.
        """
        self._begin()
        try:
            self._replay()
        except RunStateError as error:
            log.warning("a run starts again: %s", error)
            self.has_state = False
            self._state.clear()
            self._reset()
            self._begin()

    def _replay(self) -> None:
        self._replays = True
        try:
            while self._state:
                shapes = [piece.x.shape for piece in self.pieces]
                outputs = check_outputs(self._state.popleft(), shapes)
                self.feed(self._denoised_of([to_device(output, self.backbone.device) for output in outputs]))
                self.advance()
        finally:
            self._replays = False
        if self._steps_done:
            self.resumed_at = self._steps_done
            self._call_on_step()

    def _begin(self) -> None:
        r, levels, latent_format = self._request, self.backbone.levels, self.backbone.latent_format
        beginning, self._beginning = self._beginning or beginning_of(r, levels, latent_format), None
        spec, sigmas, given = beginning.spec, beginning.sigmas, beginning.latents
        layout = self._layout = beginning.layout
        if not len(sigmas):
            self.result = Sampled(layout.unpack(given), layout.unpack(given))
            return
        self.steps = len(sigmas) - 1
        device, sigma = self.backbone.device, float(sigmas[0])
        # Empty latents are of no image, so they are not moved by the mean of those of images.
        placed = to_device(given, device)
        latents = layout.map([of.to_model for of in latent_format.parts], placed) if given.any() else placed
        added = to_device(beginning.noise, device)
        x = levels.start(latents, added, sigma)
        canvas = Canvas(latents, added, seed=r.noise.seed, layout=layout)
        if r.noise_mask is not None:
            mask = joint_mask(r.noise_mask, latents, layout)
            canvas = replace(canvas, mask=mask)
            kept_noise = added if beginning.kept_noise is None else to_device(beginning.kept_noise, device)
            changing = changing_mask(mask, r.guider.backbone.patches, levels, sigmas)
            held_at = None if self.backbone.keeps_clean else levels
            self._inpainting = Inpainting(
                mask, latents, kept_noise, held_at, changing, self.backbone.injection(replace(canvas, noise=kept_noise))
            )
        recipe, seeded = r.guider.backbone, partial(after_noise, layout.shapes_of(given), r.noise.seed, r.batch_index)
        layers = LayerPatches(recipe.patches, levels, seeded)
        # Caches compare evaluations, and those of a video that is made block by block are of several sizes.
        caches = () if r.sampler.name == autoregressive.NAME else recipe.all(EasyCache)
        rule = rule_of(r.guider, levels, layout)
        hooks = None
        if (variant := self._variant) is not None:
            hooks = HookSchedule(levels, float(sigmas.max()), lambda further: variant(further).during(sigmas))
        others = {} if self._negative is None else {"negative": self._negative.during(sigmas)}
        backbone = self.backbone.during(sigmas)
        windows = recipe.last(ContextWindows)
        self._guidance = Guidance(backbone, r.guider.conds, rule, canvas, layers, caches, hooks, others, windows)
        self._denoised = x
        if self.steps < 1:
            self._end(x, sigma)
            return
        self._sampler = spec.start(LazySum.of(x), sigmas, r.noise.seed, levels, r.sampler.options)
        self._last_sigma = float(sigmas[-1])
        self._advance(None)
        self.advance()

    @property
    def shown(self) -> Tensor:
        """The first part of the latest step's denoised estimate: as the backbone samples it, on its device."""
        return self._layout.parts(value(self._denoised))[0]

    @property
    def is_sum(self) -> bool:
        """Whether answers are only added up, so that they need not be computed before they are fed."""
        return self._guidance.is_sum

    @property
    def key(self) -> Hashable:
        """What must be equal for evaluations to share a forward: the backbone, and what its network groups by."""
        return self.backbone.key, self._group_key

    @property
    def budget_key(self) -> Hashable:
        """The key under which the size of forwards is learned: the weights, and what their network groups by."""
        return self.backbone.network.key, self._group_key

    def denoised(self, outputs: Sequence[Tensor]) -> list[Latents]:
        """Return the denoised rows of `pieces` from the network's outputs for them, to be fed; lazy sums."""
        if self.answers is not None:
            self.answers.append(tuple(outputs))
        return self._denoised_of(outputs)

    def _denoised_of(self, outputs: Sequence[Tensor]) -> list[Latents]:
        return [denoised_by(piece, output) for piece, output in zip(self.pieces, outputs, strict=True)]

    def feed(self, answers: Sequence[Latents]) -> None:
        """Take the denoised rows of `pieces`, in their order, and write down what follows; to be settled next."""
        self.pieces = self._guidance.take(self._evaluation, answers)
        if not self.pieces:
            self._advance(self._combined())

    def go_on(self) -> None:
        """Tell the sampler its `error_estimate`, read here if it is not by then, and write down what follows."""
        assert self.error_estimate is not None, "it waits for one"
        if self._state:
            number = self._state.popleft()
            if isinstance(number, tuple):
                raise RunStateError("the state of a run has outputs where it needs the number of an error estimate")
        else:
            number = self.error_estimate.number
            if self.answers is not None:
                self.answers.append(number)
        self.error_estimate = None
        self._advance(number)

    def advance(self) -> None:
        """Run to what is to be answered next or to the end."""
        while not self.pieces:
            compute(self.pending)
            self.pending = ()
            if self.error_estimate is not None:
                self.go_on()
                continue
            if self._next is None:
                assert self._reached is not None, "without a next evaluation it has reached its end"
                self._end(value(self._reached), self._last_sigma)
                self._report(self.steps)
                return
            self._report(self._next.step)
            self._evaluation = self._next
            self.pieces = self._guidance.pieces(self._evaluation, self._model_input)
            if not self.pieces:
                # No entry takes part at this level, or what there is need not be computed.
                self.pieces = self._guidance.take(self._evaluation, ())
            if not self.pieces:
                self._advance(self._combined())
        self._measure()

    def take_callbacks(self) -> list[Callable[[], object]]:
        """Return the callbacks of steps that were enqueued, to be called once the device has done them; each once."""
        callbacks, self._callbacks = self._callbacks, []
        return callbacks

    def _combined(self) -> Latents | tuple[Latents, Latents]:
        """Return what the sampler is sent: of the kind that its x is of."""
        denoised, uncond = self._guidance.combine(self._evaluation)
        if self._inpainting is not None:
            denoised = self._inpainting.restore(denoised, self._evaluation.sigma)
        # What is sent is used again and again, so it is computed with what follows from it.
        denoised, uncond = LazySum.of(denoised), LazySum.of(uncond)
        step = (self._evaluation.step, self._evaluation.substep)
        if step > self._seen_step:
            # The first estimate of a step is what clients are shown of it.
            self._seen_step, self._denoised = step, denoised
        if self._evaluation.want_uncond:
            self.pending = (denoised, uncond)
            return (denoised, uncond) if self._sums else (denoised.value, uncond.value)
        self.pending = (denoised,)
        return denoised if self._sums else denoised.value

    def _advance(self, answer: Latents | tuple[Latents, Latents] | float | None) -> None:
        """Run the sampler to what it waits for next or to its end."""
        try:
            asked = self._sampler.send(answer)
        except (ValueError, ZeroDivisionError) as error:
            name = self._request.sampler.name
            raise NodeError(f"sampler '{name}' cannot step over the sigmas it was given: {error}") from error
        except StopIteration as end:
            self._next, self._reached = None, end.value
            self.pending += (end.value,)
            return
        if isinstance(asked, ErrorEstimate):
            self.error_estimate = asked
            self.pending += (asked.low, asked.high, asked.before)
            return
        self._sums = isinstance(asked.x, LazySum)
        self._next = held = asked if self._inpainting is None else self._inpainting.hold(asked)
        [self._model_input] = model_inputs([(self._guidance.backbone, held.x, held.sigma)])
        self.pending += (held.x, asked.x, *asked.kept, self._model_input.fed, self._model_input.timestep)

    def _measure(self) -> None:
        # That of the whole canvas, if not all entries have areas.
        self.largest = max(self.pieces, key=lambda piece: piece.cells)
        self._group_key = self.largest.group_key
        self.cells = sum(piece.cells for piece in self.pieces)

    def _end(self, x: Tensor, sigma: float) -> None:
        latents = self.backbone.levels.unnoised(x, sigma)
        self.result = Sampled(self._samples(latents), self._samples(value(self._denoised)))

    def _samples(self, x: Tensor) -> Samples:
        """Return latents that the backbone samples as a LATENT has them, on the host."""
        from_model = [latent_format.from_model for latent_format in self.backbone.latent_format.parts]
        return self._layout.unpack(to_host(self._layout.map(from_model, x)))

    def _report(self, steps_done: int) -> None:
        more, self._steps_done = steps_done > self._steps_done, steps_done
        if not more:
            return
        if not self._replays:
            self._call_on_step()
        if self._request.after_step is not None:
            denoised, x = (self._layout.unpack(of) for of in (value(self._denoised), self._evaluation.latents))
            self._request.after_step(steps_done - 1, denoised, x, self.steps)

    def _call_on_step(self) -> None:
        if self._on_step is not None and (callback := self._on_step(self._steps_done, self.steps)) is not None:
            self._callbacks.append(callback)
