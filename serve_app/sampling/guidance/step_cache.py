"""Steps that are not computed: what a network added to its input a step before, while little enough has changed since.

How much an output changes is estimated from how much the input does: by the ratio that both changes had when they were
last known. Source: Zhou et al. 2025, arXiv:2507.02860 (EasyCache), with ComfyUI's measures of change.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from serve_app.recipe import EasyCache
from serve_app.sampling.forward import Piece
from serve_app.sampling.samplers.evaluation import Evaluation
from serve_app.sampling.schedules.levels import Levels, single

STRIDE = 8
"""Changes are measured on every so many-th cell along both sides."""


class _Change:
    """The estimated change of an output since it was last computed. threshold: up to which share it may be reused."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._estimated: Tensor | float = 0.0
        self._ratio: Tensor | None = None
        self._of_input: Tensor | None = None
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._size: Tensor | None = None

    def is_small(self, x: Tensor, *, reusable: bool) -> bool:
        """Note an input, and return whether the output before may be reused for it. reusable: it is there."""
        if self._input is None:
            return False
        self._of_input = _distance(x, self._input)
        if self._ratio is None or self._size is None:
            return False
        self._estimated = self._estimated + self._ratio * self._of_input / self._size
        if reusable and bool(self._estimated < self._threshold):
            return True
        self._estimated = 0.0
        return False

    def note(self, x: Tensor, output: Tensor, size: Tensor) -> None:
        """Note an output that was computed for an input. size: by which changes are measured."""
        if self._output is not None and self._of_input is not None:
            self._ratio = _distance(output, self._output) / self._of_input
        self._input, self._output, self._size, self._of_input = _thinned(x), _thinned(output), size, None


class _Cache:
    """What both kinds share: between which levels they act."""

    def __init__(self, patch: EasyCache, levels: Levels) -> None:
        self._below, self._above = levels.at_progress(patch.start_percent), levels.at_progress(patch.end_percent)
        self._change = _Change(patch.threshold)

    def _notes(self, sigma: float) -> bool:
        return single(sigma) > self._above

    def _reuses(self, sigma: float) -> bool:
        return self._notes(sigma) and single(sigma) <= self._below


class BranchCache(_Cache):
    """What a network added to its input, by branch. One of them decides for all whether the step is computed."""

    def __init__(self, patch: EasyCache, levels: Levels) -> None:
        super().__init__(patch, levels)
        self._added: dict[Hashable, Tensor] = {}
        self._decides: Hashable | None = None

    def known(self, asked: Sequence[tuple[Hashable, Piece]]) -> dict[int, Tensor]:
        """Return the answers to pieces that need not be computed, by their places. asked: all of a step, by branch."""
        if not asked or not self._reuses(asked[0][1].sigma):
            return {}
        together = _together([piece for _, piece in asked])
        if self._decides is None:
            self._decides = asked[together[-1]][0]
        decides = next((piece for branch, piece in asked if branch == self._decides), None)
        if decides is None:
            return {}
        reusable = all(asked[place][0] in self._added for place in together)
        if not self._change.is_small(decides.backbone.fed(decides), reusable=reusable):
            return {}
        return {place: self._answer(*one) for place, one in enumerate(asked) if one[0] in self._added}

    def note(
        self, asked: Sequence[tuple[Hashable, Piece]], answers: Mapping[int, Tensor], computed: Sequence[int]
    ) -> None:
        """Note the answers of a step, by place, of which some places were computed."""
        if not self._notes(asked[0][1].sigma):
            return
        outputs = {place: asked[place][1].backbone.output(asked[place][1], answers[place]) for place in computed}
        for place, output in outputs.items():
            branch, piece = asked[place]
            self._added[branch] = output - piece.backbone.fed(piece)
        decides = next((place for place in computed if asked[place][0] == self._decides), None)
        if decides is not None:
            together = _together([piece for _, piece in asked])
            measured = [outputs[place] for place in (together if decides in together else [decides])]
            size = torch.stack([output.abs().mean() for output in measured]).mean()
            piece = asked[decides][1]
            self._change.note(piece.backbone.fed(piece), outputs[decides], size)

    def _answer(self, branch: Hashable, piece: Piece) -> Tensor:
        return piece.backbone.denoised(piece, piece.backbone.fed(piece) + self._added[branch])


class WholeCache(_Cache):
    """What guidance came to beside x; as ComfyUI's LazyCache."""

    def __init__(self, patch: EasyCache, levels: Levels) -> None:
        super().__init__(patch, levels)
        self._added: Tensor | None = None
        self._uncond: Tensor | None = None

    def known(self, evaluation: Evaluation) -> tuple[Tensor, Tensor] | None:
        """Return (denoised, uncond) if they need not be computed; uncond is the last that was."""
        if not self._reuses(evaluation.sigma):
            return None
        if not self._change.is_small(evaluation.latents, reusable=True) or self._added is None or self._uncond is None:
            return None
        return evaluation.latents + self._added, self._uncond

    def note(self, evaluation: Evaluation, denoised: Tensor, uncond: Tensor) -> None:
        """Note what was computed."""
        if self._notes(evaluation.sigma):
            self._change.note(evaluation.latents, denoised, denoised.abs().mean())
            self._added, self._uncond = denoised - evaluation.latents, uncond


def _together(pieces: Sequence[Piece]) -> list[int]:
    """Return the places of the first piece and those whose inputs are shaped as its are.

    ComfyUI asks these in one call, the last one first, which so decides.
    """
    first = _shapes(pieces[0])
    return [place for place, piece in enumerate(pieces) if _shapes(piece) == first]


def _shapes(piece: Piece) -> Hashable:
    values = (getattr(piece.inputs, field.name) for field in fields(piece.inputs))  # type: ignore[arg-type]
    return piece.x.shape, tuple(value.shape for value in values if isinstance(value, Tensor))


def _thinned(x: Tensor) -> Tensor:
    return x[..., ::STRIDE, ::STRIDE]


def _distance(x: Tensor, before: Tensor) -> Tensor:
    return (_thinned(x) - before).abs().mean()
