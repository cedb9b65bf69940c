"""The nodes that name GGUF files, by the names and inputs of city96's ComfyUI-GGUF; they make recipes too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.execution.protocol import FolderChoice
from serve_app.nodes.loaders.models import DUAL_TYPES, TYPES
from serve_app.recipe import Recipe, encoders

CATEGORY = "bootleg"
ENCODERS = "clip_gguf"
_DTYPES = (["default", "target", "float32", "float16", "bfloat16"], {"default": "default"})


class UnetLoaderGGUF:
    """A diffusion model in a GGUF file."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_unet"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"unet_name": (FolderChoice("unet_gguf"),)}}

    def load_unet(self, unet_name: str, **given: Any) -> tuple[Recipe]:
        """Return the diffusion model's recipe."""
        return (Recipe("backbone", "unet_gguf", unet_name),)


class UnetLoaderGGUFAdvanced(UnetLoaderGGUF):
    """A diffusion model in a GGUF file. What else it is given is about memory and rounding, which are as configured."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "unet_name": (FolderChoice("unet_gguf"),),
                "dequant_dtype": _DTYPES,
                "patch_dtype": _DTYPES,
                "patch_on_device": ("BOOLEAN", {"default": False}),
            }
        }


class CLIPLoaderGGUF:
    """A text encoder in a file of its own, GGUF or safetensors."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip_name": (FolderChoice(ENCODERS),), "type": (list(TYPES),)}}

    def load_clip(self, clip_name: str, type: str = TYPES[0]) -> tuple[Recipe]:
        """Return the text encoder's recipe."""
        return (encoders(type, clip_name, folder=ENCODERS),)


class DualCLIPLoaderGGUF:
    """Two text encoders that go together, each in a file of its own, GGUF or safetensors."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {**_files(2), "type": (list(DUAL_TYPES),)}}

    def load_clip(self, clip_name1: str, clip_name2: str, type: str) -> tuple[Recipe]:
        """Return the two encoders' recipe."""
        return (encoders(type, clip_name1, clip_name2, folder=ENCODERS),)


class TripleCLIPLoaderGGUF:
    """SD 3's three text encoders, each in a file of its own, GGUF or safetensors."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": _files(3)}

    def load_clip(self, clip_name1: str, clip_name2: str, clip_name3: str) -> tuple[Recipe]:
        """Return the three encoders' recipe."""
        return (encoders("sd3", clip_name1, clip_name2, clip_name3, folder=ENCODERS),)


class QuadrupleCLIPLoaderGGUF:
    """HiDream's four text encoders, each in a file of its own, GGUF or safetensors."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": _files(4)}

    def load_clip(self, clip_name1: str, clip_name2: str, clip_name3: str, clip_name4: str) -> tuple[Recipe]:
        """Return the four encoders' recipe."""
        return (encoders("hidream", clip_name1, clip_name2, clip_name3, clip_name4, folder=ENCODERS),)


def _files(count: int) -> dict[str, Any]:
    return {f"clip_name{i}": (FolderChoice(ENCODERS),) for i in range(1, count + 1)}


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "UnetLoaderGGUF": UnetLoaderGGUF,
    "UnetLoaderGGUFAdvanced": UnetLoaderGGUFAdvanced,
    "CLIPLoaderGGUF": CLIPLoaderGGUF,
    "DualCLIPLoaderGGUF": DualCLIPLoaderGGUF,
    "TripleCLIPLoaderGGUF": TripleCLIPLoaderGGUF,
    "QuadrupleCLIPLoaderGGUF": QuadrupleCLIPLoaderGGUF,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "UnetLoaderGGUF": "Unet Loader (GGUF)",
    "UnetLoaderGGUFAdvanced": "Unet Loader (GGUF/Advanced)",
    "CLIPLoaderGGUF": "CLIPLoader (GGUF)",
    "DualCLIPLoaderGGUF": "DualCLIPLoader (GGUF)",
    "TripleCLIPLoaderGGUF": "TripleCLIPLoader (GGUF)",
    "QuadrupleCLIPLoaderGGUF": "QuadrupleCLIPLoader (GGUF)",
}
