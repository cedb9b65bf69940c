"""The node by which language models write text: it is known, so that a workflow that never comes to it is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.errors import NodeError
from serve_app.graph.dynamic import DYNAMIC_COMBO

_SAMPLING: Mapping[str, Any] = {
    "required": {
        "temperature": ("FLOAT", {"default": 0.7, "min": 0.01, "max": 2.0, "step": 0.000001}),
        "top_k": ("INT", {"default": 64, "min": 0, "max": 1000}),
        "top_p": ("FLOAT", {"default": 0.95, "min": 0.0, "max": 1.0, "step": 0.01}),
        "min_p": ("FLOAT", {"default": 0.05, "min": 0.0, "max": 1.0, "step": 0.01}),
        "repetition_penalty": ("FLOAT", {"default": 1.05, "min": 0.0, "max": 5.0, "step": 0.01}),
        "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
    },
    "optional": {"presence_penalty": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 5.0, "step": 0.01})},
}


class TextGenerate:
    """Text from a language model, which is not supported. Templates have it behind a switch that is off."""

    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("generated_text",)
    FUNCTION = "generate"
    CATEGORY = "text"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        options = [{"key": "on", "inputs": _SAMPLING}, {"key": "off", "inputs": {"required": {}}}]
        return {
            "required": {
                "clip": ("CLIP",),
                "prompt": ("STRING", {"default": "", "multiline": True, "dynamicPrompts": True}),
                "max_length": ("INT", {"default": 512, "min": 1, "max": 32768}),
                "sampling_mode": (DYNAMIC_COMBO, {"display_name": "Sampling Mode", "options": options}),
            },
            "optional": {
                "image": ("IMAGE",),
                "video": ("IMAGE",),
                "audio": ("AUDIO",),
                "thinking": ("BOOLEAN", {"default": False}),
                "use_default_template": ("BOOLEAN", {"default": True, "advanced": True}),
            },
        }

    def generate(self, **given: Any) -> tuple[str]:
        """Refuse. Errors: NodeError."""
        raise NodeError(
            "language models do not write text here; switch the prompt's enhancement off, or write the text yourself"
        )


NODE_CLASS_MAPPINGS: Mapping[str, type] = {"TextGenerate": TextGenerate}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {"TextGenerate": "Generate Text"}
