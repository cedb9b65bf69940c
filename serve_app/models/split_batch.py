"""The rows of a piece as pieces of their own, for a device without the memory for all of them in one forward.

Only rows that are independent can go apart: layers that draw at random, or leave something behind, do so for all of
them at once; images that networks are shown are dealt out to rows by number; functions of node packs see them all.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from serve_app.models.batch_inputs import has_row_each, with_rows
from serve_app.sampling.forward import Piece
from serve_app.sampling.guidance.layers import AttentionMap, Drawn


def rows_apart(piece: Piece) -> list[Piece]:
    """Return a piece for each row of a piece, in order, or the piece alone where its rows depend on each other."""
    together = any(isinstance(layer, AttentionMap | Drawn) for layer in piece.layers)
    if piece.rows == 1 or together or piece.tie is not None or not has_row_each(piece.inputs, piece.rows):
        return [piece]

    def one(row: int) -> Piece:
        def only(tensor: Tensor) -> Tensor:
            return tensor[row : row + 1]

        return replace(piece, x=only(piece.x), inputs=with_rows(piece.inputs, only), reading=None)

    return [one(row) for row in range(piece.rows)]
