"""The light values that travel along links: recipes, and the shapes of the values that hold tensors.

A MODEL, CLIP or VAE value is a recipe: a model file plus an ordered tuple of patches, a few hundred bytes.
Only a replica turns it into weights. This module imports no torch, so the control plane can carry recipes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import torch

Part: TypeAlias = Literal["backbone", "clip", "vae"]

Latent: TypeAlias = dict[str, Any]
"""LATENT: {"samples": (B,C,H,W) as the VAE made them, unscaled; optional "batch_index": list[int], "noise_mask"}."""

Conditioning: TypeAlias = "list[tuple[torch.Tensor, dict[str, Any]]]"
"""CONDITIONING: a list of (cond (1,T,D), options); options may hold "pooled_output" (1,D)."""


@dataclass(frozen=True, slots=True)
class ClipSkip:
    """Stop the text encoder at a hidden layer. stop_at: −1 is the last layer, −2 the one before."""

    stop_at: int


Patch: TypeAlias = ClipSkip
"""Every kind of ordered change a recipe can carry."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make one part of a model: which file, which part of it, which changes in which order.

    folder, name: the model file in the catalog, e.g. ("checkpoints", "sd15.safetensors").
    """

    part: Part
    folder: str
    name: str
    patches: tuple[Patch, ...] = ()

    def with_patch(self, patch: Patch) -> Recipe:
        """Return a new recipe with one more change at the end."""
        return replace(self, patches=(*self.patches, patch))
