"""A backbone's weights on a device, which run batches of rows from many jobs and recipes.

What is particular to one recipe comes with its rows; `backbone` makes them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from serve_app import log
from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.families.shared.one_call import OneCall
from serve_app.models.forward import CapturableCall, Inputs, Replays
from serve_app.models.kernels.attention import dispatched
from serve_app.models.kernels.compiled_blocks import CompiledBlocks, reason_against
from serve_app.models.kernels.cuda_graphs import replays_of
from serve_app.models.kernels.packing import weights_of
from serve_app.models.lora.forward import with_loras
from serve_app.recipe.layers import DeepShrink
from serve_app.recipe.training import Training
from serve_app.sampling.forward import Piece

if TYPE_CHECKING:
    from serve_app.models.ranks.leader import Leader
    from serve_app.models.weights.sharded_blocks import ShardedBlocks, WeightRanks

_log = log.get("models")


@dataclass(frozen=True, slots=True)
class ForwardOptions:
    """How forwards of backbones run on a device.

    splits_texts: its fastest attention takes no mask, so rows with texts of unequal lengths may run apart. compiled:
    repeated blocks are compiled, where they can be. ranks: that compute forwards with this process. weight_ranks: that
    have weights of sharded backbones with it.
    """

    splits_texts: bool = False
    compiled: bool = False
    ranks: Leader | None = None
    weight_ranks: WeightRanks | None = None


class LoadedNetwork:
    """The weights of one backbone.

    key: equal for equal weights, whatever LoRAs are used with them. trained_as: the training that the file states.
    replays: runs the forwards; None: eagerly. streamed: some weights stay elsewhere and are copied for each forward.
    shards: the blocks of which ranks have parts. Errors: ModelFileError as `Leader.check`.
    """

    def __init__(
        self,
        key: Hashable,
        family: BackboneFamily,
        module: nn.Module,
        trained_as: Training,
        replays: Replays | None = None,
        streamed: bool = False,
        options: ForwardOptions | None = None,
        shards: ShardedBlocks | None = None,
    ) -> None:
        options = options or ForwardOptions()
        self.key = key
        self.streamed = streamed
        self.shards = shards
        self.family = family
        self.module = module
        self.trained_as = trained_as
        self._splits_texts = options.splits_texts and not streamed
        self._ranks = options.ranks
        if self._ranks is not None:
            self._ranks.check(family)
        self.blocks = _compiled(family, module) if options.compiled else None
        kept = weights_of(module.modules()) if self._splits_texts else ()
        self._weights_bytes = sum(tensor.nbytes for tensor in kept)
        self._weight = next(module.parameters())
        self.device: torch.device = self._weight.device
        self.replays = replays_of(self.device) if replays is None else replays

    def close(self) -> None:
        """Reset what was recorded of its forwards: its weights are about to be freed."""
        self.replays.forget(self._weight)

    def group_key(self, piece: Piece) -> Hashable:
        """Return what must be equal for pieces to share a forward, including patches that resize features."""
        resized = tuple(patch for patch in piece.layers if isinstance(patch, DeepShrink))
        return (self.family.group_key(piece.x, piece.inputs), self._lengths(piece), *resized)

    def _lengths(self, piece: Piece) -> Hashable | None:
        """Return the lengths that rows of a forward with a piece must have; None: any."""
        attention = self.family.joint_attention(piece.x, piece.inputs) if self._splits_texts else None
        apart = attention is not None and attention.runs_apart(self._weights_bytes)
        return attention.lengths if attention is not None and apart else None

    def cells(self, piece: Piece) -> int:
        """Return how much work a piece is, in latent cells."""
        return self.family.cells(piece.x, piece.inputs)

    def padded_rows(self, rows: int) -> int:
        """Return the batch size that a batch of `rows` is padded to, or would be if it is not padded."""
        pads = isinstance(self.family, OneCall) and self.family.padded
        return self.replays.padded_rows(rows) if pads else rows

    def answer(self, rows: Sequence[Rows]) -> list[Tensor]:
        """Return the network's output for each of the rows, float32, from one forward; their group keys are equal.

        Exclusive rows come alone, and their outputs do not depend on earlier forwards. Errors: NodeError as
        `Leader.repeated`.
        """
        with nullcontext() if self.family.dispatches else dispatched():
            if self._ranks is not None and self._ranks.computes(self.family, rows):
                return self._ranks.answer(self, rows)
            if self._ranks is not None and self.shards is not None:
                return self._ranks.repeated(self, rows)
            asked, rows = len(rows), self._padded(rows)
            with self.prepared(rows) as call:
                if call is None:
                    return self.family.forward(self.module, rows)
                output = self.run(call)
        return self.family.split_output(output, rows)[:asked]

    @contextmanager
    def prepared(self, rows: Sequence[Rows], given: Inputs | None = None) -> Iterator[CapturableCall | None]:
        """Yield the call of rows' forward, to `run` inside; None for a family that has none.

        given: its input tensors, if they are made already, as by another rank.
        """
        merging = not any(r.exclusive for r in rows)
        steps_left = max(r.steps_left for r in rows)
        with with_loras([(r.count, r.loras) for r in rows], merging=merging, steps_left=steps_left) as read:
            call = (
                self.family.prepared_call(self.module, rows, given)
                if given is not None and isinstance(self.family, OneCall)
                else self.family.capturable_call(self.module, rows)
            )
            if call is None:
                yield None
            # A CUDA graph would not contain the copies that bring streamed weights.
            elif read is None or self.streamed:
                yield replace(call, variant=None)
            else:
                yield replace(call, reads=read[0] if read else None)

    def run(self, call: CapturableCall) -> Tensor:
        """Return the output of a call of `prepared`, float32."""
        # Blocks with other changes than a CUDA graph could contain would be compiled again and again.
        compiled = None if call.variant is None else self.blocks
        gathers = nullcontext() if self.shards is None else self.shards.forward()
        with gathers, nullcontext() if compiled is None else compiled.running():
            [output] = self.replays.answer(self._weight, call, torch.float32)
        return output

    def _padded(self, rows: Sequence[Rows]) -> Sequence[Rows]:
        count = sum(r.count for r in rows)
        lacking = self.replays.padded_rows(count) - count
        padding = self.family.pad_rows(rows, lacking) if lacking else None
        return rows if padding is None else [*rows, padding]


def _compiled(family: BackboneFamily, module: nn.Module) -> CompiledBlocks | None:
    reason = reason_against(module)
    if reason is not None:
        _log.info("blocks of %s are not compiled: %s", family.title, reason)
    return CompiledBlocks(module) if reason is None else None
