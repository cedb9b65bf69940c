"""The nodes that name model files. They make recipes, not weights, so they run anywhere and cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.execution.protocol import FolderChoice
from serve_app.recipe import ENCODER_TYPE, ClipSkip, Discrete, EightBit, Recipe, Rounded, encoders, tiny_vae
from serve_app.store.models.catalog import TINY_VAES


class CheckpointLoaderSimple:
    """One file with a backbone, a text encoder and a VAE."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load_checkpoint"
    CATEGORY = "model/loaders"
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


class CheckpointLoader:
    """A checkpoint with one of the configurations published for SD 1 and 2.

    The file is read for what it is; the configuration can change the prediction and the text encoder's layer.
    """

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load_checkpoint"
    CATEGORY = "model/loaders"
    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"config_name": (list(_CONFIGS),), "ckpt_name": (FolderChoice("checkpoints"),)}}

    def load_checkpoint(self, config_name: str, ckpt_name: str) -> tuple[Recipe, Recipe, Recipe]:
        """Return the recipes of the checkpoint's three parts."""
        backbone, clip, vae = CheckpointLoaderSimple().load_checkpoint(ckpt_name)
        match _CONFIGS[config_name]:
            case Discrete() as training:
                backbone = backbone.with_patch(training)
            case ClipSkip() as skip:
                clip = clip.with_patch(skip)
        return backbone, clip, vae


_CONFIGS: Mapping[str, Discrete | ClipSkip | None] = {
    "anything_v3.yaml": ClipSkip(-2),
    "v1-inference.yaml": None,
    "v1-inference_clip_skip_2.yaml": ClipSkip(-2),
    "v1-inference_clip_skip_2_fp16.yaml": ClipSkip(-2),
    "v1-inference_fp16.yaml": None,
    "v1-inpainting-inference.yaml": None,
    "v2-inference-v.yaml": Discrete("v_prediction"),
    "v2-inference-v_fp32.yaml": Discrete("v_prediction"),
    "v2-inference.yaml": None,
    "v2-inference_fp32.yaml": None,
    "v2-inpainting-inference.yaml": None,
}
"""ComfyUI's configurations, and what each of them changes."""


class DiffusersLoader:
    """A folder in the layout of the diffusers library, with a file for each part."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load_checkpoint"
    CATEGORY = "model/loaders"
    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model_path": (FolderChoice("diffusers"),)}}

    def load_checkpoint(self, model_path: str) -> tuple[Recipe, Recipe, Recipe]:
        """Return the recipes of the folder's three parts."""
        return (
            Recipe("backbone", "diffusers", model_path),
            Recipe("clip", "diffusers", model_path),
            Recipe("vae", "diffusers", model_path),
        )


class UNETLoader:
    """A diffusion model in a file of its own."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_unet"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "unet_name": (FolderChoice("diffusion_models"),),
                "weight_dtype": (["default", *EIGHT_BIT],),
            }
        }

    def load_unet(self, unet_name: str, weight_dtype: str) -> tuple[Recipe]:
        """Return the diffusion model's recipe. An eight-bit format rounds its weights."""
        recipe = Recipe("backbone", "diffusion_models", unet_name)
        return (recipe if weight_dtype == "default" else recipe.with_patch(Rounded(EIGHT_BIT[weight_dtype])),)


EIGHT_BIT: Mapping[str, EightBit] = {
    "fp8_e4m3fn": "float8_e4m3fn",
    "fp8_e4m3fn_fast": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}
"""The formats that UNETLoader rounds to. The fast one differs on some GPUs alone, in how it multiplies."""


class CLIPLoader:
    """A text encoder in a file of its own."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"
    CATEGORY = "model/loaders"
    DESCRIPTION = (
        "Names a text encoder: clip-l for SD 1, clip-h for SD 2, clip-g for the SDXL refiner, or that of a family of "
        "transformers: the file says which network it is, the type how texts are read."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"clip_name": (FolderChoice("text_encoders"),), "type": (list(TYPES),)},
            "optional": {"device": _DEVICE},
        }

    def load_clip(self, clip_name: str, type: str = "stable_diffusion", device: str = "default") -> tuple[Recipe]:
        """Return the text encoder's recipe."""
        return (encoders(type, clip_name),)


class DualCLIPLoader:
    """Two text encoders that go together, in files of their own."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"
    CATEGORY = "model/loaders"
    DESCRIPTION = (
        "Names two text encoders, in either order. sdxl: clip-l, clip-g; sd3: any two of clip-l, clip-g, t5; "
        "flux: clip-l, t5."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {**_files(2), "type": (list(DUAL_TYPES),)},
            "optional": {"device": _DEVICE},
        }

    def load_clip(self, clip_name1: str, clip_name2: str, type: str, device: str = "default") -> tuple[Recipe]:
        """Return the two encoders' recipe."""
        return (encoders(type, clip_name1, clip_name2),)


class TripleCLIPLoader:
    """SD 3's three text encoders, in files of their own."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"
    CATEGORY = "model/loaders"
    DESCRIPTION = "Recipes:\nsd3: clip-l, clip-g, t5"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": _files(3)}

    def load_clip(self, clip_name1: str, clip_name2: str, clip_name3: str) -> tuple[Recipe]:
        """Return the three encoders' recipe."""
        return (encoders("sd3", clip_name1, clip_name2, clip_name3),)


class QuadrupleCLIPLoader:
    """HiDream's four text encoders, in files of their own."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load_clip"
    CATEGORY = "model/loaders"
    DESCRIPTION = "Recipes:\nhidream: long clip-l, long clip-g, t5xxl, llama_8b_3.1_instruct"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": _files(4)}

    def load_clip(self, clip_name1: str, clip_name2: str, clip_name3: str, clip_name4: str) -> tuple[Recipe]:
        """Return the four encoders' recipe."""
        return (encoders("hidream", clip_name1, clip_name2, clip_name3, clip_name4),)


def _files(count: int) -> dict[str, Any]:
    return {f"clip_name{i}": (FolderChoice("text_encoders"),) for i in range(1, count + 1)}


TYPES = (
    ENCODER_TYPE,
    "stable_cascade",
    "sd3",
    "stable_audio",
    "mochi",
    "ltxv",
    "pixart",
    "cosmos",
    "lumina2",
    "wan",
    "hidream",
    "chroma",
    "ace",
    "omnigen2",
    "qwen_image",
    "hunyuan_image",
    "flux2",
    "ovis",
    "longcat_image",
    "cogvideox",
    "lens",
    "pixeldit",
    "ideogram4",
    "boogu",
    "krea2",
    "joyimage",
    "mage",
    "minimax",
)
DUAL_TYPES = (
    "sdxl",
    "sd3",
    "flux",
    "hunyuan_video",
    "hidream",
    "hunyuan_image",
    "hunyuan_video_15",
    "kandinsky5",
    "kandinsky5_image",
    "ltxv",
    "newbie",
    "ace",
)
_DEVICE = (["default", "cpu"], {"advanced": True})


class VAELoader:
    """A VAE in a file of its own, or a TAESD in its two files."""

    RETURN_TYPES = ("VAE",)
    FUNCTION = "load_vae"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"vae_name": (FolderChoice("vae"),)}}

    def load_vae(self, vae_name: str) -> tuple[Recipe]:
        """Return the VAE's recipe."""
        if vae_name in TINY_VAES:
            return (tiny_vae(vae_name),)
        return (Recipe("vae", "vae", vae_name),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "CheckpointLoaderSimple": CheckpointLoaderSimple,
    "CheckpointLoader": CheckpointLoader,
    "DiffusersLoader": DiffusersLoader,
    "UNETLoader": UNETLoader,
    "CLIPLoader": CLIPLoader,
    "DualCLIPLoader": DualCLIPLoader,
    "TripleCLIPLoader": TripleCLIPLoader,
    "QuadrupleCLIPLoader": QuadrupleCLIPLoader,
    "VAELoader": VAELoader,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "CheckpointLoaderSimple": "Load Checkpoint",
    "CheckpointLoader": "Load Checkpoint With Config (DEPRECATED)",
    "DiffusersLoader": "Load Diffusers Model (DEPRECATED)",
    "UNETLoader": "Load Diffusion Model",
    "CLIPLoader": "Load CLIP",
    "DualCLIPLoader": "Load CLIP (Dual)",
    "TripleCLIPLoader": "Load CLIP (Triple)",
    "QuadrupleCLIPLoader": "Load CLIP (Quadruple)",
    "VAELoader": "Load VAE",
}
