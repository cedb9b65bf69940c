"""Networks that act on a backbone's features: ControlNets' options, model patches, boxes of texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from serve_app.recipe.recipe import Recipe


@dataclass(frozen=True, slots=True)
class HintKind:
    """The kind of hint given to a union ControlNet, by number; None: unspecified."""

    kind: int | None


@dataclass(frozen=True, slots=True)
class DiffControlNetBase:
    """The backbone to whose weights a diff ControlNet's file is added."""

    backbone: Recipe


@dataclass(frozen=True, slots=True, eq=False)
class ModelControl:
    """A model patch (folder "model_patches") that reads images and changes the backbone's features on all rows.

    start_percent, end_percent: the part of the sampling in which it acts, in shares of 1. vae: encodes the images.
    image, inpaint_image: IMAGE (N,H,W,3) in 0…1, to follow and to paint into. mask: (N,H,W), 1 where to repaint. Each
    may be None. seen: image features, (N,P,D) each, from the first layers to the last.
    """

    recipe: Recipe
    vae: Recipe | None
    strength: float
    image: torch.Tensor | None = None
    inpaint_image: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    seen: tuple[torch.Tensor, ...] = ()
    start_percent: float = 0.0
    end_percent: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Grounding:
    """Texts with the boxes where they should appear, for a network of the folder "gligen".

    boxes: each a text's pooled output (1,D), and (height, width, y, x) in latent cells.
    """

    recipe: Recipe
    boxes: tuple[tuple[torch.Tensor, tuple[int, int, int, int]], ...]
