"""Conditioning inputs of a batch: families' dataclasses whose tensors have a row for each row of x."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from serve_app.models.control.control import ActiveControl
from serve_app.models.unet_patches.grounding import ActiveGrounding


def is_batched(inputs: Any, rows: int) -> bool:
    """Whether conditioning inputs have a part for each row of a batch; False if all rows share one."""
    match inputs:
        case Tensor():
            return len(inputs) == rows
        case tuple():
            return all(is_batched(one, rows) for one in inputs)
        case ActiveControl():
            return len(inputs.hint.image) == 1
        case ActiveGrounding():
            return True
    return not is_dataclass(inputs) or all(is_batched(one, rows) for one in _fields(inputs).values())


def map_rows(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return conditioning inputs with a function applied to each tensor, (B,…) to (B',…)."""
    match inputs:
        case Tensor():
            return change(inputs)
        case tuple():
            return tuple(map_rows(one, change) for one in inputs)
        case ActiveControl() | ActiveGrounding():
            return inputs
    if not is_dataclass(inputs) or isinstance(inputs, type):
        return inputs
    return replace(inputs, **{name: map_rows(one, change) for name, one in _fields(inputs).items()})


def _fields(inputs: Any) -> Mapping[str, Any]:
    return {field.name: getattr(inputs, field.name) for field in fields(inputs) if field.init}
