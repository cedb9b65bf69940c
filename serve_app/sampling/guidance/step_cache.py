"""Step caching: a network's residual from the step before is reused while its input has changed little.

The output's change is estimated from the input's by the ratio of both when last computed. Source: Zhou et al. 2025,
arXiv:2507.02860 (EasyCache), with ComfyUI's measures of change.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from serve_app.recipe.layers import EasyCache
from serve_app.sampling.forward import Piece
from serve_app.sampling.samplers.evaluation import Evaluation
from serve_app.sampling.schedules.levels import Levels, single

STRIDE = 8
"""Changes are measured on every eighth cell along both sides."""


class _Change:
    """Estimated change of an output since it was last computed. threshold: relative change up to which it is reused."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._estimated: Tensor | float = 0.0
        self._ratio: Tensor | None = None
        self._of_input: Tensor | None = None
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._size: Tensor | None = None

    def is_small(self, x: Tensor, *, reusable: bool) -> bool:
        """Record an input, and return whether the last output may be reused for it. reusable: there is one."""
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
        """Record the output computed for an input. size: scale by which changes are measured."""
        if self._output is not None and self._of_input is not None:
            self._ratio = _distance(output, self._output) / self._of_input
        self._input, self._output, self._size, self._of_input = _thinned(x), _thinned(output), size, None


class _Cache:
    """Common to both caches: the levels between which they act."""

    def __init__(self, patch: EasyCache, levels: Levels) -> None:
        self._below, self._above = levels.at_progress(patch.start_percent), levels.at_progress(patch.end_percent)
        self._change = _Change(patch.threshold)

    def _notes(self, sigma: float) -> bool:
        return single(sigma) > self._above

    def _reuses(self, sigma: float) -> bool:
        return self._notes(sigma) and single(sigma) <= self._below


class BranchCache(_Cache):
    """Caches the network's residual of each branch; one branch decides for all whether a step is computed."""

    def __init__(self, patch: EasyCache, levels: Levels) -> None:
        super().__init__(patch, levels)
        self._added: dict[Hashable, Tensor] = {}
        self._decides: Hashable | None = None

    def known(self, asked: Sequence[tuple[Hashable, Piece]]) -> dict[int, Tensor]:
        """Return cached outputs of pieces, by index; empty: compute them. asked: a step's pieces, by branch."""
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
        """Record the outputs of a step, by index, of which some indices were computed."""
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
    """Caches the guided result minus x; ComfyUI's LazyCache."""

    def __init__(self, patch: EasyCache, levels: Levels) -> None:
        super().__init__(patch, levels)
        self._added: Tensor | None = None
        self._uncond: Tensor | None = None

    def known(self, evaluation: Evaluation) -> tuple[Tensor, Tensor] | None:
        """Return cached (denoised, uncond), or None if they must be computed; uncond is the last one computed."""
        if not self._reuses(evaluation.sigma):
            return None
        if not self._change.is_small(evaluation.latents, reusable=True) or self._added is None or self._uncond is None:
            return None
        return evaluation.latents + self._added, self._uncond

    def note(self, evaluation: Evaluation, denoised: Tensor, uncond: Tensor) -> None:
        """Record what was computed."""
        if self._notes(evaluation.sigma):
            self._change.note(evaluation.latents, denoised, denoised.abs().mean())
            self._added, self._uncond = denoised - evaluation.latents, uncond


def _together(pieces: Sequence[Piece]) -> list[int]:
    """Return the indices of the first piece and those with equally shaped inputs.

    ComfyUI runs these in one call and lets the last of them decide.
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
