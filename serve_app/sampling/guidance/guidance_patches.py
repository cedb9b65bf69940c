"""Guidance patches of a recipe: applied before branches are combined, instead of that, or after it.

Each patch is a pure function of one evaluation's branches; only adaptive projection has state. Patches of a kind act in
the recipe's order. `perturbation` and `layers` say which further branches are evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import exp, inf, sqrt
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from serve_app.recipe.guidance import (
    AdaptiveProjection,
    CfgByFrame,
    CfgNorm,
    CfgOverride,
    CfgZeroStar,
    EpsilonScaling,
    FrequencyScaling,
    Mahiro,
    NoiseNorm,
    NormalizedAttention,
    OperatedGuidance,
    PerturbedAttention,
    RenormCfg,
    RescaleCfg,
    SelfAttentionGuidance,
    SkipLayerGuidance,
    SkippedBlocks,
    TangentialDamping,
    TemporalRescaling,
    WeakNegative,
)
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.sampling.forward import Backbone
from serve_app.sampling.guidance.layers import between
from serve_app.sampling.guidance.perturbation import PerturbedBranch, perturbed_branches
from serve_app.sampling.lazy_sum import Latents, mixed, value
from serve_app.sampling.schedules.levels import Interpolation, Levels, TableLevels, single
from serve_app.sampling.transfer import to_device

IMAGE = (-3, -2, -1)
"""The dimensions that ComfyUI takes for a latent's; of a video, those of one channel."""


class Branches(Protocol):
    """The branches of one run, for functions that need further forwards."""

    @property
    def backbone(self) -> Backbone: ...

    def answer(self, role: str, x: Tensor, sigma: float, functions: PackFunctions | None = None) -> Tensor:
        """Return a branch's denoised for any x (B,C,…) and level, from a forward of its own.

        functions: used instead of the backbone's.
        """
        ...


L = TypeVar("L", bound=Latents)


@dataclass(frozen=True, slots=True, eq=False)
class GuidedBy(Generic[L]):
    """The branches of one evaluation. x, cond, uncond: (B,C,…). skipped: uncond was not evaluated and is zero.

    L: Tensor where sums are materialized. roles: of cond and uncond. branches: for further forwards, during a run.
    perturbed: denoised of perturbed branches, by the patch that requires each.
    """

    x: L
    sigma: float
    scale: float
    cond: L
    uncond: L
    skipped: bool = False
    roles: tuple[str, str] = ("positive", "negative")
    branches: Branches | None = None
    perturbed: Mapping[Any, L] = field(default_factory=dict)

    def plain(self) -> Latents:
        """Return denoised by classifier-free guidance alone."""
        return mixed(self.uncond, self.cond, self.scale)


Guided: TypeAlias = GuidedBy[Tensor]


class GuidancePatches:
    """The guidance patches of one run.

    patches: of a recipe; other kinds are ignored. levels: of the model; default: Stable Diffusion's.
    """

    def __init__(self, patches: Iterable[Any] = (), levels: Levels | None = None) -> None:
        self._patches = tuple(patches)
        self._levels = levels or TableLevels()
        instead = _INSTEAD | _INSTEAD_ON_FLOW if isinstance(levels, Interpolation) else _INSTEAD
        after = _AFTER | {TemporalRescaling: partial(rescaled_score, self._levels)}
        self._before: list[Callable[[Guided], Guided]] = []
        self._instead: list[Callable[[Guided], Tensor]] = []
        self._after: list[Callable[[GuidedBy[Any], Any], Latents]] = []
        self.blurring = tuple(patch for patch in self._patches if isinstance(patch, SelfAttentionGuidance))
        self.opposing = tuple(patch for patch in self._patches if isinstance(patch, NormalizedAttention))
        self.both = bool(self.blurring or self.opposing)
        """Whether the uncond branch is evaluated even where its factor is zero."""
        for patch in self._patches:
            if isinstance(patch, PackFunctions):
                self._before += patch.before
                self._instead += [patch.instead] if patch.instead is not None else []
                self._after += patch.after
                self.both = self.both or patch.both
            elif type(patch) in _BEFORE:
                self._before.append(_BEFORE[type(patch)](patch))
            elif type(patch) in instead:
                self._instead.append(partial(instead[type(patch)], patch))
            elif type(patch) in after:
                self._after.append(partial(after[type(patch)], patch))
        self.linear = not (self._before or self._instead) and all(map(_adds_up, self._patches))
        """Whether the result is a linear combination of x and branches."""

    def scale(self, scale: float, sigma: float) -> float:
        """Return the guidance scale at a level; of several overrides the last one applies."""
        for patch in self._patches:
            if isinstance(patch, CfgOverride) and between(self._levels, patch.start_percent, patch.end_percent, sigma):
                scale = patch.scale
        return scale

    def perturbed_branches(self, sigma: float) -> tuple[PerturbedBranch, ...]:
        """Return the perturbed branches to evaluate at a level, each once."""
        return tuple(dict.fromkeys(perturbed_branches(self._patches, self._levels, sigma)))

    def of_negative(self, sigma: float) -> tuple[SkippedBlocks, ...]:
        """Return the layer patches of the uncond branch at a level."""
        weak = [patch for patch in self._patches if isinstance(patch, WeakNegative)][-1:]
        return tuple(p.skipped for p in weak if between(self._levels, p.start_percent, p.end_percent, sigma))

    def before(self, guided: GuidedBy[Any]) -> GuidedBy[Any]:
        """Return replacements of cond and uncond."""
        for change in self._before:
            guided = change(guided)
        return guided

    def combined(self, guided: GuidedBy[Any]) -> Latents:
        """Return denoised; of several patches that combine the branches the last one applies."""
        if not self._instead:
            return self.after(guided, guided.plain())
        return self.after(guided, self._instead[-1](guided))

    def after(self, guided: GuidedBy[Any], denoised: Latents) -> Latents:
        """Return denoised after the patches that follow guidance."""
        for change in self._after:
            denoised = change(guided, denoised)
        return denoised


def rescaled(patch: RescaleCfg, guided: Guided) -> Tensor:
    """Guide v-predictions, then rescale them to the positive's standard deviation.

    v mixes image and noise at unit variance, whatever the network predicts. Source: Lin et al. 2023, arXiv:2305.08891,
    equations 14 to 16.
    """
    sigma, x = guided.sigma, guided.x
    root = sqrt(sigma**2 + 1)
    kept = x / (sigma**2 + 1)
    cond, uncond = ((kept - denoised) * (root / sigma) for denoised in (guided.cond, guided.uncond))
    v = uncond + (cond - uncond) * guided.scale
    ratio = cond.std(dim=IMAGE, keepdim=True) / v.std(dim=IMAGE, keepdim=True)
    v = v * (ratio * patch.multiplier + (1 - patch.multiplier))
    return kept - v * (sigma / root)


def rescaled_denoised(patch: RescaleCfg, guided: Guided) -> Tensor:
    """Guide denoised, then rescale it to cond's standard deviation: for flows, whose ends are both images.

    Source: as `rescaled`, as ComfyUI has it for flows.
    """
    denoised = value(guided.plain())
    over = tuple(range(1, denoised.ndim))
    ratio = guided.cond.std(dim=over, keepdim=True) / denoised.std(dim=over, keepdim=True).clamp(min=1e-8)
    return denoised * (ratio * patch.multiplier + (1 - patch.multiplier))


def guided_by_frame(patch: CfgByFrame, guided: Guided) -> Tensor:
    """Guide each row by a scale of its own. Source: Blattmann et al. 2023, arXiv:2311.15127, appendix D."""
    lowest, highest = patch.lowest, guided.scale
    at = torch.linspace(0, 1, len(guided.cond))
    if patch.triangle:
        scales = 2 * (at - torch.floor(at + 0.5)).abs() * (highest - lowest) + lowest
    else:
        scales = torch.linspace(lowest, highest, len(guided.cond))
    scales = to_device(scales, guided.cond.device).view(-1, *(1,) * (guided.cond.ndim - 1))
    return guided.uncond + scales * (guided.cond - guided.uncond)


def renormed(patch: RenormCfg, guided: Guided) -> Tensor:
    """Return cond alone above a level; below it guide, and limit the norm to a multiple of cond's.

    Source: Lumina-Image 2.0's pipeline, as ComfyUI has it.
    """
    if single(guided.sigma) >= single(patch.below):
        return guided.cond
    denoised = value(guided.plain())
    if patch.limit <= 0:
        return denoised
    over = tuple(range(1, denoised.ndim))
    most, length = (torch.linalg.vector_norm(d, dim=over, keepdim=True) for d in (guided.cond, denoised))
    shortened: Tensor = denoised * (most * patch.limit / length).clamp(max=1)
    return shortened


def noise_normed(patch: NoiseNorm, guided: Guided) -> Tensor:
    """Scale the guided noise, in each cell, to the norm of cond's. Source: Lens's pipeline, as ComfyUI has it."""
    noise = guided.x - value(guided.plain())
    lengths, cond = (noise.norm(dim=1, keepdim=True), (guided.x - guided.cond).norm(dim=1, keepdim=True))
    ratio = torch.where(lengths > 0, cond / lengths.clamp(min=1e-12), 1.0)
    return guided.x - noise * (1 + (ratio - 1) * patch.strength)


def damped(_patch: TangentialDamping) -> Callable[[Guided], Guided]:
    """Keep of uncond's step its component along the direction that both steps share most.

    Source: Kwon et al. 2025, arXiv:2503.18137, Algorithm 1.
    """

    def change(guided: Guided) -> Guided:
        if guided.skipped:
            return guided
        steps = torch.stack([(guided.x - d).flatten(1) for d in (guided.uncond, guided.cond)], dim=1)
        # The first right singular vector of two rows, from the eigenvectors of their 2×2 products.
        _, vectors = torch.linalg.eigh((steps @ steps.mT).double())
        shared = normalize((vectors[:, None, :, -1].to(steps.dtype) @ steps), dim=-1)
        kept = (steps[:, :1] @ shared.mT) * shared
        return replace(guided, uncond=guided.x - kept.view_as(guided.x))

    return change


def projected(patch: AdaptiveProjection) -> Callable[[Guided], Guided]:
    """Split guidance into parts parallel and orthogonal to cond, after momentum and a limit of its norm.

    Source: Sadat et al. 2024, arXiv:2410.02416, Algorithm 1.
    """
    running: Tensor | None = None
    level = 0.0

    def change(guided: Guided) -> Guided:
        nonlocal running, level
        if guided.sigma > level:
            running = None
        level = guided.sigma
        difference = guided.cond - guided.uncond
        guidance = difference
        if patch.momentum != 0:
            running = guidance = difference if running is None else running * patch.momentum + difference
        if patch.norm_threshold > 0:
            norm = (guidance**2).sum(dim=IMAGE, keepdim=True).sqrt()
            guidance = guidance * (patch.norm_threshold / norm).clamp(max=1)
        direction = normalize(guided.cond.flatten(-3), dim=-1).view_as(guided.cond)
        parallel = (guidance * direction).sum(dim=IMAGE, keepdim=True) * direction
        guidance = guidance + parallel * (patch.eta - 1)
        return replace(guided, cond=guided.uncond + guidance + difference / guided.scale)

    return change


def scaled_by_frequency(patch: FrequencyScaling) -> Callable[[Guided], Guided]:
    """Scale guidance by one factor in its low frequencies and another in its high ones.

    Source: Huang et al. 2025, arXiv:2504.02154.
    """

    def change(guided: Guided) -> Guided:
        if guided.skipped:
            return guided
        spectrum = torch.fft.fftshift(torch.fft.fft2(guided.cond - guided.uncond), dim=(-2, -1))
        middles = [side // 2 for side in spectrum.shape[-2:]]
        low = [slice(m - min(patch.cutoff, m), m + min(patch.cutoff, m)) for m in middles]
        share = torch.full(spectrum.shape[-2:], patch.high, device=spectrum.device)
        share[low[0], low[1]] = patch.low
        guidance = torch.fft.ifft2(torch.fft.ifftshift(spectrum * share, dim=(-2, -1))).real
        return replace(guided, cond=guided.uncond + guidance)

    return change


def operated(patch: OperatedGuidance) -> Callable[[Guided], Guided]:
    """Apply an operation to cond − uncond."""

    def change(guided: Guided) -> Guided:
        return replace(guided, cond=guided.uncond + patch.operation(latent=guided.cond - guided.uncond))

    return change


def zero_star(_patch: CfgZeroStar, guided: Guided, denoised: Tensor) -> Tensor:
    """Guide away from uncond times the factor that brings its step nearest to cond's.

    Source: Fan et al. 2025, arXiv:2503.18886, equation 9, as ComfyUI has it for denoised.
    """
    cond, uncond = guided.x - guided.cond, guided.x - guided.uncond
    over = tuple(range(1, cond.ndim))
    alpha = (cond * uncond).sum(dim=over, keepdim=True) / ((uncond**2).sum(dim=over, keepdim=True) + 1e-8)
    return denoised + guided.uncond * ((alpha - 1) * (1 - guided.scale))


def normed(patch: CfgNorm, guided: Guided, denoised: Tensor) -> Tensor:
    """Shorten denoised, in each cell, to the norm of cond. Source: Qwen-Image's pipeline, as ComfyUI has it."""
    lengths = guided.cond.norm(dim=1, keepdim=True) / (denoised.norm(dim=1, keepdim=True) + 1e-8)
    shortened: Tensor = denoised * lengths.clamp(0, 1) * patch.strength
    return shortened


def mahiro(_patch: Mahiro, guided: Guided, denoised: Tensor) -> Tensor:
    """Move towards cond alone, the more the less uncond resembles the guided result. Source: Mahiro, as in ComfyUI."""
    leap = guided.cond * guided.scale
    uncond, merged = (t.abs().sqrt() * t.sign() for t in (guided.uncond * guided.scale, (leap + denoised) / 2))
    likeness = cosine_similarity(uncond, merged).mean()
    return torch.lerp(leap, denoised, (likeness + 1) / 2)


def epsilon_scaled(patch: EpsilonScaling, guided: GuidedBy[Latents], denoised: Latents) -> Latents:
    """Divide the predicted noise by a factor. Source: Ning et al. 2023, arXiv:2308.15321, section 4."""
    return guided.x - (guided.x - denoised) / patch.factor


def rescaled_score(levels: Levels, patch: TemporalRescaling, guided: GuidedBy[Latents], denoised: Latents) -> Latents:
    """Scale the score to that of data whose Gaussian variance is divided by k.

    Source: Xu et al. 2025, arXiv:2510.01184, equation 6.
    """
    half = levels.log_snr(guided.sigma) if guided.sigma > 0 else inf
    if patch.k == 1 or half in (inf, -inf):
        return denoised
    spread = exp(2 * half) * patch.sigma**2
    ratio = (spread + 1) / (spread / patch.k + 1)
    # x is signal·latents + noise.
    signal = guided.sigma * exp(half)
    return mixed(guided.x / signal, denoised, ratio)


def guided_from_perturbed(patch: PerturbedAttention, guided: GuidedBy[Latents], denoised: Latents) -> Latents:
    """Guide away from the positive without self-attention (PAG), where that was evaluated."""
    if patch not in guided.perturbed:
        return denoised
    return denoised + (guided.cond - guided.perturbed[patch]) * patch.scale


def guided_from_skipped(patch: SkipLayerGuidance, guided: GuidedBy[Latents], denoised: Latents) -> Latents:
    """Guide away from the positive with blocks skipped (SLG), where that was evaluated."""
    if patch not in guided.perturbed:
        return denoised
    denoised = denoised + (guided.cond - guided.perturbed[patch]) * patch.scale
    if patch.rescaling:
        numbers = value(denoised)
        spread = value(guided.cond).std() / numbers.std()
        denoised = numbers * (patch.rescaling * spread + 1 - patch.rescaling)
    return denoised


def guided_from_blurred(patch: SelfAttentionGuidance, guided: Guided, denoised: Tensor) -> Tensor:
    """Add the difference that blurring made to uncond (SAG), where that was evaluated."""
    return denoised + guided.perturbed[patch] * patch.scale if patch in guided.perturbed else denoised


_BEFORE: dict[type, Callable[[Any], Callable[[Guided], Guided]]] = {
    TangentialDamping: damped,
    AdaptiveProjection: projected,
    FrequencyScaling: scaled_by_frequency,
    OperatedGuidance: operated,
}
_INSTEAD: dict[type, Callable[[Any, Guided], Tensor]] = {
    RescaleCfg: rescaled,
    CfgByFrame: guided_by_frame,
    RenormCfg: renormed,
    NoiseNorm: noise_normed,
}
_INSTEAD_ON_FLOW: dict[type, Callable[[Any, Guided], Tensor]] = {RescaleCfg: rescaled_denoised}
_AFTER: dict[type, Callable[[Any, GuidedBy[Any], Any], Latents]] = {
    CfgZeroStar: zero_star,
    CfgNorm: normed,
    Mahiro: mahiro,
    EpsilonScaling: epsilon_scaled,
    PerturbedAttention: guided_from_perturbed,
    SkipLayerGuidance: guided_from_skipped,
    SelfAttentionGuidance: guided_from_blurred,
}


def _adds_up(patch: Any) -> bool:
    """Whether a patch leaves guidance alone, or only adds multiples of x and branches after it."""
    match patch:
        case PackFunctions():
            return not patch.after
        case SkipLayerGuidance():
            return not patch.rescaling
        case EpsilonScaling() | PerturbedAttention():
            return True
    return type(patch) not in _AFTER


NO_PATCHES = GuidancePatches()
"""Guidance without patches."""
