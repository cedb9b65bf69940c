"""Rules of guidance: how the branches' means become one `denoised`.

A rule names the branches that it needs; others are not evaluated. `guidance_patches` says how a recipe's patches change
a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isclose, prod
from typing import Any, Protocol

import torch

from serve_app.sampling.guidance.guidance_patches import NO_PATCHES, Branches, GuidancePatches, GuidedBy
from serve_app.sampling.latents.layout import ONE_PART, LatentLayout
from serve_app.sampling.lazy_sum import Latents, LazySum, mixed, value
from serve_app.sampling.samplers.evaluation import Evaluation
from serve_app.sampling.schedules.levels import Levels
from serve_app.values import Cfg, DualCfg, Guider, PartsCfg, PerpNeg


class Rule(Protocol):
    """How branches are combined, in one run."""

    @property
    def patches(self) -> GuidancePatches: ...

    @property
    def linear(self) -> bool:
        """Whether `combine` is a linear combination of branches, so that they may stay pending."""
        ...

    @property
    def ends(self) -> tuple[str, str]:
        """The roles that its patches treat as positive and negative."""
        ...

    def asks(self, evaluation: Evaluation) -> tuple[str, ...]:
        """Return the roles to evaluate, in the order of their rows; all of them if uncond is wanted."""
        ...

    def combine(
        self, means: Mapping[Any, Latents], evaluation: Evaluation, branches: Branches | None = None
    ) -> tuple[Latents, Latents]:
        """Return (denoised, uncond) from the mean of each evaluated role; a missing one is zero.

        means also has the perturbed branches, by patch. branches: of the run, for patches that need further forwards.
        """
        ...


@dataclass(frozen=True, slots=True)
class CfgRule:
    """Classifier-free guidance.

    Source: Ho and Salimans 2022, arXiv:2207.12598, equation 6 with w = scale − 1.
    """

    given: Cfg
    patches: GuidancePatches = NO_PATCHES

    @property
    def ends(self) -> tuple[str, str]:
        return "positive", "negative"

    @property
    def linear(self) -> bool:
        return self.patches.linear

    def asks(self, evaluation: Evaluation) -> tuple[str, ...]:
        alone = isclose(self.patches.scale(self.given.scale, evaluation.sigma), 1.0)
        return ("positive",) if alone and not _whole(self.patches, evaluation) else self.ends

    def combine(
        self, means: Mapping[Any, Latents], evaluation: Evaluation, branches: Branches | None = None
    ) -> tuple[Latents, Latents]:
        scale = self.patches.scale(self.given.scale, evaluation.sigma)
        guided = self.patches.before(_guided(means, evaluation, self, scale, branches))
        return self.patches.combined(guided), guided.uncond


@dataclass(frozen=True, slots=True)
class PartsCfgRule:
    """Classifier-free guidance by two scales. first: how many numbers of packed latents are of the first part."""

    given: PartsCfg
    first: int
    patches: GuidancePatches = NO_PATCHES

    @property
    def ends(self) -> tuple[str, str]:
        return "positive", "negative"

    @property
    def linear(self) -> bool:
        return False

    def asks(self, evaluation: Evaluation) -> tuple[str, ...]:
        return self.ends

    def combine(
        self, means: Mapping[Any, Latents], evaluation: Evaluation, branches: Branches | None = None
    ) -> tuple[Latents, Latents]:
        scales = self.given.scale, self.given.others_scale
        guided = self.patches.before(_guided(means, evaluation, self, max(scales), branches))
        parts = [replace(guided, scale=scale).plain() for scale in scales]
        denoised = torch.cat([value(parts[0])[..., : self.first], value(parts[1])[..., self.first :]], dim=-1)
        return self.patches.after(guided, denoised), guided.uncond


@dataclass(frozen=True, slots=True)
class DualCfgRule:
    """Guidance in two stages. Source: Brooks et al. 2023, arXiv:2211.09800, equation 3; nested as in ComfyUI."""

    given: DualCfg
    patches: GuidancePatches = NO_PATCHES

    @property
    def ends(self) -> tuple[str, str]:
        return ("positive", "middle") if self.given.nested else ("middle", "negative")

    @property
    def linear(self) -> bool:
        return self.patches.linear

    def asks(self, evaluation: Evaluation) -> tuple[str, ...]:
        whole = self.given.nested or _whole(self.patches, evaluation)
        if whole or not isclose(self.given.middle_scale, 1.0):
            return ("positive", "middle", "negative")
        return ("positive",) if isclose(self.given.scale, 1.0) else ("positive", "middle")

    def combine(
        self, means: Mapping[Any, Latents], evaluation: Evaluation, branches: Branches | None = None
    ) -> tuple[Latents, Latents]:
        scale, middle_scale = self.given.scale, self.given.middle_scale
        positive, middle, negative = (_mean(means, role, evaluation) for role in ("positive", "middle", "negative"))
        if self.given.nested:
            inner = _guided(means, evaluation, self, scale, branches)
            return mixed(negative, self.patches.combined(inner), middle_scale), inner.uncond
        outer = _guided(means, evaluation, self, middle_scale, branches)
        return self.patches.combined(outer) + (positive - middle) * scale, outer.uncond


@dataclass(frozen=True, slots=True)
class PerpNegRule:
    """Perpendicular guidance. The angle is that of the whole batch, as in ComfyUI.

    Source: Armandpour et al. 2023, arXiv:2304.04968, equation 6.
    """

    given: PerpNeg
    patches: GuidancePatches = NO_PATCHES

    @property
    def ends(self) -> tuple[str, str]:
        return "positive", "negative"

    @property
    def linear(self) -> bool:
        return False

    def asks(self, evaluation: Evaluation) -> tuple[str, ...]:
        if _whole(self.patches, evaluation) or not isclose(self.given.negative_scale, 0.0):
            return ("positive", "negative", "empty")
        alone = isclose(self.patches.scale(self.given.scale, evaluation.sigma), 1.0)
        return ("positive",) if alone else ("positive", "empty")

    def combine(
        self, means: Mapping[Any, Latents], evaluation: Evaluation, branches: Branches | None = None
    ) -> tuple[Latents, Latents]:
        scale = self.patches.scale(self.given.scale, evaluation.sigma)
        guided = self.patches.before(_guided(means, evaluation, self, scale, branches))
        empty = value(_mean(means, "empty", evaluation))
        positive, negative = guided.cond - empty, guided.uncond - empty
        # Where positive and empty agree, all of the negative is perpendicular.
        along = (negative * positive).sum() / (positive.norm() ** 2).clamp(min=1e-30)
        perpendicular = negative - positive * along
        denoised = empty + (positive - perpendicular * self.given.negative_scale) * scale
        return self.patches.after(guided, denoised), guided.uncond


def _guided(
    means: Mapping[Any, Latents], evaluation: Evaluation, rule: Rule, scale: float, branches: Branches | None
) -> GuidedBy[Any]:
    """Return a rule's input between its ends, materialized unless it stays linear."""

    def taken(latents: Latents) -> Latents:
        return latents if rule.linear else value(latents)

    x, cond, uncond = map(taken, (evaluation.x, *(_mean(means, role, evaluation) for role in rule.ends)))
    skipped, perturbed = rule.ends[1] not in means, {asked: taken(mean) for asked, mean in means.items()}
    return GuidedBy(x, evaluation.sigma, scale, cond, uncond, skipped, rule.ends, branches, perturbed)


def _mean(means: Mapping[Any, Latents], role: str, evaluation: Evaluation) -> Latents:
    """Return the mean of a role; zero if it was not evaluated."""
    return means[role] if role in means else LazySum.zero(evaluation.latents)


def _whole(patches: GuidancePatches, evaluation: Evaluation) -> bool:
    """Whether all branches are evaluated, even those with factor zero."""
    return evaluation.want_uncond or patches.both


def rule_of(guider: Guider, levels: Levels, layout: LatentLayout = ONE_PART) -> Rule:
    """Return the rule of a GUIDER, with the patches of its backbone, for a run over a model's levels.

    layout: of the run's latents.
    """
    patches = GuidancePatches(guider.backbone.patches, levels)
    match guider.rule:
        case Cfg():
            return CfgRule(guider.rule, patches)
        case PartsCfg(scale, others_scale):
            if not layout.joint or isclose(scale, others_scale):
                return CfgRule(Cfg(scale), patches)
            return PartsCfgRule(guider.rule, prod(layout.shapes[0]), patches)
        case DualCfg():
            return DualCfgRule(guider.rule, patches)
        case PerpNeg():
            return PerpNegRule(guider.rule, patches)
