"""The nodes that put a MODEL under networks of the folder "model_patches": they make values; a sampler acts on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.recipe import ModelControl, Recipe
from serve_app.values import ClipVisionOutput

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "model_patches"

STRENGTH = ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01})


class ModelPatchLoader:
    """A network that adds to what a diffusion model makes of images, in a file of its own."""

    RETURN_TYPES = ("MODEL_PATCH",)
    FUNCTION = "load_model_patch"
    CATEGORY = "model/loaders"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": (FolderChoice(FOLDER),)}}

    def load_model_patch(self, name: str) -> tuple[Recipe]:
        """Return the model patch's recipe."""
        return (Recipe("model_patch", FOLDER, name),)


class QwenImageDiffsynthControlnet:
    """Let a model follow an image by a model patch of Qwen-Image or Z-Image."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "diffsynth_controlnet"
    CATEGORY = "model/patch/qwen"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "model_patch": ("MODEL_PATCH",),
                "vae": ("VAE",),
                "image": ("IMAGE",),
                "strength": STRENGTH,
            },
            "optional": {"mask": ("MASK",)},
        }

    def diffsynth_controlnet(
        self,
        model: Recipe,
        model_patch: Recipe,
        vae: Recipe,
        image: Tensor | None = None,
        strength: float = 1.0,
        inpaint_image: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Recipe]:
        """Return the model under one more control; the same model at strength 0. mask: 1 where to paint anew."""
        if strength == 0:
            return (model,)
        seen, painted = (None if pixels is None else pixels[..., :3] for pixels in (image, inpaint_image))
        return (model.with_patch(ModelControl(model_patch, vae, strength, seen, painted, mask)),)


class ZImageFunControlnet(QwenImageDiffsynthControlnet):
    """As QwenImageDiffsynthControlnet, with an image to paint into, for model patches of Z-Image that read one."""

    CATEGORY = "model/patch/z-image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "model_patch": ("MODEL_PATCH",),
                "vae": ("VAE",),
                "strength": STRENGTH,
            },
            "optional": {"image": ("IMAGE",), "inpaint_image": ("IMAGE",), "mask": ("MASK",)},
        }


class USOStyleReference:
    """Let a Flux.1 draw in the style that is seen in images, by a model patch of USO."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply_patch"
    CATEGORY = "model/patch/flux"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "model_patch": ("MODEL_PATCH",),
                "clip_vision_output": ("CLIP_VISION_OUTPUT",),
            }
        }

    def apply_patch(self, model: Recipe, model_patch: Recipe, clip_vision_output: ClipVisionOutput) -> tuple[Recipe]:
        """Return the model under one more style. Errors: NodeError for what another encoder than SigLIP sees."""
        if clip_vision_output.style_hidden_states is None:
            raise NodeError("style is read from what SigLIP sees; load an image encoder of that kind, such as sigclip")
        seen = (*clip_vision_output.style_hidden_states.unbind(1), clip_vision_output.penultimate_hidden_states)
        return (model.with_patch(ModelControl(model_patch, None, 1.0, seen=seen)),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "ModelPatchLoader": ModelPatchLoader,
    "QwenImageDiffsynthControlnet": QwenImageDiffsynthControlnet,
    "ZImageFunControlnet": ZImageFunControlnet,
    "USOStyleReference": USOStyleReference,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "ModelPatchLoader": "Load Model Patch",
    "QwenImageDiffsynthControlnet": "Apply Qwen Image DiffSynth ControlNet",
    "ZImageFunControlnet": "Apply Z-Image Fun ControlNet",
    "USOStyleReference": "Apply USO Style Reference",
}
