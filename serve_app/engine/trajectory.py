"""One sampler run as an object: it shows the rows it waits for, takes the answers, and ends with latents.

It knows one job and one backbone, no other job and no thread. `Backbone` is all that the engine asks of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from serve_app.nodes.runtime import SamplingRequest
from serve_app.sampling.evaluation import Evaluation, Sampler
from serve_app.sampling.guidance import Guidance, Piece
from serve_app.sampling.inpaint import Inpainting, latent_mask
from serve_app.sampling.noise import is_max_denoise, noise, noised
from serve_app.sampling.samplers import SAMPLERS
from serve_app.sampling.sigmas import NoiseLevels, sigmas_for


class Backbone(Protocol):
    """A denoising network on a device.

    key: equal for backbones of equal weights, which may answer for one another. latent_scale: latents times this go in,
    divided by it they come out.
    """

    @property
    def key(self) -> Hashable: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def levels(self) -> NoiseLevels: ...

    @property
    def latent_scale(self) -> float: ...

    def denoise(self, x: Tensor, sigma: Tensor, context: Tensor, context_mask: Tensor | None) -> Tensor:
        """Return D(x, sigma) (R,C,h,w) float32, row by row.

        x: (R,C,h,w) float32. sigma: (R,). context: (R,T,D). context_mask: (R,T), True where context counts; None if all
        of it does. All on `device`.
        """
        ...


class Trajectory:
    """One run of KSampler or KSamplerAdvanced.

    `start` it once, then answer its `pieces` with `feed` until `result` is there. on_step: called with (steps done,
    steps in all) after each step, in whichever thread feeds it. Only `cancel` may be called from another thread.
    """

    # Set by `start`, which needs the engine's thread for them.
    _guidance: Guidance
    _sampler: Sampler
    _evaluation: Evaluation

    def __init__(
        self, backbone: Backbone, request: SamplingRequest, on_step: Callable[[int, int], None] | None = None
    ) -> None:
        self.backbone = backbone
        self.pieces: tuple[Piece, ...] = ()
        """What it waits for; empty before `start` and after the end."""
        self.result: Tensor | None = None
        """The final latents (B,C,h,w), unscaled, float32 on the CPU; None until the end."""
        self.cancelled = False
        self.steps = 0
        """Steps in all, once started."""
        self._request = request
        self._on_step = on_step
        self._steps_done = 0
        self._inpainting: Inpainting | None = None

    def start(self) -> None:
        """Run to the first evaluation. Errors: NodeError for an unknown sampler or schedule."""
        r = self._request
        spec = SAMPLERS[r.sampler]
        sigmas = sigmas_for(
            self.backbone.levels, r.schedule, spec, r.steps, r.denoise, r.start_step, r.end_step, r.full_denoise
        )
        if len(sigmas) < 2:
            self.result = r.latents.to("cpu", torch.float32)
            return
        self.steps = len(sigmas) - 1
        device, shape, sigma = self.backbone.device, r.latents.shape, float(sigmas[0])
        latents = r.latents.to(device, torch.float32) * self.backbone.latent_scale
        drawn = torch.zeros(shape) if r.seed is None else noise(shape, r.seed, r.batch_index)
        drawn = drawn.to(device)
        x = noised(latents, drawn, sigma, max_denoise=is_max_denoise(self.backbone.levels, sigma))
        if r.noise_mask is not None:
            kept_noise = noise(shape, r.noise_seed + 1).to(device) if spec.fresh_inpaint_noise else drawn
            self._inpainting = Inpainting(latent_mask(r.noise_mask, latents), latents, kept_noise)
        self._guidance = Guidance(r.positive, r.negative, r.cfg, shape[0], device)
        self._sampler = spec.start(x, sigmas, r.noise_seed, self.backbone.levels)
        self._run_on(None)

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
        denoised, uncond = self._guidance.combine(self._evaluation, self.pieces, answers)
        if self._inpainting is not None:
            denoised = self._inpainting.restore(denoised)
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
        except StopIteration as end:
            self.result = (end.value / self.backbone.latent_scale).cpu()
            self._report(self.steps)

    def _report(self, steps_done: int) -> None:
        if self._on_step is not None and steps_done > self._steps_done:
            self._on_step(steps_done, self.steps)
        self._steps_done = steps_done
