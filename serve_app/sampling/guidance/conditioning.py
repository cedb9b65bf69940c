"""Conditioning resolved for one canvas: areas in cells, masks at its size, entries shared between branches.

An entry's options are ComfyUI's: those in REGION say where, when and how strongly it applies, the others are for the
network. Source: the behaviour of ComfyUI's samplers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.errors import NodeError
from serve_app.sampling.forward import Area
from serve_app.sampling.transfer import to_device
from serve_app.values import Conditioning

REGION = frozenset(
    (
        "area",
        "strength",
        "mask",
        "mask_strength",
        "set_area_to_bounds",
        "start_percent",
        "end_percent",
        "default",
        "control",
        "control_apply_to_uncond",
        "clip_start_percent",
        "clip_end_percent",
        "hooks",
        "gligen",
    )
)
"""The options that say where, when and how strongly an entry applies, and its control, hooks and boxes.

"default": its weight is what the branch's other entries leave of 1.
"""

LEAST_BOUNDS = 8
"""The smallest side, in cells, of an area taken from a mask's bounds."""

RAMP = 8
"""Width in cells of the ramp of an area's weight at its edges inside the canvas."""


def with_options(conditioning: Conditioning, **options: Any) -> Conditioning:
    """Return the entries with some options set."""
    return [(cond, {**said, **options}) for cond, said in conditioning]


def attended_latents(options: Mapping[str, Any]) -> list[Tensor]:
    """Return the latents beside those to sample that a network attends to: references, keyframes and their sounds."""
    found = [*(options.get("reference_latents") or ())]
    for given in (*(options.get("minimax_keyframes") or ()), *(options.get("minimax_refs") or ())):
        found += [latents for name in ("latent", "audio_latent") if (latents := given.get(name)) is not None]
    return found


def with_more(conditioning: Conditioning, **items: Any) -> Conditioning:
    """Return the entries with one item each appended to the lists of these names."""
    return [
        (cond, {**said, **{name: [*said.get(name, ()), item] for name, item in items.items()}})
        for cond, said in conditioning
    ]


def with_tensors(conditioning: Conditioning, change: Callable[[Tensor], Tensor]) -> Conditioning:
    """Return the entries with a function applied to their tensors, those in the options too, and in lists there."""

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, list):
            return [
                {name: changed(part) for name, part in one.items()} if isinstance(one, dict) else one for one in value
            ]
        return value

    return [(change(cond), {name: changed(value) for name, value in options.items()}) for cond, options in conditioning]


def resolved(conds: Mapping[str, Conditioning], height: int, width: int) -> dict[str, Conditioning]:
    """Return the branches' entries for a canvas of height×width cells.

    Areas become (height, width, y, x) in cells, masks (N,h,w). An entry with an area gets a counterpart in every other
    branch, so that both are evaluated on the same cells. Controls and grounding boxes that act on all branches are
    copied to the others, unless those have their own.
    """
    branches = {role: [(cond, _placed(options, height, width)) for cond, options in c] for role, c in conds.items()}
    for role, entries in branches.items():
        for entry in entries:
            for other, others in branches.items():
                if other != role and (counterpart := _counterpart(entry, others)) is not None:
                    others.append(counterpart)
    for role in branches:
        if role != "positive" and "positive" in branches:
            branches[role] = _shared(branches["positive"], branches[role], "control", "control_apply_to_uncond")
            branches[role] = _shared(branches["positive"], branches[role], "gligen")
    return branches


def check_whole(conds: Mapping[str, Conditioning]) -> None:
    """Errors: NodeError for an entry with an area or a mask, which latents of several parts cannot have."""
    for role, entries in conds.items():
        for _, options in entries:
            if placed := [name for name in ("area", "mask") if options.get(name) is not None]:
                raise NodeError(
                    f"the {role} conditioning has a {placed[0]}, and the latents have several parts, such as a video "
                    "and its sound: their conditionings apply to all of them"
                )


def area_of(options: Mapping[str, Any], height: int, width: int) -> Area | None:
    """Return a resolved entry's area, cut to the canvas; None for the whole canvas.

    Errors: NodeError for an area that begins beyond the canvas.
    """
    if "area" not in options:
        return None
    rows, columns, y, x = options["area"]
    if y >= height or x >= width:
        raise NodeError(
            f"the area of a conditioning begins at ({x}, {y}) in cells of 8 pixels, beyond the latents, which are "
            f"{width} wide and {height} high"
        )
    return (min(height - y, rows), min(width - x, columns), y, x)


def weight_of(options: Mapping[str, Any], height: int, width: int, device: torch.device) -> Tensor | float:
    """Return a resolved entry's weight: a number, or (N,1,h,w) over its area."""
    strength, area = float(options.get("strength", 1.0)), area_of(options, height, width)
    if "mask" in options:
        mask: Tensor = to_device(options["mask"], device)[:, None]
        if area is not None:
            rows, columns, y, x = area
            mask = mask[..., y : y + rows, x : x + columns]
        return mask * (float(options.get("mask_strength", 1.0)) * strength)
    if area is None:
        return strength
    rows, columns, y, x = area
    vertical, horizontal = _ramp(rows, y, height), _ramp(columns, x, width)
    return to_device((vertical[:, None] * horizontal * strength)[None, None], device)


def _ramp(length: int, offset: int, whole: int) -> Tensor:
    ramp = torch.ones(length)
    run = min(RAMP, length // 4)
    rise = torch.arange(1, run + 1) / max(run, 1)
    if offset != 0:
        ramp[:run] *= rise
    if offset + length < whole:
        ramp[length - run :] *= rise.flip(0)
    return ramp


def _placed(options: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    placed = dict(options)
    area = placed.get("area")
    if area is None:
        placed.pop("area", None)
    elif area[0] == "percentage":
        _, rows, columns, y, x = area
        sides = max(1, round(rows * height)), max(1, round(columns * width))
        placed["area"] = (*sides, round(y * height), round(x * width))
    if "mask" in placed:
        mask: Tensor = placed["mask"]
        mask = mask.reshape(-1, *mask.shape[-2:])
        if mask.shape[1:] != (height, width):
            mask = interpolate(mask[:, None].float(), size=(height, width), mode="bilinear")[:, 0]
        placed["mask"] = mask
        if placed.get("set_area_to_bounds", False):
            placed["area"] = _bounds(mask)
    return placed


def _bounds(mask: Tensor) -> Area:
    """Return the smallest area that holds every nonzero cell of (N,h,w)."""
    cells = mask.abs().amax(dim=0).nonzero()
    if not len(cells):
        return (LEAST_BOUNDS, LEAST_BOUNDS, 0, 0)
    (top, left), (bottom, right) = cells.amin(dim=0).tolist(), cells.amax(dim=0).tolist()
    return (max(LEAST_BOUNDS, bottom - top + 1), max(LEAST_BOUNDS, right - left + 1), top, left)


def _counterpart(entry: tuple[Tensor, dict[str, Any]], others: Conditioning) -> tuple[Tensor, dict[str, Any]] | None:
    """Return the other branch's entry for the entry's area; None if that branch has one of exactly this area."""
    _, options = entry
    if "area" not in options:
        return None
    area, found = options["area"], None
    for other in others:
        theirs = other[1].get("area")
        if theirs is None:
            found = found or other
        elif _inside(area, theirs):
            standing = found[1].get("area") if found is not None else None
            if standing is None or standing[0] * standing[1] > theirs[0] * theirs[1]:
                found = other
    if found is None or found[1].get("area") == area:
        return None
    cond, said = found
    region = {name: value for name, value in options.items() if name in REGION}
    return cond, {**{name: value for name, value in said.items() if name not in REGION}, **region}


def _inside(area: Area, whole: Area) -> bool:
    starts = all(a >= w for a, w in zip(area[2:], whole[2:], strict=True))
    return starts and all(area[i] + area[i + 2] <= whole[i] + whole[i + 2] for i in (0, 1))


def _shared(positive: Conditioning, others: Conditioning, name: str, asked: str | None = None) -> Conditioning:
    """Return the other branch with the positive entries' values of a name, assigned entry by entry in turn.

    asked: the option that says whether an entry's value acts on the other branch; None: it always does.
    """
    theirs = [
        options[name]
        for _, options in positive
        if (asked is None or options.get(asked)) and options.get(name) is not None and "area" not in options
    ]
    whole = [i for i, (_, options) in enumerate(others) if "area" not in options]
    if not theirs or not whole or any(others[i][1].get(name) is not None for i in whole):
        return others
    made = list(others)
    for count, value in enumerate(theirs):
        # More values than entries: the last one stays, as in ComfyUI.
        index = whole[count % len(whole)]
        cond, options = others[index]
        made[index] = (cond, {**options, name: value})
    return made
