"""The nodes of GLIGEN: texts that are to be seen in boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.execution.runtime import Runtime
from serve_app.nodes.latent.latents import MAX_RESOLUTION
from serve_app.recipe import Grounding, Recipe
from serve_app.values import Conditioning

CELL = 8
"""Pixels along a side of a latent cell."""


class GLIGENLoader:
    """A GLIGEN model."""

    RETURN_TYPES = ("GLIGEN",)
    FUNCTION = "load_gligen"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"gligen_name": (FolderChoice("gligen"),)}}

    def load_gligen(self, gligen_name: str) -> tuple[Recipe]:
        """Return the model's recipe."""
        return (Recipe("model_patch", "gligen", gligen_name),)


class GLIGENTextBoxApply:
    """A text in a box of the picture, beside those that a conditioning has."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "append"
    CATEGORY = "model/conditioning/gligen"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 64, "min": 8, "max": MAX_RESOLUTION, "step": 8}
        corner = {"default": 0, "min": 0, "max": MAX_RESOLUTION, "step": 8}
        return {
            "required": {
                "conditioning_to": ("CONDITIONING",),
                "clip": ("CLIP",),
                "gligen_textbox_model": ("GLIGEN",),
                "text": ("STRING", {"multiline": True, "dynamicPrompts": True}),
                "width": ("INT", side),
                "height": ("INT", side),
                "x": ("INT", corner),
                "y": ("INT", corner),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def append(
        self,
        conditioning_to: Conditioning,
        clip: Recipe,
        gligen_textbox_model: Recipe,
        text: str,
        width: int,
        height: int,
        x: int,
        y: int,
        runtime: Runtime,
    ) -> tuple[Conditioning]:
        """Return every entry with one more box, in pixels; all boxes of an entry are told by this model.

        Errors: NodeError for a text encoder that does not make one vector of a text.
        """
        pooled = (await runtime.encode_text(clip, text))[0][1].get("pooled_output")
        if pooled is None:
            raise NodeError("the text encoder makes no one vector of a text, which GLIGEN reads; CLIP's do")
        box = (pooled, (height // CELL, width // CELL, y // CELL, x // CELL))
        made: Conditioning = []
        for cond, options in conditioning_to:
            before = options.get("gligen")
            boxes = (*(() if before is None else before.boxes), box)
            made.append((cond, {**options, "gligen": Grounding(gligen_textbox_model, boxes)}))
        return (made,)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {"GLIGENLoader": GLIGENLoader, "GLIGENTextBoxApply": GLIGENTextBoxApply}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "GLIGENLoader": "Load GLIGEN Model",
    "GLIGENTextBoxApply": "Apply GLIGEN Text Box",
}
