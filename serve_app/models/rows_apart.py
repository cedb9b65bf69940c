"""The rows of a piece as pieces of their own, for a device without the memory for all of them in one forward.

Only rows that are independent can go apart: layers that draw at random, or leave something behind, do so for all of
them at once; images that networks are shown are dealt out to rows by number; functions of node packs see them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from serve_app.models.control import ActiveControl
from serve_app.models.grounding import ActiveGrounding
from serve_app.sampling.forward import Piece
from serve_app.sampling.layers import AttentionMap, Drawn


def rows_apart(piece: Piece) -> list[Piece]:
    """Return a piece for each row of a piece, in order, or the piece alone where its rows depend on each other."""
    together = any(isinstance(layer, AttentionMap | Drawn) for layer in piece.layers)
    if piece.rows == 1 or together or piece.tie is not None or not _is_apart(piece.inputs, piece.rows):
        return [piece]
    return [
        replace(piece, x=piece.x[row : row + 1], inputs=_row(piece.inputs, row), reading=None)
        for row in range(piece.rows)
    ]


def _is_apart(told: Any, rows: int) -> bool:
    """Whether each of so many rows has its own part of what they are told, or all have the same."""
    match told:
        case Tensor():
            return len(told) == rows
        case tuple():
            return all(_is_apart(one, rows) for one in told)
        case ActiveControl():
            return len(told.hint.image) == 1
        case ActiveGrounding():
            return True
    return not is_dataclass(told) or all(_is_apart(one, rows) for one in _fields(told).values())


def _row(told: Any, row: int) -> Any:
    match told:
        case Tensor():
            return told[row : row + 1]
        case tuple():
            return tuple(_row(one, row) for one in told)
        case ActiveControl() | ActiveGrounding():
            return told
    if not is_dataclass(told) or isinstance(told, type):
        return told
    return replace(told, **{name: _row(one, row) for name, one in _fields(told).items()})


def _fields(told: Any) -> Mapping[str, Any]:
    return {field.name: getattr(told, field.name) for field in fields(told) if field.init}
