"""Rules of guidance: how the means of the branches become one `denoised`.

A rule names the branches it needs, so those it does not need are not evaluated. `guidance_patches` says how the patches
of a recipe change what a rule does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any, Protocol

import torch
from torch import Tensor

from serve_app.sampling.evaluation import Evaluation
from serve_app.sampling.guidance_patches import NO_PATCHES, Branches, GuidancePatches, Guided
from serve_app.sampling.levels import Levels
from serve_app.values import Cfg, DualCfg, Guider, PerpNeg


class Rule(Protocol):
    """How branches are combined. It serves one run."""

    @property
    def patches(self) -> GuidancePatches: ...

    @property
    def ends(self) -> tuple[str, str]:
        """The roles that its patches take for the positive and the negative."""
        ...

    def asks(self, evaluation: Evaluation) -> tuple[str, ...]:
        """Return the roles that are evaluated, in the order of their rows; all of them where uncond is wanted."""
        ...

    def combine(
        self, means: Mapping[Any, Tensor], evaluation: Evaluation, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (denoised, uncond) from the mean of each role that was asked; one that is not there is zero.

        Beside the roles, means has what patches asked for, by patch. branches: of the run, for patches that ask for
        more.
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

    def asks(self, evaluation: Evaluation) -> tuple[str, ...]:
        alone = isclose(self.patches.scale(self.given.scale, evaluation.sigma), 1.0)
        return ("positive",) if alone and not _whole(self.patches, evaluation) else self.ends

    def combine(
        self, means: Mapping[Any, Tensor], evaluation: Evaluation, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor]:
        scale = self.patches.scale(self.given.scale, evaluation.sigma)
        guided = _guided(means, evaluation, self.ends, scale, branches)
        guided = self.patches.before(guided)
        return self.patches.combined(guided), guided.uncond


@dataclass(frozen=True, slots=True)
class DualCfgRule:
    """Guidance in two stages. Source: Brooks et al. 2023, arXiv:2211.09800, equation 3; nested as in ComfyUI."""

    given: DualCfg
    patches: GuidancePatches = NO_PATCHES

    @property
    def ends(self) -> tuple[str, str]:
        return ("positive", "middle") if self.given.nested else ("middle", "negative")

    def asks(self, evaluation: Evaluation) -> tuple[str, ...]:
        whole = self.given.nested or _whole(self.patches, evaluation)
        if whole or not isclose(self.given.middle_scale, 1.0):
            return ("positive", "middle", "negative")
        return ("positive",) if isclose(self.given.scale, 1.0) else ("positive", "middle")

    def combine(
        self, means: Mapping[Any, Tensor], evaluation: Evaluation, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor]:
        scale, middle_scale = self.given.scale, self.given.middle_scale
        if self.given.nested:
            guided = _guided(means, evaluation, self.ends, scale, branches)
            negative = means.get("negative", torch.zeros_like(evaluation.x))
            return torch.lerp(negative, self.patches.combined(guided), middle_scale), guided.uncond
        guided = _guided(means, evaluation, self.ends, middle_scale, branches)
        further = (means["positive"] - guided.cond) * scale
        return self.patches.combined(guided) + further, guided.uncond


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

    def asks(self, evaluation: Evaluation) -> tuple[str, ...]:
        if _whole(self.patches, evaluation) or not isclose(self.given.negative_scale, 0.0):
            return ("positive", "negative", "empty")
        alone = isclose(self.patches.scale(self.given.scale, evaluation.sigma), 1.0)
        return ("positive",) if alone else ("positive", "empty")

    def combine(
        self, means: Mapping[Any, Tensor], evaluation: Evaluation, branches: Branches | None = None
    ) -> tuple[Tensor, Tensor]:
        scale = self.patches.scale(self.given.scale, evaluation.sigma)
        guided = self.patches.before(_guided(means, evaluation, self.ends, scale, branches))
        empty = means.get("empty", torch.zeros_like(evaluation.x))
        positive, negative = guided.cond - empty, guided.uncond - empty
        # Where positive and empty say the same, all of the negative is perpendicular.
        along = (negative * positive).sum() / (positive.norm() ** 2).clamp(min=1e-30)
        perpendicular = negative - positive * along
        denoised = empty + (positive - perpendicular * self.given.negative_scale) * scale
        return self.patches.after(guided, denoised), guided.uncond


def _guided(
    means: Mapping[Any, Tensor],
    evaluation: Evaluation,
    ends: tuple[str, str],
    scale: float,
    branches: Branches | None,
) -> Guided:
    cond, uncond = (means[role] if role in means else torch.zeros_like(evaluation.x) for role in ends)
    skipped = ends[1] not in means
    return Guided(evaluation.x, evaluation.sigma, scale, cond, uncond, skipped, ends, branches, means)


def _whole(patches: GuidancePatches, evaluation: Evaluation) -> bool:
    """Whether all branches are asked, even those that the rule's scales make no use of."""
    return evaluation.want_uncond or patches.both


def rule_of(guider: Guider, levels: Levels) -> Rule:
    """Return the rule a GUIDER asks for, with the patches of its backbone, for a run over a model's levels."""
    patches = GuidancePatches(guider.backbone.patches, levels)
    match guider.rule:
        case Cfg():
            return CfgRule(guider.rule, patches)
        case DualCfg():
            return DualCfgRule(guider.rule, patches)
        case PerpNeg():
            return PerpNegRule(guider.rule, patches)
