"""Rules of guidance: how the means of the branches become one `denoised`.

A rule names the branches it needs, so those it does not need are not evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose
from typing import Protocol

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.sampling.evaluation import Evaluation
from serve_app.values import Guider


class Rule(Protocol):
    """How branches are combined."""

    def asks(self, want_uncond: bool) -> tuple[str, ...]:
        """Return the roles that are evaluated, in the order of their rows. want_uncond: "negative" among them."""
        ...

    def combine(self, means: Mapping[str, Tensor], evaluation: Evaluation) -> Tensor:
        """Return denoised from the mean of each role that was asked."""
        ...


@dataclass(frozen=True, slots=True)
class Cfg:
    """Classifier-free guidance. At scale 1 the negative is not evaluated.

    Source: Ho and Salimans 2022, arXiv:2207.12598, equation 6 with w = scale − 1.
    """

    scale: float

    def asks(self, want_uncond: bool) -> tuple[str, ...]:
        return ("positive",) if isclose(self.scale, 1.0) and not want_uncond else ("positive", "negative")

    def combine(self, means: Mapping[str, Tensor], evaluation: Evaluation) -> Tensor:
        if "negative" not in means:
            return means["positive"]
        return torch.lerp(means["negative"], means["positive"], self.scale)


def rule_of(guider: Guider) -> Rule:
    """Return the rule a GUIDER asks for. Errors: NodeError for a kind that is not known."""
    if guider.kind == "cfg":
        return Cfg(guider.scales["cfg"])
    raise NodeError(f"guider '{guider.kind}' is unknown")
