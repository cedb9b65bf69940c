"""The nodes that tell FLUX, and models like it, more than a text: how strongly to follow it, and images to go by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.recipe import Recipe, ReferenceMethod
from serve_app.sampling.guidance.conditioning import with_more, with_options
from serve_app.values import Conditioning, Latent

METHODS = ["offset", "index", "uxo/uno", "index_timestep_zero"]


class FluxGuidance:
    """How strongly a network that was distilled with guidance follows the text."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "append"
    CATEGORY = "model/conditioning/flux"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        guidance = ("FLOAT", {"default": 3.5, "min": 0.0, "max": 100.0, "step": 0.1})
        return {"required": {"conditioning": ("CONDITIONING",), "guidance": guidance}}

    def append(self, conditioning: Conditioning, guidance: float) -> tuple[Conditioning]:
        """Return the conditioning with the guidance set."""
        return (with_options(conditioning, guidance=guidance),)


class FluxDisableGuidance:
    """Tell the network of no guidance at all."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "append"
    CATEGORY = "model/conditioning/flux"
    DESCRIPTION = "Leaves out what FLUX, and models like it, are told of guidance."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def append(self, conditioning: Conditioning) -> tuple[Conditioning]:
        """Return the conditioning with a guidance of None."""
        return (with_options(conditioning, guidance=None),)


class FluxKontextMultiReferenceLatentMethod:
    """Where a model that goes by images takes them to be."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "append"
    CATEGORY = "model/conditioning/flux"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        method = ("COMBO", {"options": METHODS, "advanced": True})
        return {"required": {"conditioning": ("CONDITIONING",), "reference_latents_method": method}}

    def append(self, conditioning: Conditioning, reference_latents_method: str) -> tuple[Conditioning]:
        """Return the conditioning with the method set; a network that does not know it refuses it."""
        method, _, _ = reference_latents_method.partition("/")
        return (with_options(conditioning, reference_latents_method=method),)


class ReferenceLatent:
    """One more image to go by, as latents."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "append"
    CATEGORY = "model/conditioning"
    DESCRIPTION = "Gives a model that edits images one more latent to go by; several of these give several."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",)}, "optional": {"latent": ("LATENT",)}}

    def append(self, conditioning: Conditioning, latent: Latent | None = None) -> tuple[Conditioning]:
        """Return the conditioning with the latent after those it has; without one, as it is."""
        if latent is None:
            return (conditioning,)
        return (with_more(conditioning, reference_latents=latent["samples"]),)


class FluxKVCache:
    """References told apart by planes and known to be without noise, as models are trained on that keep them.

    ComfyUI keeps the references' keys and values of the first step for the others; here each step makes its own.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "experimental"
    EXPERIMENTAL = True
    DESCRIPTION = "Places reference images as models of FLUX's family with a cache of keys and values want them."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model: Recipe) -> tuple[Recipe]:
        """Return the model's recipe with the method, which holds where a conditioning names none."""
        return (model.with_patch(ReferenceMethod("index_timestep_zero")),)


_NODES = (FluxGuidance, FluxDisableGuidance, FluxKontextMultiReferenceLatentMethod, ReferenceLatent, FluxKVCache)

NODE_CLASS_MAPPINGS: Mapping[str, type] = {node.__name__: node for node in _NODES}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "FluxKVCache": "Flux KV Cache",
    "FluxKontextMultiReferenceLatentMethod": "Edit Model Reference Method",
    "ReferenceLatent": "Set Reference Latent",
}
