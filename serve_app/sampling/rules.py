"""Rules of guidance: how the means of the branches become one `denoised`.

A rule names the branches it needs, so those it does not need are not evaluated. `shaping` says how the patches of a
recipe change what a rule does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isclose
from typing import Protocol

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.sampling.evaluation import Evaluation
from serve_app.sampling.shaping import PLAIN, Guided, Shaping
from serve_app.values import Guider


class Rule(Protocol):
    """How branches are combined. It serves one run."""

    def asks(self, want_uncond: bool) -> tuple[str, ...]:
        """Return the roles that are evaluated, in the order of their rows; all of them for want_uncond."""
        ...

    def combine(self, means: Mapping[str, Tensor], evaluation: Evaluation) -> tuple[Tensor, Tensor]:
        """Return (denoised, uncond) from the mean of each role that was asked; one that is not there is zero."""
        ...


@dataclass(frozen=True, slots=True)
class Cfg:
    """Classifier-free guidance. At scale 1 the negative is not evaluated.

    Source: Ho and Salimans 2022, arXiv:2207.12598, equation 6 with w = scale − 1.
    """

    scale: float
    shaping: Shaping = PLAIN

    def asks(self, want_uncond: bool) -> tuple[str, ...]:
        return ("positive",) if isclose(self.scale, 1.0) and not want_uncond else ("positive", "negative")

    def combine(self, means: Mapping[str, Tensor], evaluation: Evaluation) -> tuple[Tensor, Tensor]:
        guided = _guided(means, evaluation, "positive", "negative", self.scale)
        guided = self.shaping.before(guided)
        return self.shaping.combined(guided), guided.uncond


@dataclass(frozen=True, slots=True)
class DualCfg:
    """Guidance from a negative to a middle branch, and from there to the positive.

    scale: from middle to positive; middle_scale: from negative to middle. nested: the second guides what the first
    gives instead of being added to it. Source: Brooks et al. 2023, arXiv:2211.09800, equation 3; nested as in ComfyUI.
    """

    scale: float
    middle_scale: float
    nested: bool = False
    shaping: Shaping = PLAIN

    def asks(self, want_uncond: bool) -> tuple[str, ...]:
        if self.nested or want_uncond or not isclose(self.middle_scale, 1.0):
            return ("positive", "middle", "negative")
        return ("positive",) if isclose(self.scale, 1.0) else ("positive", "middle")

    def combine(self, means: Mapping[str, Tensor], evaluation: Evaluation) -> tuple[Tensor, Tensor]:
        if self.nested:
            guided = _guided(means, evaluation, "positive", "middle", self.scale)
            negative = means.get("negative", torch.zeros_like(evaluation.x))
            return torch.lerp(negative, self.shaping.combined(guided), self.middle_scale), guided.uncond
        guided = _guided(means, evaluation, "middle", "negative", self.middle_scale)
        further = (means["positive"] - guided.cond) * self.scale
        return self.shaping.combined(guided) + further, guided.uncond


@dataclass(frozen=True, slots=True)
class PerpNeg:
    """Guidance from an empty prompt, away from that part of the negative which is perpendicular to the positive.

    scale: of all of it; negative_scale: of the negative. The angle is that of the whole batch, as in ComfyUI.
    Source: Armandpour et al. 2023, arXiv:2304.04968, equation 6.
    """

    scale: float
    negative_scale: float
    shaping: Shaping = PLAIN

    def asks(self, want_uncond: bool) -> tuple[str, ...]:
        if want_uncond or not isclose(self.negative_scale, 0.0):
            return ("positive", "negative", "empty")
        return ("positive",) if isclose(self.scale, 1.0) else ("positive", "empty")

    def combine(self, means: Mapping[str, Tensor], evaluation: Evaluation) -> tuple[Tensor, Tensor]:
        guided = self.shaping.before(_guided(means, evaluation, "positive", "negative", self.scale))
        empty = means.get("empty", torch.zeros_like(evaluation.x))
        positive, negative = guided.cond - empty, guided.uncond - empty
        # Where positive and empty say the same, all of the negative is perpendicular.
        along = (negative * positive).sum() / (positive.norm() ** 2).clamp(min=1e-30)
        perpendicular = negative - positive * along
        denoised = empty + (positive - perpendicular * self.negative_scale) * self.scale
        return self.shaping.after(guided, denoised), guided.uncond


def _guided(means: Mapping[str, Tensor], evaluation: Evaluation, to: str, away: str, scale: float) -> Guided:
    cond, uncond = (means[role] if role in means else torch.zeros_like(evaluation.x) for role in (to, away))
    return Guided(evaluation.x, evaluation.sigma, scale, cond, uncond, skipped=away not in means)


def rule_of(guider: Guider) -> Rule:
    """Return the rule a GUIDER asks for, with the patches of its backbone. Errors: NodeError for an unknown kind."""
    rule: Cfg | DualCfg | PerpNeg
    match guider.kind, guider.scales:
        case "cfg", {"cfg": scale}:
            rule = Cfg(scale)
        case "dual_cfg", {"cfg": scale, "middle_cfg": middle_scale, "nested": nested}:
            rule = DualCfg(scale, middle_scale, nested)
        case "perp_neg", {"cfg": scale, "neg_scale": negative_scale}:
            rule = PerpNeg(scale, negative_scale)
        case kind, scales:
            raise NodeError(f"guider '{kind}' with the scales {', '.join(scales) or 'none'} is unknown")
    return replace(rule, shaping=Shaping(guider.backbone.patches))
