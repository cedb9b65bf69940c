"""The nodes that move latents about: turn, mirror, crop, cut, trim and join. A noise mask does not move along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from serve_app.nodes.image.match_size import fit_batch
from serve_app.nodes.latent.latents import MAX_RESOLUTION
from serve_app.values import Latent

DIMS = {"x": -1, "y": -2, "t": -3}
"""Which dimension a direction is; t is the frame of a video's latents, and the channel of an image's."""


class LatentRotate:
    """Latents turned clockwise by a multiple of 90 degrees."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "rotate"
    CATEGORY = "model/latent/transform"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT",),
                "rotation": (["none", "90 degrees", "180 degrees", "270 degrees"],),
            }
        }

    def rotate(self, samples: Latent, rotation: str) -> tuple[Latent]:
        """Return the latents turned; at 90 and 270 degrees their sides are exchanged."""
        turns = 0 if rotation == "none" else int(rotation.split()[0]) // 90
        return ({**samples, "samples": torch.rot90(samples["samples"], turns, dims=(3, 2))},)


class LatentFlip:
    """Latents mirrored."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "flip"
    CATEGORY = "model/latent/transform"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT",),
                "flip_method": (["x-axis: vertically", "y-axis: horizontally"],),
            }
        }

    def flip(self, samples: Latent, flip_method: str) -> tuple[Latent]:
        """Return the latents upside down, or left for right."""
        return ({**samples, "samples": samples["samples"].flip(2 if flip_method.startswith("x") else 3)},)


class LatentCrop:
    """A rectangle of the latents, given in pixels."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "crop"
    CATEGORY = "model/latent/transform"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 64, "max": MAX_RESOLUTION, "step": 8}
        start = {"default": 0, "min": 0, "max": MAX_RESOLUTION, "step": 8}
        return {
            "required": {
                "samples": ("LATENT",),
                "width": ("INT", side),
                "height": ("INT", side),
                "x": ("INT", start),
                "y": ("INT", start),
            }
        }

    def crop(self, samples: Latent, width: int, height: int, x: int, y: int) -> tuple[Latent]:
        """Return what lies in the rectangle, moved so that at least 64 pixels of each side do."""
        latents: torch.Tensor = samples["samples"]
        # Latents under 64 pixels give a negative start, which counts from the end as any slice does, in ComfyUI too.
        left, top = min(x // 8, latents.shape[3] - 8), min(y // 8, latents.shape[2] - 8)
        cropped = latents[:, :, top : top + height // 8, left : left + width // 8].clone()
        return ({**samples, "samples": cropped},)


class LatentConcat:
    """Two latents side by side."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "op"
    CATEGORY = "model/latent/advanced"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples1": ("LATENT",),
                "samples2": ("LATENT",),
                "dim": (["x", "-x", "y", "-y", "t", "-t"],),
            }
        }

    def op(self, samples1: Latent, samples2: Latent, dim: str) -> tuple[Latent]:
        """Return the second after the first along dim, or before it with a minus. The first says how many there are."""
        pair = [samples1["samples"], fit_batch(samples2["samples"], samples1["samples"].shape[0])]
        if dim.startswith("-"):
            pair.reverse()
        return ({**samples1, "samples": torch.cat(pair, dim=DIMS[dim[-1]])},)


class LatentCut:
    """A stretch of the latents along one dimension."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "op"
    CATEGORY = "model/latent/advanced"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT",),
                "dim": (["x", "y", "t"],),
                "index": ("INT", {"default": 0, "min": -MAX_RESOLUTION, "max": MAX_RESOLUTION, "step": 1}),
                "amount": ("INT", {"default": 1, "min": 1, "max": MAX_RESOLUTION, "step": 1}),
            }
        }

    def op(self, samples: Latent, dim: str, index: int, amount: int) -> tuple[Latent]:
        """Return amount columns from index on, or as many as there are; a negative index counts from the end."""
        latents: torch.Tensor = samples["samples"]
        size = latents.shape[DIMS[dim]]
        start = min(index, size - 1) if index >= 0 else max(size + index, 0)
        return ({**samples, "samples": latents.narrow(DIMS[dim], start, min(amount, size - start)).clone()},)


class TrimVideoLatent:
    """A video's latents without the first in time."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "trim"
    CATEGORY = "model/latent"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        amount = ("INT", {"default": 0, "min": 0, "max": 99999})
        return {"required": {"samples": ("LATENT",), "trim_amount": amount}}

    def trim(self, samples: Latent, trim_amount: int) -> tuple[Latent]:
        """Return the latents from cell trim_amount in time on."""
        return ({**samples, "samples": samples["samples"][:, :, trim_amount:].clone()},)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "LatentRotate": LatentRotate,
    "LatentFlip": LatentFlip,
    "LatentCrop": LatentCrop,
    "LatentConcat": LatentConcat,
    "LatentCut": LatentCut,
    "TrimVideoLatent": TrimVideoLatent,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "LatentRotate": "Rotate Latent",
    "LatentFlip": "Flip Latent",
    "LatentCrop": "Crop Latent",
    "TrimVideoLatent": "Trim Video Latent",
}
