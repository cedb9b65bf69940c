"""What rows are told beside x: values of a family's own in which tensors have a row for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from serve_app.models.control.control import ActiveControl
from serve_app.models.unet_patches.grounding import ActiveGrounding


def has_row_each(told: Any, rows: int) -> bool:
    """Whether each of so many rows has its own part of what they are told, or all have the same."""
    match told:
        case Tensor():
            return len(told) == rows
        case tuple():
            return all(has_row_each(one, rows) for one in told)
        case ActiveControl():
            return len(told.hint.image) == 1
        case ActiveGrounding():
            return True
    return not is_dataclass(told) or all(has_row_each(one, rows) for one in _fields(told).values())


def with_rows(told: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return what is told with other rows. change: of each tensor, (B,…) to (B',…)."""
    match told:
        case Tensor():
            return change(told)
        case tuple():
            return tuple(with_rows(one, change) for one in told)
        case ActiveControl() | ActiveGrounding():
            return told
    if not is_dataclass(told) or isinstance(told, type):
        return told
    return replace(told, **{name: with_rows(one, change) for name, one in _fields(told).items()})


def _fields(told: Any) -> Mapping[str, Any]:
    return {field.name: getattr(told, field.name) for field in fields(told) if field.init}
