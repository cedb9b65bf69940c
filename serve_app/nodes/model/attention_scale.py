"""The nodes that multiply the weights of attention. They extend recipes, not weights, so they cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from serve_app.recipe import Recipe, Scale

CATEGORY = "experimental/attention_experiments"
FACTOR = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01, "advanced": True})


def scaled(recipe: Recipe, factors: Mapping[str, float]) -> tuple[Recipe]:
    """Return a recipe with layers multiplied, by how their names end; with factors of 1 alone it is as it was."""
    changing = tuple((end, factor) for end, factor in factors.items() if factor != 1)
    return (recipe.with_patch(Scale(changing)) if changing else recipe,)


class CLIPAttentionMultiply:
    """A text encoder whose queries, keys, values and outputs of attention are multiplied."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "multiply"
    CATEGORY = CATEGORY
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip": ("CLIP", {}), "q": FACTOR, "k": FACTOR, "v": FACTOR, "out": FACTOR}}

    def multiply(self, clip: Recipe, q: float, k: float, v: float, out: float) -> tuple[Recipe]:
        """Return the text encoder's recipe with the factors."""
        factors = {"q_proj": q, "k_proj": k, "v_proj": v, "out_proj": out}
        return scaled(clip, {f"self_attn.{layer}": factor for layer, factor in factors.items()})


class UNetSelfAttentionMultiply:
    """A UNet whose queries, keys, values and outputs of attention among cells are multiplied."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "multiply"
    CATEGORY = CATEGORY
    EXPERIMENTAL = True

    layer: ClassVar[str] = "attn1"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL", {}), "q": FACTOR, "k": FACTOR, "v": FACTOR, "out": FACTOR}}

    def multiply(self, model: Recipe, q: float, k: float, v: float, out: float) -> tuple[Recipe]:
        """Return the backbone's recipe with the factors."""
        factors = {"to_q": q, "to_k": k, "to_v": v, "to_out.0": out}
        return scaled(model, {f"{self.layer}.{name}": factor for name, factor in factors.items()})


class UNetCrossAttentionMultiply(UNetSelfAttentionMultiply):
    """A UNet whose queries, keys, values and outputs of attention to the text are multiplied."""

    layer = "attn2"


class UNetTemporalAttentionMultiply:
    """A UNet whose outputs of attention are multiplied, those to the text and those among cells.

    The factors of attention over time are those of UNets of videos, which are not supported: they change nothing.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "multiply"
    CATEGORY = CATEGORY
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = ("self_structural", "self_temporal", "cross_structural", "cross_temporal")
        return {"required": {"model": ("MODEL", {}), **dict.fromkeys(names, FACTOR)}}

    def multiply(
        self,
        model: Recipe,
        self_structural: float,
        self_temporal: float,
        cross_structural: float,
        cross_temporal: float,
    ) -> tuple[Recipe]:
        """Return the backbone's recipe with the factors."""
        return scaled(model, {"attn1.to_out.0": self_structural, "attn2.to_out.0": cross_structural})


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "CLIPAttentionMultiply": CLIPAttentionMultiply,
    "UNetSelfAttentionMultiply": UNetSelfAttentionMultiply,
    "UNetCrossAttentionMultiply": UNetCrossAttentionMultiply,
    "UNetTemporalAttentionMultiply": UNetTemporalAttentionMultiply,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {}
