"""Positions of reference images' tokens relative to the image's, by the methods that ComfyUI names.

Source: Black Forest Labs 2025, FLUX.1 Kontext, arXiv:2506.15742, section 3; Wu et al. 2025 (UNO), arXiv:2504.02160.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.models.families.shared.dit import PATCH, grid, positions
from serve_app.models.forward import Inputs
from serve_app.sampling.forward import to_batch
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.transfer import to_device

METHODS = ("offset", "index", "uxo")
"""Positions of references: offset in one further plane; a plane each; along the diagonal, in the image's plane."""

INDEX_TIMESTEP_ZERO = "index_timestep_zero"
"""As "index", and references have the timestep of no noise."""


def check_method(method: str, title: str, methods: Sequence[str] = METHODS) -> str:
    """Return the method. Errors: NodeError for one that the family named `title` does not know."""
    if method not in methods:
        raise NodeError(f"{title} does not place reference latents by '{method}'; allowed are {', '.join(methods)}")
    return method


def scaled_references(
    options: Mapping[str, Any], latent_format: LatentFormat, rows: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Return a conditioning's reference latents scaled for a backbone, each (rows,C,…) float32.

    Errors: NodeError for latents of another format.
    """
    references: Sequence[Tensor] = options.get("reference_latents") or ()
    for reference in references:
        latent_format.check(reference.shape)
    return tuple(
        to_batch(latent_format.to_model(to_device(reference, device).float()), rows) for reference in references
    )


class Reference(NamedTuple):
    """Name of a call's input: one of the reference latents of its rows, (R,C,…)."""

    number: int


def references_together(inputs: Sequence[Any], dtype: torch.dtype) -> dict[Any, Tensor]:
    """Return the reference latents of rows by Reference. inputs: of all rows, with as many `references` each."""
    by_number = zip(*(i.references for i in inputs), strict=True)
    return {Reference(number): torch.cat(own).to(dtype) for number, own in enumerate(by_number)}


def references_of(given: Inputs) -> list[Tensor]:
    """Return the reference latents of a call's inputs, in order."""
    return [tensor for name, tensor in given.items() if isinstance(name, Reference)]


def reference_positions(
    size: tuple[int, int], references: Sequence[Tensor], method: str, *, apart: float = 1.0, patch: int = PATCH
) -> list[Tensor]:
    """Return the positions (n_i,3) of each reference's tokens.

    size: of the image, references: (B,C,h,w), both in latent cells. apart: between the planes of "index".
    """
    placed: list[Tensor] = []
    rows, columns = grid(*size, patch)
    high = wide = 0
    for number, reference in enumerate(references, 1):
        height, width = reference.shape[-2:]
        plane, y, x = 1.0, 0, 0
        if method in ("index", INDEX_TIMESTEP_ZERO):
            plane = apart * number
        elif method == "uxo":
            plane, y, x = 0.0, rows * patch + high, columns * patch + wide
            high, wide = high + height, wide + width
        else:
            if height + high > width + wide:
                x = wide
            else:
                y = high
            high, wide = max(high, height + y), max(wide, width + x)
        placed.append(positions((height, width), plane, *grid(y, x, patch), patch=patch))
    return placed
