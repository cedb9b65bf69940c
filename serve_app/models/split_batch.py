"""Splits a batch into single rows, for a device without the memory for all of them in one forward.

Only independent rows can be split. Layers that draw random numbers or record attention act on the whole batch,
reference images are dealt out to rows by number, and functions of node packs see all rows.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from serve_app.models.batch_inputs import is_batched, map_rows
from serve_app.sampling.forward import Piece
from serve_app.sampling.guidance.layers import AttentionMap, Drawn


def split_batch(piece: Piece) -> list[Piece]:
    """Return one piece for each row, in order, or the piece itself where its rows depend on each other."""
    together = any(isinstance(layer, AttentionMap | Drawn) for layer in piece.layers)
    if piece.rows == 1 or together or piece.tie is not None or not is_batched(piece.inputs, piece.rows):
        return [piece]

    def one(row: int) -> Piece:
        def only(tensor: Tensor) -> Tensor:
            return tensor[row : row + 1]

        return replace(piece, x=only(piece.x), inputs=map_rows(piece.inputs, only), model_input=None)

    return [one(row) for row in range(piece.rows)]
