"""A Wan that makes a video block by block: frames of a block attend to those of the blocks before it, and to its own.

What layers make of blocks that are done is kept for the run, so that each of a block's forwards computes its frames
alone; where it is lacking, as in a run that goes on elsewhere, it is computed again from the frames. Sources: Huang et
al. 2025 (Self-Forcing), arXiv:2506.08009; Causal Forcing, github.com/thu-ml/Causal-Forcing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, count, pairwise
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import grid
from serve_app.models.families.shared.fused_blocks import attention_output
from serve_app.models.families.video.wan import Attend, Wan, WanInputs
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Canvas
from serve_app.sampling.transfer import to_device

Layer: TypeAlias = "tuple[Tensor, Tensor]"
"""A layer's keys, rotated, and values, (R,n,H,d) each."""


class Past:
    """What layers made of the frames that are done, by rows of a run. One thread at a time uses it."""

    def __init__(self) -> None:
        self._layers: dict[tuple[int, ...], list[Layer]] = {}
        self._frames: dict[tuple[int, ...], int] = {}

    def frames(self, rows: tuple[int, ...]) -> int:
        """Return how many of the first frames are known of rows."""
        return self._frames.get(rows, 0)

    def layers(self, rows: tuple[int, ...]) -> Sequence[Layer]:
        """Return what is known of rows, layer by layer; empty if nothing is."""
        return self._layers.get(rows, ())

    def keep(self, rows: tuple[int, ...], layers: Sequence[Layer], frames: int) -> None:
        """Replace what is known of rows."""
        self._layers[rows], self._frames[rows] = list(layers), frames


@dataclass(frozen=True, slots=True, eq=False)
class CausalInputs(WanInputs):
    """Conditioning inputs for B rows, beside Wan's.

    row: (B,), on the host, the numbers of the run's rows. blocks: the latent frames of each block of x, all but the
    last done; () for a video that is sampled as a whole. past: of the run.
    """

    row: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    blocks: tuple[int, ...] = ()
    past: Past = field(default_factory=Past)

    def in_blocks(self, blocks: tuple[int, ...]) -> CausalInputs:
        """Return the inputs for a video in blocks."""
        return replace(self, blocks=blocks)


class OfPast(NamedTuple):
    """Name of a call's input: the "keys" or "values" of a layer for frames that are done, (R,n,H,d)."""

    what: str
    layer: int


@dataclass(frozen=True, slots=True)
class WanCausal(Wan):
    """A backbone whose tensors are those of a Wan for texts; its metadata tells it from them.

    Samplers of whole videos run it as such a Wan, as in ComfyUI.
    """

    title = "Wan, block by block"
    kind = "Wan"
    trained_as = Flow(5.0)

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return bool(tensors.config("transformer").get("causal_ar")) and super(WanCausal, cls).recognises(tensors)

    @classmethod
    def probe(cls, tensors: Tensors) -> WanCausal:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        found = super(WanCausal, cls).probe(tensors)
        assert isinstance(found, WanCausal)
        if found != cls(found.width, found.layers, found.inside, found.text_width):
            raise tensors.unsupported("reads more than texts; a Wan that works block by block reads those alone")
        return found

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> CausalInputs:
        base = super(WanCausal, self).inputs(cond, options, role, canvas, device, trained_as)
        given = {one.name: getattr(base, one.name) for one in fields(base)}
        return CausalInputs(**given, row=torch.arange(canvas.rows))

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        # Rows of one run alone: what is known of others has other frames.
        of_run = (inputs.blocks, id(inputs.past)) if inputs.blocks else None
        return super(WanCausal, self).group_key(x, inputs), of_run

    def kept_bytes(self, x: Tensor) -> int:
        """Return the bytes of all layers' keys and values for a whole video."""
        tokens = x.shape[2] * prod(grid(*x.shape[3:]))
        return 2 * self.layers * tokens * self.width * self.dtypes[0].itemsize

    def is_steady(self, row: Rows) -> bool:
        return not row.inputs.blocks and super(WanCausal, self).is_steady(row)

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        tensors, inputs = dict(super(WanCausal, self).call_inputs(network, rows)), rows[0].inputs
        if not inputs.blocks:
            return tensors
        known, x, level, at = _known(rows), tensors["x"], tensors["level"], tensors["at"]
        assert x is not None, "every call has it"
        assert level is not None, "every call has it"
        assert at is not None, "every call has it"
        is_noisy = torch.arange(known, x.shape[2]) >= sum(inputs.blocks[:-1])
        tensors["level"] = level * to_device(is_noisy, level.device)
        tensors["x"], tensors["at"] = x[:, :, known:], at[known * prod(grid(*x.shape[3:])) :]
        for number, (keys, values) in enumerate(inputs.past.layers(_numbers(rows)) if known else ()):
            tensors[OfPast("keys", number)], tensors[OfPast("values", number)] = keys, values
        return tensors

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        made = super(WanCausal, self).run(network, rows, given)
        if not (blocks := rows[0].inputs.blocks):
            return made
        # Frames that are done stay as they are: no noise is found in them.
        return pad(made[:, :, made.shape[2] - blocks[-1] :], (0, 0, 0, 0, sum(blocks[:-1]), 0))

    def beside(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Callable[[Any], Attend]:
        """Return what has each block's frames attend to those before them, and keeps what is needed of these."""
        inputs = rows[0].inputs
        if not (blocks := inputs.blocks):
            return super(WanCausal, self).beside(network, rows, given)
        known, numbers = _known(rows), _numbers(rows)
        cells = prod(grid(*given["x"].shape[3:]))
        ends = [frames * cells for frames in accumulate(blocks) if frames > known]
        starts, done = [known * cells, *ends], sum(blocks[:-1])
        keeps = done > known and not any(row.layers for row in rows)
        number, kept = count(), list[Layer]()

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if known:
                layer = next(number)
                k = torch.cat([given[OfPast("keys", layer)], k], dim=1)
                v = torch.cat([given[OfPast("values", layer)], v], dim=1)
            if keeps:
                kept.append((k[:, : done * cells].clone(), v[:, : done * cells].clone()))
                if len(kept) == self.layers:
                    inputs.past.keep(numbers, kept, done)
            found = [
                attention_output(q[:, start - starts[0] : end - starts[0]], k[:, :end], v[:, :end])
                for start, end in pairwise(starts)
            ]
            return found[0] if len(found) == 1 else torch.cat(found, dim=1)

        return lambda block: attend


def _numbers(rows: Sequence[Rows]) -> tuple[int, ...]:
    """Return the numbers of rows within their run."""
    return tuple(number for row in rows for number in row.inputs.row.tolist())


def _known(rows: Sequence[Rows]) -> int:
    """Return how many first frames need not be computed, as the past has them."""
    # Patches of layers may change from step to step, and so would what is kept.
    return 0 if any(row.layers for row in rows) else rows[0].inputs.past.frames(_numbers(rows))
