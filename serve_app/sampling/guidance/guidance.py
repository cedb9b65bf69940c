"""Guidance: which rows one evaluation sends to the network, and how outputs become one `denoised`.

Each conditioning entry is a piece of rows; the pieces of a branch are averaged by weight, then a rule combines the
branches. `conditioning` says where and when an entry applies, `rules` how branches are combined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.recipe.context import ContextWindows
from serve_app.recipe.guidance import SelfAttentionGuidance
from serve_app.recipe.hooks import Hooks
from serve_app.recipe.layers import EasyCache
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.sampling.forward import (
    Area,
    Backbone,
    Canvas,
    InBlocks,
    Inputs,
    ModelInput,
    Piece,
    crop,
    denoise,
    same_model_inputs,
    to_batch,
)
from serve_app.sampling.guidance.conditioning import area_of, check_whole, resolved, weight_of
from serve_app.sampling.guidance.hooks import HookSchedule
from serve_app.sampling.guidance.layers import AttentionMap, LayerPatches, Opposed
from serve_app.sampling.guidance.perturbation import blurrable, blurred
from serve_app.sampling.guidance.rules import Rule
from serve_app.sampling.guidance.step_cache import BranchCache, WholeCache
from serve_app.sampling.guidance.windows import WindowedEvaluation, needed_windows
from serve_app.sampling.lazy_sum import Latents, LazySum, value
from serve_app.sampling.samplers.evaluation import Evaluation
from serve_app.sampling.schedules.levels import single
from serve_app.values import Conditioning

TINY = 1e-37
"""Added to a cell's total weight, so that a cell without any weight becomes zero."""


@dataclass(frozen=True, slots=True, eq=False)
class ConditioningEntry:
    """One conditioning entry, prepared for every evaluation of a run.

    weight: a number or (N,1,h,w) over its area, (N,1,1,h,w) for videos. It is active from sigma `above` down to
    `below`. default: its weight is what the branch's other entries leave of 1. hooks: weight patches of this entry
    alone.
    """

    role: str
    inputs: Inputs
    weight: Tensor | float
    area: Area | None
    above: float
    below: float
    default: bool = False
    hooks: Hooks | None = None

    def takes_part(self, sigma: float) -> bool:
        """Whether it is active at a level."""
        return self.below <= single(sigma) <= self.above


def entries(role: str, conditioning: Conditioning, backbone: Backbone, canvas: Canvas) -> tuple[ConditioningEntry, ...]:
    """Return a resolved conditioning's entries for the rows of a canvas."""
    height, width = canvas.latents.shape[-2:]
    made = []
    for cond, options in conditioning:
        area = area_of(options, height, width)
        start, end = _range(options)
        above = inf if start is None else backbone.levels.at_progress(start)
        below = 0.0 if end is None else backbone.levels.at_progress(end)
        # Every role other than the positive one is negative.
        kind = "positive" if role == "positive" else "negative"
        inputs = backbone.inputs(cond, options, kind, canvas).within(area)
        weight = weight_of(options, height, width, backbone.device)
        if isinstance(weight, Tensor) and canvas.latents.ndim == 5:
            weight = weight.unsqueeze(2)
        default, hooks = bool(options.get("default")), options.get("hooks")
        made.append(ConditioningEntry(role, inputs, weight, area, above, below, default, hooks))
    return tuple(made)


def _range(options: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the shares of the sampling between which an entry is active; None: always."""
    start, end = options.get("start_percent"), options.get("end_percent")
    if "clip_start_percent" not in options:
        return start, end
    first, last = options["clip_start_percent"], options["clip_end_percent"]
    return max(first, start or 0.0), min(last, 1.0 if end is None else end)


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A piece, its entry, and the branch role or guidance patch that its output belongs to."""

    to: Any
    entry: ConditioningEntry
    piece: Piece


class Guidance:
    """The guidance of one run: its branches by role, and the rule that combines them.

    layers: patches of layers for all rows. caches: of `step_cache`. hooks: makes the backbones of entries with hooks.
    others: backbones of branches, by role, that have one of their own. windows: in which a long video is evaluated.
    Errors: NodeError for windows of what is no video.
    """

    def __init__(
        self,
        backbone: Backbone,
        conds: Mapping[str, Conditioning],
        rule: Rule,
        canvas: Canvas,
        layers: LayerPatches | None = None,
        caches: Sequence[EasyCache] = (),
        hooks: HookSchedule | None = None,
        others: Mapping[str, Backbone] = MappingProxyType({}),
        windows: ContextWindows | None = None,
    ) -> None:
        self.backbone = backbone
        self._windows = None if windows is None else needed_windows(windows, canvas.latents)
        self._cut: WindowedEvaluation | None = None
        self._others = others
        self._rule = rule
        self._layers = layers
        self._hooks = hooks
        # Of several of a kind the last one applies, as in ComfyUI.
        self._branches: BranchCache | None = None
        self._whole: WholeCache | None = None
        for patch in caches:
            if patch.whole:
                self._whole = WholeCache(patch, backbone.levels)
            else:
                self._branches = BranchCache(patch, backbone.levels)
        if canvas.layout.joint:
            check_whole(conds)
        height, width = canvas.latents.shape[-2:]
        self._entries: dict[str, tuple[ConditioningEntry, ...]] = {}
        placed = resolved(conds, height, width)
        for role in others:
            # A branch with a network of its own is resolved apart from the others, as in ComfyUI.
            placed |= resolved({role: conds[role]}, height, width)
        for role, conditioning in placed.items():
            self._entries[role] = entries(role, conditioning, others.get(role, backbone), canvas)
            if role in others and any(entry.hooks for entry in self._entries[role]):
                raise NodeError(f"the {role} has a model of its own, for which hooks are not supported")
        self._asked: list[_Asked] = []
        self._answers: dict[int, Latents] = {}
        self._model_input: ModelInput | None = None
        self._shared: dict[Any, tuple[Sequence[ConditioningEntry], Sequence[Tensor | float]]] = {}
        self._attention = AttentionMap()
        self._reused: tuple[Tensor, Tensor] | None = None

    @property
    def is_sum(self) -> bool:
        """Whether outputs enter linear combinations only, so that they may stay pending."""
        placed = any(entry.area is not None for branch in self._entries.values() for entry in branch)
        cached = self._branches is not None or self._whole is not None
        return self._rule.linear and not cached and not placed and self._windows is None

    def pieces(self, evaluation: Evaluation, model_input: ModelInput | None = None) -> tuple[Piece, ...]:
        """Return the pieces of an evaluation; () if no entry is active.

        model_input: the model input for the evaluation's x, if already computed.
        """
        self._asked, self._answers, self._model_input = [], {}, model_input
        self._cut = None if self._windows is None else self._windows(evaluation)
        self._reused = None if self._whole is None else self._whole.known(evaluation)
        if self._reused is not None:
            return ()
        self._asked += self._usual(evaluation)
        positive, _ = self._rule.ends
        for look in self._rule.patches.perturbed_branches(evaluation.sigma):
            for entry in _taking_part(self._entries.get(positive, ()), evaluation):
                piece = self._piece(entry, evaluation, look.layers, model_input=model_input)
                self._asked.append(_Asked(look.patch, entry, piece))
        if self._branches is not None:
            self._answers = {**self._branches.known(self._by_branch())}
        return self._in_windows(self._unanswered())

    def take(self, evaluation: Evaluation, answers: Sequence[Latents]) -> tuple[Piece, ...]:
        """Take the outputs of the pieces returned last, in order; return pieces that depend on them, else ().

        Self-attention guidance (SAG) needs a second forward: the uncond image with its most-attended cells blurred.
        """
        computed = [place for place in range(len(self._asked)) if place not in self._answers]
        self._answers |= dict(zip(computed, self._blended(answers), strict=True))
        if any(isinstance(asked.to, _Blurred) for asked in self._asked):
            return ()
        if computed and self._branches is not None:
            known = {place: value(answer) for place, answer in self._answers.items()}
            self._branches.note(self._by_branch(), known, computed)
        _, negative = self._rule.ends
        blurring = dict.fromkeys(self._rule.patches.blurring)
        if not (blurring and blurrable(evaluation.latents) and any(asked.to == negative for asked in self._asked)):
            return ()
        uncond = value(self._means(evaluation)[negative])
        for patch in blurring:
            to = _Blurred(patch, blurred(uncond, self._attention, patch.blur))
            seen = replace(evaluation, x=to.degraded + evaluation.latents - uncond)
            for entry in _taking_part(self._entries[negative], evaluation):
                self._asked.append(_Asked(to, entry, self._piece(entry, seen)))
        return self._in_windows(self._unanswered())

    def combine(self, evaluation: Evaluation) -> tuple[Latents, Latents]:
        """Return (denoised, uncond) once all outputs are taken.

        uncond is the branch that the rule guides away from. A branch without active entries or weight is zero.
        """
        if self._reused is not None:
            return self._reused
        means = self._means(evaluation)
        for asked in [key for key in means if isinstance(key, _Blurred)]:
            means[asked.patch] = asked.degraded - means.pop(asked)
        denoised, uncond = self._rule.combine(means, evaluation, self)
        if self._whole is not None:
            self._whole.note(evaluation, value(denoised), value(uncond))
        return denoised, uncond

    def answer(self, role: str, x: Tensor, sigma: float, functions: PackFunctions | None = None) -> Tensor:
        """Return a branch's denoised for any x (B,C,…) and level, from a forward of its own; zero without entries.

        functions: used instead of the backbone's.
        """
        evaluation = Evaluation(x, sigma, 0)
        self._cut = self._cut or (None if self._windows is None else self._windows(evaluation))
        answered: list[tuple[ConditioningEntry, Latents]] = []
        for entry in _taking_part(self._entries.get(role, ()), evaluation):
            piece = self._piece(entry, evaluation)
            if functions is not None:
                piece = replace(piece, backbone=piece.backbone.with_functions(functions))
            made = [denoise([part])[0] for part in self._in_windows([piece])]
            answered += [(entry, denoised) for denoised in self._blended(made)]
        return value(self._mean(role, x, answered))

    def _in_windows(self, pieces: Sequence[Piece]) -> tuple[Piece, ...]:
        """Return pieces cut into the windows of the evaluation, if it has any."""
        if (cut := self._cut) is None:
            return tuple(pieces)
        return tuple(part for piece in pieces for part in cut.cut(piece))

    def _blended(self, answers: Sequence[Latents]) -> Sequence[Latents]:
        """Return the outputs of what `_in_windows` cut."""
        if (cut := self._cut) is None:
            return answers
        of_piece = (answers[first : first + cut.count] for first in range(0, len(answers), cut.count))
        return [cut.blended([value(part) for part in parts]) for parts in of_piece]

    def _by_branch(self) -> list[tuple[Any, Piece]]:
        return [((asked.to, id(asked.entry.inputs)), asked.piece) for asked in self._asked]

    def _unanswered(self) -> tuple[Piece, ...]:
        return tuple(asked.piece for place, asked in enumerate(self._asked) if place not in self._answers)

    def _usual(self, evaluation: Evaluation) -> Iterator[_Asked]:
        """Yield the pieces of the rule's branches."""
        patches, (positive, negative) = self._rule.patches, self._rule.ends
        tie = object() if patches.opposing else None
        for role in self._rule.asks(evaluation):
            branch = _taking_part(self._entries.get(role, ()), evaluation)
            # Of several entries the last one is used, as in ComfyUI.
            last = next((entry for entry in reversed(branch) if entry.area is None), None)
            for entry in branch:
                layers: list[Any] = []
                if role == negative:
                    layers += patches.of_negative(evaluation.sigma)
                    if entry is last and patches.blurring:
                        layers.append(self._attention)
                tied = tie is not None and entry is last and role in (positive, negative)
                if tied:
                    layers += [Opposed(patch, tie, role == positive) for patch in patches.opposing]
                yield _Asked(
                    role, entry, self._piece(entry, evaluation, layers, tie if tied else None, self._model_input)
                )

    def _piece(
        self,
        entry: ConditioningEntry,
        evaluation: Evaluation,
        layers: Sequence[Any] = (),
        tie: object | None = None,
        model_input: ModelInput | None = None,
    ) -> Piece:
        x, sigma = evaluation.latents, evaluation.sigma
        of_all = () if self._layers is None else self._layers.at(sigma)
        backbone = self._others.get(entry.role, self.backbone)
        if entry.hooks is not None and self._hooks is not None:
            backbone = self._hooks.backbone(entry.hooks, sigma)
        if model_input is not None and not same_model_inputs(backbone, self.backbone):
            model_input = None
        if entry.area is not None:
            x = crop(x, entry.area)
            model_input = model_input and replace(model_input, fed=crop(value(model_input.fed), entry.area))
        inputs = _in_blocks(entry.inputs, evaluation.blocks) if evaluation.blocks else entry.inputs
        return Piece(backbone, x, sigma, inputs, entry.role, (*of_all, *layers), tie, model_input)

    def _means(self, evaluation: Evaluation) -> dict[Any, Latents]:
        """Return the mean of each evaluated branch, by role, and of each guidance patch's pieces, by patch."""
        answered: dict[Any, list[tuple[ConditioningEntry, Latents]]] = {
            role: [] for role in self._rule.asks(evaluation) if role in self._entries
        }
        for place, asked in enumerate(self._asked):
            answered.setdefault(asked.to, []).append((asked.entry, self._answers[place]))
        return {to: self._mean(to, evaluation.latents, of) for to, of in answered.items()}

    def _mean(self, to: Any, x: Tensor, answered: Sequence[tuple[ConditioningEntry, Latents]]) -> Latents:
        """Return the weighted mean of a branch's outputs, shaped as x; zero where no entry has weight."""
        match answered:
            case [(ConditioningEntry(weight=float(weight), area=None), answer)] if weight:
                return answer
        total: Latents = LazySum.zero(x)
        shares = self._shares(to, [entry for entry, _ in answered], x)
        for (entry, answer), share in zip(answered, shares, strict=True):
            placed = answer if entry.area is None else _placed(value(answer), entry.area, x)
            total = total + LazySum.of(placed) * share
        return total

    def _shares(self, to: Any, taking: Sequence[ConditioningEntry], x: Tensor) -> Sequence[Tensor | float]:
        """Return each entry's share of its branch's weight, cached from the last step, as most do not change."""
        known, shares = self._shared.get(to, ((), ()))
        if len(taking) != len(known) or any(a is not b for a, b in zip(taking, known, strict=True)):
            wide = [_spread(entry, x) for entry in taking]
            whole = sum(wide) + TINY
            shares = [weight / whole for weight in wide]
            self._shared[to] = taking, shares
        return shares


@dataclass(frozen=True, slots=True, eq=False)
class _Blurred:
    """Key of the outputs for blurred latents. degraded: those latents, without noise."""

    patch: SelfAttentionGuidance
    degraded: Tensor


def _in_blocks(inputs: Inputs, blocks: tuple[int, ...]) -> Inputs:
    if not isinstance(inputs, InBlocks):
        raise NodeError(
            "the sampler makes a video block by block, and the model was not trained to: choose a Wan of Causal "
            "Forcing or Self-Forcing, whose file's metadata says `causal_ar`, or another sampler"
        )
    return inputs.in_blocks(blocks)


def _taking_part(branch: Sequence[ConditioningEntry], evaluation: Evaluation) -> Sequence[ConditioningEntry]:
    """Return the entries active in an evaluation; default ones get the weight that the others leave."""
    taking = [entry for entry in branch if entry.takes_part(evaluation.sigma)]
    others = [entry for entry in taking if not entry.default]
    if len(others) == len(taking):
        return taking
    x = evaluation.latents
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


def _spread(entry: ConditioningEntry, x: Tensor) -> Tensor | float:
    """Return an entry's weight in all cells of x, zero outside its area."""
    weight = to_batch(entry.weight, x.shape[0]) if isinstance(entry.weight, Tensor) else entry.weight
    return weight if entry.area is None else _placed(weight, entry.area, x[:, :1])


def _placed(part: Tensor | float, area: Area, x: Tensor) -> Tensor:
    """Return zeros shaped as x with a part placed in an area."""
    whole = torch.zeros_like(x)
    crop(whole, area).add_(part)
    return whole
