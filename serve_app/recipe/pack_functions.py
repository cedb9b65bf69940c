"""Functions of node packs, as a change of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class PackFunctions:
    """Functions of a node pack around and within a backbone; valid in one process, equal only to themselves.

    before, instead, after: change guidance, called from `sampling/guidance/guidance_patches.py`. both: the negative is
    evaluated at scale 1 too. mask: (mask (B,1,h,w), sigma, the run's sigmas, the model's levels) to the mask of that
    level. network: called in a family's forward for the recipe's rows, by ComfyUI's names. options: transformer options
    as packs see them.
    """

    before: tuple[Callable[[Any], Any], ...] = ()
    instead: Callable[[Any], Any] | None = None
    after: tuple[Callable[[Any, Any], Any], ...] = ()
    both: bool = False
    mask: Callable[[Any, float, Any, Any], Any] | None = None
    network: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
