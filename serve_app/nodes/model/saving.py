"""The nodes that save models: the weights that recipes stand for, LoRAs and merges in them, as safetensors files.

And LoRAs that are taken out of such weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.execution.runtime import Files, Runtime
from serve_app.nodes.image.images import workflow_text
from serve_app.nodes.model.merging import CATEGORY
from serve_app.recipe import Recipe
from serve_app.values import Extraction

SUFFIX = ".safetensors"
HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "runtime": "RUNTIME", "store": "STORE"}


async def saved(
    runtime: Runtime,
    store: Files,
    filename_prefix: str,
    prompt: Any,
    extra_pnginfo: Any,
    *,
    model: Recipe | None = None,
    clip: Recipe | None = None,
    vae: Recipe | None = None,
) -> dict[str, Any]:
    """Store the files that parts of models make, and show where. Errors: ModelFileError for what is not saved."""
    text = workflow_text([prompt], [extra_pnginfo])
    files = await runtime.model_files(model, clip, vae, text)
    shown = []
    for end, content in files.items():
        shown += await store.save("output", filename_prefix + end, SUFFIX, [content])
    return {"ui": {"models": shown}}


class CheckpointSave:
    """A diffusion model, a text encoder and a VAE to one file."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "vae": ("VAE",),
                "filename_prefix": ("STRING", {"default": "checkpoints/ComfyUI"}),
            },
            "hidden": HIDDEN,
        }

    async def save(
        self,
        model: Recipe,
        clip: Recipe,
        vae: Recipe,
        filename_prefix: str,
        runtime: Runtime,
        store: Files,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        """Store the file and show where."""
        return await saved(runtime, store, filename_prefix, prompt, extra_pnginfo, model=model, clip=clip, vae=vae)


class ModelSave:
    """A diffusion model to a file of its own."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prefix = ("STRING", {"default": "diffusion_models/ComfyUI"})
        return {"required": {"model": ("MODEL",), "filename_prefix": prefix}, "hidden": HIDDEN}

    async def save(
        self,
        model: Recipe,
        filename_prefix: str,
        runtime: Runtime,
        store: Files,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        """Store the file and show where."""
        return await saved(runtime, store, filename_prefix, prompt, extra_pnginfo, model=model)


class CLIPSave:
    """Text encoders to a file each, whose name says which it is."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prefix = ("STRING", {"default": "clip/ComfyUI"})
        return {"required": {"clip": ("CLIP",), "filename_prefix": prefix}, "hidden": HIDDEN}

    async def save(
        self,
        clip: Recipe,
        filename_prefix: str,
        runtime: Runtime,
        store: Files,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        """Store the files and show where."""
        return await saved(runtime, store, filename_prefix, prompt, extra_pnginfo, clip=clip)


class VAESave:
    """A VAE to a file of its own."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prefix = ("STRING", {"default": "vae/ComfyUI_vae"})
        return {"required": {"vae": ("VAE",), "filename_prefix": prefix}, "hidden": HIDDEN}

    async def save(
        self,
        vae: Recipe,
        filename_prefix: str,
        runtime: Runtime,
        store: Files,
        prompt: Any = None,
        extra_pnginfo: Any = None,
    ) -> dict[str, Any]:
        """Store the file and show where."""
        return await saved(runtime, store, filename_prefix, prompt, extra_pnginfo, vae=vae)


class LoraSave:
    """The difference of two models, as subtracting one from the other gives it, to a file as a LoRA."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = "experimental"
    EXPERIMENTAL = True
    SEARCH_ALIASES = ("export lora",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "filename_prefix": ("STRING", {"default": "loras/ComfyUI_extracted_lora", "multiline": False}),
                "rank": ("INT", {"default": 8, "min": 1, "max": 4096, "step": 1, "advanced": True}),
                "lora_type": (["standard", "full_diff"], {"advanced": True}),
                "bias_diff": ("BOOLEAN", {"default": True, "advanced": True}),
            },
            "optional": {
                "model_diff": ("MODEL", {"tooltip": "The ModelSubtract output to be converted to a lora."}),
                "text_encoder_diff": ("CLIP", {"tooltip": "The CLIPSubtract output to be converted to a lora."}),
            },
            "hidden": {"runtime": "RUNTIME", "store": "STORE"},
        }

    async def save(
        self,
        filename_prefix: str,
        rank: int,
        lora_type: str,
        bias_diff: bool,
        runtime: Runtime,
        store: Files,
        model_diff: Recipe | None = None,
        text_encoder_diff: Recipe | None = None,
    ) -> dict[str, Any]:
        """Store the file and show where; nothing without a difference."""
        if model_diff is None and text_encoder_diff is None:
            return {}
        asked = Extraction(rank, lora_type == "full_diff", bias_diff)
        content = await runtime.lora_file(model_diff, text_encoder_diff, asked)
        return {"ui": {"models": await store.save("output", filename_prefix, SUFFIX, [content])}}


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "CheckpointSave": CheckpointSave,
    "ModelSave": ModelSave,
    "CLIPSave": CLIPSave,
    "VAESave": VAESave,
    "LoraSave": LoraSave,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "CheckpointSave": "Save Checkpoint",
    "LoraSave": "Extract and Save Lora",
}
