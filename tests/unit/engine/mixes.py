"""Mixes of jobs, and what each gives alone: the oracle that batching is held against, for any backbone.

`alone` uses neither Trajectory, Guidance, rules nor Engine: it evaluates one row at a time, with means, guidance and
inpainting written out. Where a resolved entry counts and how strongly is `conditioning`'s to say, which has its own
tests.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import strategies as st

from serve_app.engine.curve import Curves
from serve_app.models.families.unet.unet import UnetInputs, stack_contexts
from serve_app.models.split_batch import split_batch
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.denoiser import ImgToImg
from serve_app.sampling.forward import Piece, denoise, to_batch
from serve_app.sampling.guidance.conditioning import area_of, resolved, weight_of
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.sampling.samplers.evaluation import next_evaluation
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.sampling.schedules.levels import FlowLevels, Levels, TableLevels
from serve_app.sampling.schedules.sigmas import SCHEDULES, sigmas_for
from serve_app.sampling.transfer import to_device
from serve_app.values import Cfg, DualCfg, Guider, Noise, PerpNeg, SamplerChoice

RECIPE = Recipe("backbone", "checkpoints", "tiny.safetensors")
SCALE = 0.18215
MAX_CELLS = 2**16
"""Of an engine's forward: more than any mix of these has."""
WIDTH = 6
"""The width D of the tiny backbone's contexts."""


class AllThatFit(Curves):
    """Takes the largest size, whatever was measured."""

    def enough(self, key: Hashable, sizes: Sequence[int]) -> int:
        return len(sizes)


@contextmanager
def all_that_fit() -> Iterator[None]:
    """Have the forwards of engines made here hold all that fit, whatever they take on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve_app.engine.engine.Curves", AllThatFit)
        yield


Answer: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""What a rule makes of its branches, and the branch that stands for the negative."""


class TinyBackbone:
    """A denoiser of a few operations that attends over its context, row by row, honouring the mask.

    Contexts steer it mildly, so that rounding stays rounding over a few steps. calls: the shapes of x it was given.
    before: run at each forward, in the engine's thread, with the count so far. levels, latent_format: Stable Diffusion
    1's if they are not given. gain: what its answers are multiplied by, to see what a run makes of a small change.
    """

    def __init__(
        self, name: str = "tiny", before: Any = None, levels: Levels | None = None, latents: LatentFormat | None = None
    ) -> None:
        self.key = name
        self.device = torch.device("cpu")
        self.levels = levels or TableLevels()
        self.prediction = ImgToImg()
        self.keeps_clean = False
        self.latent_format = latents or LatentFormat(4, scale=SCALE)
        self.calls: list[tuple[int, ...]] = []
        self.before = before
        self.gain = 1.0
        generator = torch.Generator().manual_seed(sum(name.encode()))
        channels = self.latent_format.channels
        self.query = torch.randn(channels, WIDTH, generator=generator) / 2
        self.value = torch.randn(WIDTH, channels, generator=generator) / WIDTH

    @property
    def network(self) -> TinyBackbone:
        return self

    def injection(self, canvas: Any) -> None:
        return None

    def inputs(self, cond: torch.Tensor, options: Any, role: str, canvas: Any) -> UnetInputs:
        return UnetInputs(to_batch(cond.to(self.device), canvas.rows))

    def group_key(self, piece: Piece) -> Any:
        return tuple(piece.x.shape[1:])

    def cells(self, piece: Piece) -> int:
        return piece.x[:, 0].numel()

    def padded_rows(self, rows: int) -> int:
        return rows

    def rows(self, piece: Piece, fed: torch.Tensor, timestep: torch.Tensor) -> Piece:
        return piece

    @property
    def sigmas(self) -> torch.Tensor | None:
        return None

    @property
    def takes_rows_together(self) -> bool:
        return False

    def apart(self, piece: Piece) -> list[Piece]:
        return split_batch(piece)

    def during(self, sigmas: torch.Tensor) -> TinyBackbone:
        return self

    def with_functions(self, functions: PackFunctions) -> TinyBackbone:
        return self

    def denoised(self, piece: Piece, output: torch.Tensor) -> torch.Tensor:
        return output

    def fed(self, piece: Piece) -> torch.Tensor:
        return piece.x

    def output(self, piece: Piece, denoised: torch.Tensor) -> torch.Tensor:
        return denoised

    def answer(self, rows: Any) -> list[torch.Tensor]:
        x = torch.cat([piece.x for piece in rows])
        sigma = to_device(torch.tensor([piece.sigma for piece in rows for _ in range(piece.rows)]), x.device)
        context, mask = stack_contexts([piece.inputs.context for piece in rows])
        return list(self.forward(x, sigma, context, mask).split([piece.rows for piece in rows]))

    def forward(
        self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor, context_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        self.calls.append(tuple(x.shape))
        if self.before is not None:
            self.before(len(self.calls))
        level = sigma.view(-1, *(1,) * (x.ndim - 1))
        scores = torch.einsum("rc,cd,rtd->rt", x.flatten(2).mean(dim=2) / (1 + sigma)[:, None], self.query, context)
        if context_mask is not None:
            scores = scores.masked_fill(~context_mask, -torch.inf)
        read = torch.einsum("rt,rtd,dc->rc", scores.softmax(dim=1), context, self.value)
        kept = x / (1 + level**2)
        return self.gain * (kept + 0.3 * torch.sin(x / (1 + level) + read.view(*read.shape, *(1,) * (x.ndim - 2))))


def tiny_flow() -> TinyBackbone:
    """Return a backbone of latents in time on a flow's levels, as Qwen-Image is one."""
    each = LatentFormat(3, scale=(0.5, 1.0, 2.0), shift=(1.0, -1.0, 0.0), frames=4)
    return TinyBackbone("flow", levels=FlowLevels(3.0, 1.0), latents=each)


def conditioning(seed: int, length: int, rows: int = 1, width: int = WIDTH) -> list[Any]:
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
        **changes.pop("beside", {}),
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
        Guider(changes.pop("backbone", RECIPE), conds, changes.pop("rule", Cfg(changes.pop("cfg", 5.0)))),
        sampler=SamplerChoice(changes.pop("sampler", "euler")),
        sigmas=changes.pop("sigmas", steps),
        noise=Noise(changes.pop("noise_seed", seed or 0), added=seed is not None),
        **{**defaults, **changes},
    )


def alone(backbone: Any, r: SamplingRequest) -> torch.Tensor:
    """Return what the request gives with every row of every evaluation in a forward of its own."""
    spec = SAMPLERS[r.sampler.name]
    sigmas = sigmas_for(backbone.levels, r.sigmas, spec) if isinstance(r.sigmas, Steps) else r.sigmas
    assert isinstance(r.latents, torch.Tensor)
    if len(sigmas) < 2:
        return r.latents
    sigma, flow = sigmas[0], isinstance(backbone.levels, FlowLevels)
    scale = (1 + sigma**2).sqrt() if sigma > backbone.levels.sigma_max * (1 - 1e-5) and not flow else sigma
    latents = backbone.latent_format.to_model(r.latents)
    drawn = _normal(latents.shape, r.noise.seed) if r.noise.added else torch.zeros_like(latents)
    x = latents * (1 - sigma if flow else 1) + drawn * scale
    mask = torch.ones_like(latents) if r.noise_mask is None else r.noise_mask.expand_as(latents)
    kept_noise = _normal(latents.shape, (r.noise.seed + 1) % 2**64) if spec.fresh_inpaint_noise else drawn
    conds = resolved(r.guider.conds, *latents.shape[-2:])
    sampler = spec.start(x, sigmas, r.noise.seed, backbone.levels)
    answer: Any = None
    while True:
        try:
            evaluation = next_evaluation(sampler, answer)
        except StopIteration as end:
            return backbone.latent_format.from_model(end.value / (1 - sigmas[-1] if flow else 1))
        kept = latents * (1 - evaluation.sigma if flow else 1) + kept_noise * evaluation.sigma
        seen = kept * (1 - mask) + evaluation.x * mask
        branches = {role: branch(backbone, seen, evaluation.sigma, entries) for role, entries in conds.items()}
        denoised, low = GUIDED[type(r.guider.rule)](r.guider.rule, **branches)
        answer = latents * (1 - mask) + denoised * mask
        if evaluation.want_uncond:
            answer = (answer, low)


def _normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def branch(backbone: Any, x: torch.Tensor, sigma: Any, entries: Any) -> torch.Tensor:
    """Return the mean of a branch's entries, by weight, in the cells where they count."""
    height, width = x.shape[-2:]
    total, weights = torch.zeros_like(x), torch.zeros_like(x)
    for cond, options in entries:
        high = backbone.levels.at_progress(options.get("start_percent", 0.0))
        low = backbone.levels.at_progress(options.get("end_percent", 1.0))
        if not low <= float(torch.tensor(sigma)) <= high:
            continue
        rows, columns, top, left = area_of(options, height, width) or (height, width, 0, 0)
        place = (..., slice(top, top + rows), slice(left, left + columns))
        share = weight_of(options, height, width, x.device)
        for i, row in enumerate(x):
            piece = Piece(backbone, row[None][place], sigma, UnetInputs(cond[i % len(cond)][None]))
            weight = share[i % len(share)] if isinstance(share, torch.Tensor) else share
            total[i][place] += denoise([piece])[0][0] * weight
            weights[i][place] += weight
    return torch.where(weights > 0, total / weights.clamp(min=1e-30), 0)


def _cfg(rule: Cfg, positive: torch.Tensor, negative: torch.Tensor) -> Answer:
    return negative + rule.scale * (positive - negative), negative


def _dual(rule: DualCfg, positive: torch.Tensor, middle: torch.Tensor, negative: torch.Tensor) -> Answer:
    if rule.nested:
        return negative + rule.middle_scale * (middle + rule.scale * (positive - middle) - negative), middle
    return negative + rule.middle_scale * (middle - negative) + rule.scale * (positive - middle), negative


def _perp(rule: PerpNeg, positive: torch.Tensor, negative: torch.Tensor, empty: torch.Tensor) -> Answer:
    towards, away = positive - empty, negative - empty
    across = away - towards * (away * towards).sum() / (towards * towards).sum()
    return empty + rule.scale * (towards - rule.negative_scale * across), negative


GUIDED: dict[type, Callable[..., Answer]] = {Cfg: _cfg, DualCfg: _dual, PerpNeg: _perp}


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return ‖ours − theirs‖ / ‖theirs‖; latents that come out as zero but for rounding count as 0.1 long."""
    return float((ours - theirs).norm() / theirs.norm().clamp(min=0.1))


@dataclass
class Job:
    """One job of a mix. joins, leaves: the forward before which it is submitted and cancelled; leaves None: never."""

    request: SamplingRequest
    joins: int
    leaves: int | None


@st.composite
def entries(
    draw: st.DrawFn, shape: tuple[int, ...], batch: int, width: int, texts: range, *, ranged: bool
) -> list[tuple[torch.Tensor, dict[str, Any]]]:
    """Any conditioning of a few entries: areas, masks, strengths and, if ranged, parts of the sampling.

    texts: the seeds that texts are drawn from.
    """
    made = []
    for _ in range(draw(st.integers(1, 3))):
        rows = draw(st.integers(1, 2))
        [(cond, options)] = conditioning(draw(st.sampled_from(texts)), draw(st.integers(1, 5)), rows, width)
        side = {name: draw(st.integers(0, n - 1)) for name, n in zip("yx", shape[-2:], strict=True)}
        if draw(st.booleans()):
            options["area"] = (draw(st.integers(1, 5)), draw(st.integers(1, 5)), side["y"], side["x"])
        if draw(st.booleans()):
            mask = torch.rand(
                draw(st.sampled_from([1, batch])), *shape[-2:], generator=torch.Generator().manual_seed(rows)
            )
            options |= {"mask": mask, "mask_strength": draw(st.sampled_from([0.4, 1.0]))}
        if draw(st.booleans()):
            options["strength"] = draw(st.sampled_from([0.5, 2.0]))
        if ranged and draw(st.booleans()):
            options["start_percent"] = draw(st.sampled_from([0.0, 0.3, 0.6]))
            options["end_percent"] = draw(st.sampled_from([0.6, 0.9, 1.0]))
        made.append((cond, options))
    return made


RULES = (
    Cfg,
    Cfg,
    lambda scale: DualCfg(scale, 2.0),
    lambda scale: DualCfg(scale, 1.0),
    lambda scale: DualCfg(scale, 1.5, nested=True),
    lambda scale: PerpNeg(scale, 0.7),
    lambda scale: PerpNeg(scale, 0.0),
)
BESIDE = {Cfg: (), DualCfg: ("middle",), PerpNeg: ("empty",)}


@st.composite
def jobs(
    draw: st.DrawFn,
    shapes: tuple[tuple[int, ...], ...] = ((4, 4, 4), (4, 4, 6)),
    width: int = WIDTH,
    levels: tuple[float, ...] = (20.0, 14.0, 9.0, 4.0, 1.7, 0.6, 0.2),
) -> Job:
    """Any job: samplers, schedules and sigmas, windows, guiders, entries, prompt lengths, masks, batches, shapes."""
    steps = draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**64 - 1))
    start = draw(st.none() | st.integers(0, steps))
    shape, batch = draw(st.sampled_from(shapes)), draw(st.integers(1, 3))
    sampler = draw(st.sampled_from(sorted(SAMPLERS)))
    rule = draw(st.sampled_from(RULES))(draw(st.sampled_from([0.0, 1.0, 2.5, 7.0])))
    # An adaptive sampler rounds its own way to a level, so whether that is within a range is not the same alone; and
    # what is perpendicular to nothing but rounding differs too, so no branch is zero then, nor equal to the empty one.
    ranged = sampler != "dpm_adaptive" and not isinstance(rule, PerpNeg)
    some, others = (entries(shape, batch, width, texts, ranged=ranged) for texts in (range(10), range(10, 20)))
    changes: dict[str, Any] = {}
    if draw(st.booleans()):
        some_levels = draw(st.lists(st.sampled_from(levels), min_size=2, unique=True))
        changes["sigmas"] = torch.tensor([*sorted(some_levels, reverse=True), 0.0])
    if draw(st.booleans()):
        changes["noise_mask"] = torch.rand(1, 1, *shape[1:], generator=torch.Generator().manual_seed(steps))
    made = request(
        shape=(batch, *shape),
        positive=draw(some),
        negative=draw(some),
        beside={role: draw(others) for role in BESIDE[type(rule)]},
        rule=rule,
        sampler=sampler,
        schedule=draw(st.sampled_from(sorted(SCHEDULES))),
        steps=steps,
        seed=draw(st.none() | st.just(seed)),
        noise_seed=seed,
        denoise=draw(st.sampled_from([1.0, 0.6])),
        start_step=start,
        end_step=draw(st.none() | st.integers(0, steps)),
        full_denoise=draw(st.booleans()),
        **changes,
    )
    return Job(made, joins=draw(st.integers(0, 8)), leaves=draw(st.none() | st.integers(0, 12)))
