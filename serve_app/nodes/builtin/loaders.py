"""The nodes that name model files. They make recipes, not weights, so they run anywhere and cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.nodes.protocol import FolderChoice
from serve_app.values import Recipe


class CheckpointLoaderSimple:
    """One file with a backbone, a text encoder and a VAE."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load_checkpoint"
    CATEGORY = "loaders"
    DESCRIPTION = "Names a checkpoint: the diffusion model, text encoder and VAE in one file."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"ckpt_name": (FolderChoice("checkpoints"),)}}

    def load_checkpoint(self, ckpt_name: str) -> tuple[Recipe, Recipe, Recipe]:
        """Return the recipes of the checkpoint's three parts."""
        return (
            Recipe("backbone", "checkpoints", ckpt_name),
            Recipe("clip", "checkpoints", ckpt_name),
            Recipe("vae", "checkpoints", ckpt_name),
        )


class VAELoader:
    """A VAE in a file of its own."""

    RETURN_TYPES = ("VAE",)
    FUNCTION = "load_vae"
    CATEGORY = "loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"vae_name": (FolderChoice("vae"),)}}

    def load_vae(self, vae_name: str) -> tuple[Recipe]:
        """Return the VAE's recipe."""
        return (Recipe("vae", "vae", vae_name),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "CheckpointLoaderSimple": CheckpointLoaderSimple,
    "VAELoader": VAELoader,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "CheckpointLoaderSimple": "Load Checkpoint",
    "VAELoader": "Load VAE",
}
