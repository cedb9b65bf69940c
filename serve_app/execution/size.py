"""Size limits of nodes' values: checked before memory is allocated, and measured after each call.

A node that makes a value of a requested size calls `allow` first, or resizes and repeats by `builtin/match_size.py`,
which does. The limits are those of the call that runs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from serve_app.config.limits import SizeLimits
from serve_app.errors import NodeError
from serve_app.execution.executing import executing
from serve_app.limits import describe_levels, levels_of
from serve_app.media.decoder import DecoderLimits
from serve_app.nested_tensor import NestedTensor

FLOAT_BYTES = 4
PIXEL_BYTES = 4
OBJECT_BYTES = 32
"""The size that any Python object counts, beside its content."""
_NUMBERS = frozenset({type(None), bool, int, float})
FEWEST_DIMENSIONS = {"IMAGE": 3, "MASK": 2, "LATENT": 3}
"""Least number of dimensions by type. No node can use an empty batch of these."""


def limits() -> SizeLimits:
    """Return the limits of the call that runs here; outside any, the defaults."""
    call = executing()
    return SizeLimits() if call is None else call.limits


def bounds() -> DecoderLimits:
    """Return the limits of decoding a file for the current call."""
    call = executing()
    return (
        DecoderLimits(limits()) if call is None else DecoderLimits(call.limits, call.stopped.is_set, owner=call.tenant)
    )


def allow(*shape: int) -> None:
    """Refuse a tensor of this shape that would be too large. Errors: NodeError."""
    size = math.prod(shape) * FLOAT_BYTES
    what, most = f"it would make a tensor of {'×'.join(map(str, shape))}:", limits()
    _refuse(what, size, "bytes", "value_bytes", most)
    if (call := executing()) is not None and call.made_bytes:
        what = f"{what[:-1]}, with what the nodes before it have made:"
        _refuse(what, call.made_bytes + size, "bytes", "task_bytes", most)


def allow_text(characters: int) -> None:
    """Refuse a text that would be too long. Errors: NodeError."""
    _refuse("it would make a text:", characters, "characters", "text_characters", limits())


def allow_levels(steps: int, denoise: float = 1.0) -> None:
    """Refuse a schedule of too many levels. Errors: NodeError."""
    _refuse(describe_levels(steps, denoise), levels_of(steps, denoise), "levels", "levels", limits())


def allow_output(value: object, most: SizeLimits, before: int = 0) -> int:
    """Refuse an output to clients that is too large to be sent; return the total bytes including it.

    before: bytes that the same task has output so far. Errors: NodeError.
    """
    size = before + size_of(value)
    _refuse(f"it shows{', with what was shown before' if before else ''}:", size, "bytes", "shown_bytes", most)
    return size


def check_results(calls: Sequence[Sequence[Any]], slots: Sequence[str], most: SizeLimits) -> None:
    """Refuse results of a node's calls that are too large. Errors: NodeError.

    slots: the types of the values, for which an empty batch is refused as well.
    """
    _refuse("it has made values:", size_of(calls), "bytes", "value_bytes", most)
    for values in calls:
        for value in values:
            if isinstance(value, str):
                _refuse("it has made a text:", len(value), "characters", "text_characters", most)
        for slot, value in zip(slots, values, strict=False):
            _check_count(slot, value, most)


def _check_count(slot: str, value: Any, most: SizeLimits) -> None:
    """Refuse a small value that would make too much work for later nodes. Errors: NodeError."""
    tensor = value.get("samples") if isinstance(value, Mapping) else value
    if isinstance(tensor, NestedTensor):
        for part in tensor.tensors:
            _check_count(slot, {"samples": part}, most)
    match slot, value:
        case (("IMAGE" | "MASK" | "LATENT"), _) if isinstance(tensor, torch.Tensor):
            if not tensor.numel():
                raise NodeError(f"it has made an empty {slot}, of shape {'×'.join(map(str, tensor.shape))}")
            if tensor.ndim > FEWEST_DIMENSIONS[slot]:
                _refuse(f"it has made {slot} of", len(tensor), "in a batch", "batch", most)
        case "CONDITIONING", list():
            _refuse("it has made CONDITIONING of", len(value), "conditionings", "conditionings", most)
        case "SIGMAS", torch.Tensor():
            _refuse("it has made SIGMAS of", max(0, value.numel() - 1), "levels", "levels", most)
        case "AUDIO", Mapping():
            _refuse("it has made AUDIO of", int(value.get("sample_rate", 0)), "Hz", "sample_rate", most)


def allow_calls(returned: object, most: SizeLimits, before: int, seen: set[int]) -> int:
    """Refuse one call's result if all results of the node are too large together; return the bytes of all.

    before: the bytes so far. seen: as of `size_of`. Errors: NodeError.
    """
    size = before + size_of(returned, seen)
    _refuse("it has made values:", size, "bytes", "value_bytes", most)
    return size


def allow_task(made: Sequence[Sequence[Any]], most: SizeLimits, before: int, seen: set[int]) -> int:
    """Refuse a task's next values if all of its values are too large together; return the bytes of all with them.

    before: the bytes so far. seen: as of `size_of`, so that a value that is passed on counts once. Errors: NodeError.
    """
    size = before + size_of(made, seen)
    _refuse("it has made, with the nodes before it, values:", size, "bytes", "task_bytes", most)
    return size


def size_of(value: object, seen: set[int] | None = None) -> int:
    """Return about how many bytes a value takes, however nested: tensors, arrays, images and text; each once.

    seen: ids of values that were counted before, extended by this call; all must be alive.
    """
    seen = set() if seen is None else seen
    total = 0
    stack = [value]
    while stack:
        item = stack.pop()
        total += OBJECT_BYTES
        if type(item) in _NUMBERS or id(item) in seen:
            continue
        seen.add(id(item))
        # The most common types first, as every value of every job is counted.
        if isinstance(item, str):
            total += len(item) if item.isascii() else 4 * len(item)
        elif isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
        elif isinstance(item, torch.Tensor | np.ndarray):
            total += item.nbytes
        elif isinstance(item, bytes | bytearray):
            total += len(item)
        elif isinstance(item, Image.Image):
            total += item.width * item.height * PIXEL_BYTES
        elif isinstance(item, Mapping):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, set | frozenset | deque):
            stack.extend(item)
        elif is_dataclass(item) and not isinstance(item, type):
            stack.extend(getattr(item, f.name) for f in fields(item))
    return total


def _refuse(what: str, count: int, unit: str, key: str, most: SizeLimits) -> None:
    if (excess := most.excess(key, count, unit)) is not None:
        raise NodeError(f"{what} {excess}")
