"""Guidance: which rows one evaluation asks of the network, and how the answers become one `denoised`.

Each entry of a conditioning is a piece of rows of its own; the pieces of a branch are averaged by weight, then a rule
combines the branches. `conditioning` says where and when an entry counts, `rules` what is made of the branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from serve_app.sampling.conditioning import area_of, resolved, weight_of
from serve_app.sampling.evaluation import Evaluation
from serve_app.sampling.forward import Area, Backbone, Canvas, Inputs, Piece, crop, denoise, to_batch
from serve_app.sampling.levels import single
from serve_app.sampling.rules import Rule
from serve_app.values import Conditioning, PackFunctions

TINY = 1e-37
"""Added to a cell's weights, so that a cell without any comes out as zero."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One entry of a conditioning, ready for every evaluation of a run.

    weight: its share, one number or (N,1,h,w) over its area, (N,1,1,h,w) where there is time. It takes part from sigma
    `above` down to sigma `below`. default: its weight is instead what the branch's other entries leave of 1.
    """

    role: str
    inputs: Inputs
    weight: Tensor | float
    area: Area | None
    above: float
    below: float
    default: bool = False

    def takes_part(self, sigma: float) -> bool:
        """Whether it counts at a level."""
        return self.below <= single(sigma) <= self.above


def entries(role: str, conditioning: Conditioning, backbone: Backbone, canvas: Canvas) -> tuple[Entry, ...]:
    """Return a resolved conditioning's entries for the rows of a canvas."""
    height, width = canvas.latents.shape[-2:]
    made = []
    for cond, options in conditioning:
        area = area_of(options, height, width)
        above = backbone.levels.at_progress(options["start_percent"]) if "start_percent" in options else float("inf")
        below = backbone.levels.at_progress(options["end_percent"]) if "end_percent" in options else 0.0
        # Every branch beside the positive one counts as negative.
        kind = "positive" if role == "positive" else "negative"
        inputs = backbone.inputs(cond, options, kind, canvas).within(area)
        weight = weight_of(options, height, width, backbone.device)
        if isinstance(weight, Tensor) and canvas.latents.ndim == 5:
            weight = weight.unsqueeze(2)
        made.append(Entry(role, inputs, weight, area, above, below, bool(options.get("default"))))
    return tuple(made)


class Guidance:
    """The guidance of one run: its branches, by role, and the rule that combines them."""

    def __init__(self, backbone: Backbone, conds: Mapping[str, Conditioning], rule: Rule, canvas: Canvas) -> None:
        self.backbone = backbone
        self._rule = rule
        height, width = canvas.latents.shape[-2:]
        self._entries: dict[str, tuple[Entry, ...]] = {}
        # A loop, not a comprehension: an error that is kept would keep what that closes over, and with it the backbone.
        for role, conditioning in resolved(conds, height, width).items():
            self._entries[role] = entries(role, conditioning, backbone, canvas)
        self._asked: tuple[Entry, ...] = ()

    def pieces(self, evaluation: Evaluation) -> tuple[Piece, ...]:
        """Return what the network has to answer for an evaluation; () if no entry takes part."""
        self._asked = tuple(
            entry
            for role in self._rule.asks(evaluation.want_uncond)
            for entry in _taking_part(self._entries.get(role, ()), evaluation)
        )
        return tuple(
            Piece(
                self.backbone,
                evaluation.x if entry.area is None else crop(evaluation.x, entry.area),
                evaluation.sigma,
                entry.inputs,
                entry.role,
            )
            for entry in self._asked
        )

    def answer(self, role: str, x: Tensor, sigma: float, functions: PackFunctions | None = None) -> Tensor:
        """Return a branch's denoised for any x (B,C,…) and level, from a forward of its own; zero without entries.

        functions: take the place of the backbone's.
        """
        evaluation = Evaluation(x, sigma, 0)
        taking = _taking_part(self._entries.get(role, ()), evaluation)
        backbone = self.backbone if functions is None else self.backbone.with_functions(functions)
        answered = []
        for entry in taking:
            piece = Piece(backbone, x if entry.area is None else crop(x, entry.area), sigma, entry.inputs, role)
            answered += [(entry, denoised) for denoised in denoise([piece])]
        return _mean(x, answered)

    def combine(self, evaluation: Evaluation, answers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return (denoised, uncond) from the answers to the last `pieces`, in their order.

        uncond is what the rule led away from. A branch that has no entries at this level, or no weight, is zero.
        """
        asked = list(zip(self._asked, answers, strict=True))
        means = {
            role: _mean(evaluation.x, [(entry, answer) for entry, answer in asked if entry.role == role])
            for role in self._rule.asks(evaluation.want_uncond)
            if role in self._entries
        }
        return self._rule.combine(means, evaluation, self)


def _taking_part(branch: Sequence[Entry], evaluation: Evaluation) -> Sequence[Entry]:
    """Return the entries that count for an evaluation; what the others leave over is the default ones' weight."""
    taking = [entry for entry in branch if entry.takes_part(evaluation.sigma)]
    others = [entry for entry in taking if not entry.default]
    if len(others) == len(taking):
        return taking
    x = evaluation.x
    left = torch.ones((x.shape[0], 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    for entry in others:
        weight = entry.weight
        part = left if entry.area is None else crop(left, entry.area)
        part -= to_batch(weight, x.shape[0]) if isinstance(weight, Tensor) else weight
    left = left.clamp(min=0)
    if not bool(left.any()):
        return others
    filling = [
        replace(entry, weight=left if entry.area is None else crop(left, entry.area))
        for entry in taking
        if entry.default
    ]
    return [*others, *filling]


def _mean(x: Tensor, answered: Sequence[tuple[Entry, Tensor]]) -> Tensor:
    if len(answered) == 1 and answered[0][0].area is None and isinstance(answered[0][0].weight, float):
        return answered[0][1] if answered[0][0].weight else torch.zeros_like(x)
    total = torch.zeros_like(x)
    weights = torch.full((x.shape[0], 1, *x.shape[2:]), TINY, dtype=x.dtype, device=x.device)
    for entry, answer in answered:
        weight = entry.weight
        if isinstance(weight, Tensor):
            weight = to_batch(weight, x.shape[0])
        part, share = total, weights
        if entry.area is not None:
            part, share = crop(total, entry.area), crop(weights, entry.area)
        part += answer * weight
        share += weight
    return total / weights
