"""Mixes of jobs, and what each gives alone: the oracle that batching is held against, for any backbone.

`alone` uses neither Trajectory nor Engine: it evaluates one row at a time, with cfg written out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from serve_app.models.backbone import stack_contexts
from serve_app.nodes.runtime import SamplingRequest, Steps
from serve_app.sampling.rows import Inputs, Piece, to_batch
from serve_app.sampling.samplers import SAMPLERS
from serve_app.sampling.sigmas import SCHEDULES, NoiseLevels, sigmas_for
from serve_app.values import Guider, Noise, Recipe, SamplerChoice

RECIPE = Recipe("backbone", "checkpoints", "tiny.safetensors")
WIDTH = 6
"""The width D of the tiny backbone's contexts."""


class TinyBackbone:
    """A denoiser of a few operations that attends over its context, row by row, honouring the mask.

    Contexts steer it mildly, so that rounding stays rounding over a few steps. calls: the shapes of x it was given.
    before: run at each forward, in the engine's thread, with the count so far.
    """

    def __init__(self, name: str = "tiny", before: Any = None) -> None:
        self.key = name
        self.device = torch.device("cpu")
        self.levels = NoiseLevels()
        self.latent_scale = 0.18215
        self.calls: list[tuple[int, ...]] = []
        self.before = before
        generator = torch.Generator().manual_seed(sum(name.encode()))
        self.query = torch.randn(4, WIDTH, generator=generator) / 2
        self.value = torch.randn(WIDTH, 4, generator=generator) / WIDTH

    def inputs(self, cond, options, role, canvas):
        return Inputs(to_batch(cond, canvas.rows))

    def denoise(self, pieces):
        x = torch.cat([piece.x for piece in pieces])
        sigma = torch.tensor([piece.sigma for piece in pieces for _ in range(piece.rows)])
        context, mask = stack_contexts([piece.inputs.context for piece in pieces])
        return list(self.forward(x, sigma, context, mask).split([piece.rows for piece in pieces]))

    def forward(self, x, sigma, context, context_mask=None):
        self.calls.append(tuple(x.shape))
        if self.before is not None:
            self.before(len(self.calls))
        level = sigma.view(-1, 1, 1, 1)
        scores = torch.einsum("rc,cd,rtd->rt", x.mean(dim=(2, 3)) / (1 + sigma)[:, None], self.query, context)
        if context_mask is not None:
            scores = scores.masked_fill(~context_mask, -torch.inf)
        read = torch.einsum("rt,rtd,dc->rc", scores.softmax(dim=1), context, self.value)
        return x / (1 + level**2) + 0.3 * torch.sin(x / (1 + level) + read[:, :, None, None])


def conditioning(seed: int, length: int, rows: int = 1, width: int = WIDTH):
    return [(torch.randn(rows, length, width, generator=torch.Generator().manual_seed(seed)), {})]


def request(**changes: Any) -> SamplingRequest:
    """Return a small valid request with some of it changed; `shape` is that of the latents."""
    generator = torch.Generator().manual_seed(changes.get("seed", 0) or 0)
    shape = changes.pop("shape", (1, 4, 4, 4))
    seed = changes.pop("seed", 0)
    defaults: dict[str, Any] = {
        "latents": torch.randn(shape, generator=generator),
        "batch_index": None,
        "noise_mask": None,
    }
    conds = {
        "positive": changes.pop("positive", conditioning(1, 3)),
        "negative": changes.pop("negative", conditioning(2, 3)),
    }
    steps = Steps(
        changes.pop("schedule", "normal"),
        changes.pop("steps", 4),
        changes.pop("denoise", 1.0),
        changes.pop("start_step", None),
        changes.pop("end_step", None),
        changes.pop("full_denoise", True),
    )
    return SamplingRequest(
        Guider(changes.pop("backbone", RECIPE), conds, "cfg", {"cfg": changes.pop("cfg", 5.0)}),
        sampler=SamplerChoice(changes.pop("sampler", "euler")),
        sigmas=steps,
        noise=Noise(changes.pop("noise_seed", seed or 0), added=seed is not None),
        **{**defaults, **changes},
    )


def alone(backbone, r: SamplingRequest) -> torch.Tensor:
    """Return what the request gives with every row of every evaluation in a forward of its own."""
    spec, s = SAMPLERS[r.sampler.name], r.sigmas
    sigmas = sigmas_for(backbone.levels, s.schedule, spec, s.count, s.denoise, s.start, s.end, s.full_denoise)
    if len(sigmas) < 2:
        return r.latents
    sigma = sigmas[0]
    scale = (1 + sigma**2).sqrt() if sigma > backbone.levels.sigma_max * (1 - 1e-5) else sigma
    seeded = torch.Generator().manual_seed(r.noise.seed)
    drawn = torch.randn(r.latents.shape, generator=seeded) if r.noise.added else 0
    x = r.latents * backbone.latent_scale + drawn * scale

    def branch(x, sigma, cond):
        context = cond[0][0]
        rows = [
            backbone.denoise([Piece(backbone, row[None], sigma, Inputs(context[i % len(context)][None]))])[0]
            for i, row in enumerate(x)
        ]
        return torch.cat(rows)

    conds, cfg = r.guider.conds, r.guider.scales["cfg"]
    sampler = spec.start(x, sigmas, r.noise.seed, backbone.levels)
    answer = None
    while True:
        try:
            evaluation = sampler.send(answer)
        except StopIteration as end:
            return end.value / backbone.latent_scale
        answer = branch(evaluation.x, evaluation.sigma, conds["positive"])
        if cfg != 1.0 or evaluation.want_uncond:
            low = branch(evaluation.x, evaluation.sigma, conds["negative"])
            answer = low + cfg * (answer - low)
            if evaluation.want_uncond:
                answer = (answer, low)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return ‖ours − theirs‖ / ‖theirs‖."""
    return float((ours - theirs).norm() / theirs.norm())


@dataclass
class Job:
    """One job of a mix. joins, leaves: the forward before which it is submitted and cancelled; leaves None: never."""

    request: SamplingRequest
    joins: int
    leaves: int | None


@st.composite
def jobs(draw: st.DrawFn, shapes: tuple[tuple[int, int, int], ...] = ((4, 4, 4), (4, 4, 6)), width: int = WIDTH) -> Job:
    """Any job: every sampler and schedule, windows, cfg with and without uncond, prompt lengths, batches, shapes."""
    steps = draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**64 - 1))
    lengths = st.integers(1, 5)
    start = draw(st.none() | st.integers(0, steps))
    made = request(
        shape=(draw(st.integers(1, 3)), *draw(st.sampled_from(shapes))),
        positive=conditioning(draw(st.integers(0, 9)), draw(lengths), draw(st.integers(1, 2)), width),
        negative=conditioning(draw(st.integers(0, 9)), draw(lengths), width=width),
        sampler=draw(st.sampled_from(sorted(SAMPLERS))),
        schedule=draw(st.sampled_from(sorted(SCHEDULES))),
        steps=steps,
        cfg=draw(st.sampled_from([0.0, 1.0, 2.5, 7.0])),
        seed=draw(st.none() | st.just(seed)),
        noise_seed=seed,
        denoise=draw(st.sampled_from([1.0, 0.6])),
        start_step=start,
        end_step=draw(st.none() | st.integers(0, steps)),
        full_denoise=draw(st.booleans()),
    )
    return Job(made, joins=draw(st.integers(0, 8)), leaves=draw(st.none() | st.integers(0, 12)))
