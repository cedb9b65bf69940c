"""One sampler run as an object: it shows the rows it waits for, takes the answers, and ends with latents.

It knows one job and one backbone, no other job and no thread.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.runtime import Sampled, SamplingRequest, Steps
from serve_app.sampling.evaluation import Evaluation, Sampler, SamplerSpec
from serve_app.sampling.guidance import Guidance
from serve_app.sampling.inpaint import Inpainting, differential, latent_mask
from serve_app.sampling.noise import is_max_denoise, noise, noised
from serve_app.sampling.rows import Backbone, Canvas, Piece
from serve_app.sampling.rules import rule_of
from serve_app.sampling.samplers import SAMPLERS
from serve_app.sampling.sigmas import sigmas_for
from serve_app.values import DifferentialDiffusion


class Trajectory:
    """One run of a sampler.

    `start` it once, then answer its `pieces` with `feed` until `result` is there. on_step: called with (steps done,
    steps in all) after each step, in whichever thread feeds it. Only `cancel` may be called from another thread.
    """

    # Set by `start`, which needs the engine's thread for them.
    _guidance: Guidance
    _sampler: Sampler
    _evaluation: Evaluation
    _denoised: Tensor

    def __init__(
        self, backbone: Backbone, request: SamplingRequest, on_step: Callable[[int, int], None] | None = None
    ) -> None:
        self.backbone = backbone
        self.pieces: tuple[Piece, ...] = ()
        """What it waits for; empty before `start` and after the end."""
        self.result: Sampled | None = None
        """What it ended with; None until then."""
        self.cancelled = False
        self.steps = 0
        """Steps in all, once started."""
        self._request = request
        self._on_step = on_step
        self._steps_done = 0
        self._seen_step = (-1, 0)
        self._inpainting: Inpainting | None = None

    def start(self) -> None:
        """Run to the first evaluation. Errors: NodeError for an unknown sampler, schedule or guider."""
        r = self._request
        spec = SAMPLERS[r.sampler.name]
        sigmas = self._sigmas(spec)
        if not len(sigmas):
            latents = r.latents.to("cpu", torch.float32)
            self.result = Sampled(latents, latents)
            return
        self.steps = len(sigmas) - 1
        device, shape, sigma = self.backbone.device, r.latents.shape, float(sigmas[0])
        latents = r.latents.to(device, torch.float32) * self.backbone.latent_scale
        drawn = noise(shape, r.noise.seed, r.batch_index) if r.noise.added else torch.zeros(shape)
        drawn = drawn.to(device)
        x = noised(latents, drawn, sigma, max_denoise=is_max_denoise(self.backbone.levels, sigma))
        canvas = Canvas(latents, drawn)
        if r.noise_mask is not None:
            canvas = Canvas(latents, drawn, latent_mask(r.noise_mask, latents))
            kept_noise = noise(shape, r.noise.seed + 1).to(device) if spec.fresh_inpaint_noise else drawn
            patches = [p for p in r.guider.backbone.patches if isinstance(p, DifferentialDiffusion)]
            changing = differential(patches[-1], self.backbone.levels, sigmas) if patches else None
            self._inpainting = Inpainting(latent_mask(r.noise_mask, latents), latents, kept_noise, changing)
        self._guidance = Guidance(self.backbone, r.guider.conds, rule_of(r.guider), canvas)
        self._denoised = x
        if self.steps < 1:
            self._end(x)
            return
        self._sampler = spec.start(x, sigmas, r.noise.seed, self.backbone.levels, r.sampler.options)
        self._run_on(None)

    def _sigmas(self, spec: SamplerSpec) -> Tensor:
        given = self._request.sigmas
        if isinstance(given, Steps):
            return sigmas_for(
                self.backbone.levels,
                given.schedule,
                spec,
                given.count,
                given.denoise,
                given.start,
                given.end,
                given.full_denoise,
            )
        return given.to("cpu", torch.float32)

    @property
    def shown(self) -> Tensor:
        """What the latest step takes for the image: scaled latents as x, on the backbone's device."""
        return self._denoised

    @property
    def key(self) -> Hashable:
        """What must be equal for evaluations to share a forward: the weights, and the latents' shape (C,h,w)."""
        return (self.backbone.key, *self._evaluation.x.shape[1:])

    @property
    def rows(self) -> int:
        """How many rows its pieces take in a forward."""
        return sum(piece.rows for piece in self.pieces)

    def feed(self, answers: Sequence[Tensor]) -> None:
        """Take the denoised rows of `pieces`, in their order, and run to the next evaluation or to the end."""
        self._run_on(self._combined(answers))

    def cancel(self) -> None:
        """Ask it to stop; whoever drives it drops it before its next evaluation."""
        self.cancelled = True

    def _combined(self, answers: Sequence[Tensor]) -> Tensor | tuple[Tensor, Tensor | None]:
        denoised, uncond = self._guidance.combine(self._evaluation, answers)
        if self._inpainting is not None:
            denoised = self._inpainting.restore(denoised, self._evaluation.sigma)
        step = (self._evaluation.step, self._evaluation.substep)
        if step > self._seen_step:
            # What a step first takes for the image is what clients are shown of it.
            self._seen_step, self._denoised = step, denoised
        return (denoised, uncond) if self._evaluation.want_uncond else denoised

    def _run_on(self, answer: Tensor | tuple[Tensor, Tensor | None] | None) -> None:
        self.pieces = ()
        try:
            while not self.pieces:
                evaluation = self._sampler.send(answer)
                self._report(evaluation.step)
                self._evaluation = evaluation if self._inpainting is None else self._inpainting.hold(evaluation)
                self.pieces = self._guidance.pieces(self._evaluation)
                if not self.pieces:
                    # No entry takes part at this level, so there is nothing to ask the network.
                    answer = self._combined(())
        except (ValueError, ZeroDivisionError) as error:
            name = self._request.sampler.name
            raise NodeError(f"sampler '{name}' cannot step over the sigmas it was given: {error}") from error
        except StopIteration as end:
            self._end(end.value)
            self._report(self.steps)

    def _end(self, x: Tensor) -> None:
        scale = self.backbone.latent_scale
        self.result = Sampled((x / scale).cpu(), (self._denoised / scale).cpu())

    def _report(self, steps_done: int) -> None:
        if self._on_step is not None and steps_done > self._steps_done:
            self._on_step(steps_done, self.steps)
        self._steps_done = steps_done
