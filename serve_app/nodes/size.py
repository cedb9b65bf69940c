"""How large a node's values are, and which are too large: asked before memory is taken, and measured after each call.

A node that makes a value of a size it is given calls `allow` first, or resizes and repeats by `builtin/match_size.py`,
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

from serve_app.errors import NodeError
from serve_app.limits import SizeLimits, refused
from serve_app.nodes.executing import executing

FLOAT_BYTES = 4
PIXEL_BYTES = 4
OBJECT_BYTES = 32
"""What any Python object counts, beside what it holds."""
_NUMBERS = frozenset({type(None), bool, int, float})
IMAGE_SLOTS = frozenset({"IMAGE", "MASK", "LATENT"})
"""Types of which an empty batch is of no use to any node."""


def limits() -> SizeLimits:
    """Return the limits of the call that runs here; outside any, the defaults."""
    call = executing()
    return SizeLimits() if call is None else call.limits


def allow(*shape: int) -> None:
    """Refuse a tensor of this shape that would be too large. Errors: NodeError."""
    size = math.prod(shape) * FLOAT_BYTES
    what, most = f"would make a tensor of {'×'.join(map(str, shape))}", limits()
    _refuse(what, size, "bytes", "value_bytes", most.value_bytes)
    if (call := executing()) is not None and call.made_bytes:
        what = f"{what}, with what the nodes before it have made"
        _refuse(what, call.made_bytes + size, "bytes", "task_bytes", most.task_bytes)


def allow_text(characters: int) -> None:
    """Refuse a text that would be too long. Errors: NodeError."""
    _refuse("would make a text", characters, "characters", "text_characters", limits().text_characters)


def allow_shown(value: object, most: SizeLimits, before: int = 0) -> int:
    """Refuse what is shown to clients if it is too large to be carried to them; return the bytes shown with it.

    before: what the same task has shown so far. Errors: NodeError.
    """
    size = before + size_of(value)
    _refuse("shows, with what was shown before," if before else "shows", size, "bytes", "shown_bytes", most.shown_bytes)
    return size


def check_made(calls: Sequence[Sequence[Any]], slots: Sequence[str], most: SizeLimits) -> None:
    """Refuse what a node's calls have made if it is too large. Errors: NodeError.

    slots: the types of the values, for which an empty batch is refused as well.
    """
    _refuse("has made values", size_of(calls), "bytes", "value_bytes", most.value_bytes)
    for values in calls:
        for value in values:
            if isinstance(value, str):
                _refuse("has made a text", len(value), "characters", "text_characters", most.text_characters)
        for slot, value in zip(slots, values, strict=False):
            tensor = value.get("samples") if isinstance(value, Mapping) else value
            if slot in IMAGE_SLOTS and isinstance(tensor, torch.Tensor) and not tensor.numel():
                raise NodeError(f"it has made an empty {slot}, of shape {'×'.join(map(str, tensor.shape))}")


def allow_calls(returned: object, most: SizeLimits, before: int, seen: set[int]) -> int:
    """Refuse what one more of a node's calls has returned if all of them have made too much; return the bytes of all.

    before: the bytes so far. seen: as of `size_of`. Errors: NodeError.
    """
    size = before + size_of(returned, seen)
    _refuse("has made values", size, "bytes", "value_bytes", most.value_bytes)
    return size


def allow_task(made: Sequence[Sequence[Any]], most: SizeLimits, before: int, seen: set[int]) -> int:
    """Refuse a task's next values if all it has made would fill the memory; return the bytes of all with them.

    before: the bytes so far. seen: as of `size_of`, so that a value that is passed on counts once. Errors: NodeError.
    """
    size = before + size_of(made, seen)
    _refuse("has made, with the nodes before it, values", size, "bytes", "task_bytes", most.task_bytes)
    return size


def size_of(value: object, seen: set[int] | None = None) -> int:
    """Return about how many bytes a value takes, however nested: tensors, arrays, images and text; each once.

    seen: the ids of what has been counted before, to which this is added; all of it must be alive.
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
        # What is most common first, as every value of every job is counted.
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


def _refuse(what: str, size: int, unit: str, key: str, most: int) -> None:
    if most and size > most:
        refused(f"limits.{key}")
        raise NodeError(f"it {what}: {size:,} {unit}; limits.{key} of the configuration allows {most:,}")
