"""The nodes that multiply the weights of attention. They extend recipes, not weights, so they cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Float
from serve_app.nodes.sockets import CLIP, MODEL
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Scale

CATEGORY = "experimental/attention_experiments"
Factor: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=10.0, step=0.01, advanced=True)]


def scaled(recipe: Recipe, factors: Mapping[str, float]) -> Recipe:
    """Return a recipe with layers multiplied, by how their names end; with factors of 1 alone it is as it was."""
    changing = tuple((end, factor) for end, factor in factors.items() if factor != 1)
    return recipe.with_patch(Scale(changing)) if changing else recipe


@node("CLIPAttentionMultiply", category=CATEGORY, function="multiply", experimental=True)
def clip_attention_multiply(clip: CLIP, q: Factor, k: Factor, v: Factor, out: Factor) -> CLIP:
    """A text encoder whose queries, keys, values and outputs of attention are multiplied."""
    factors = {"q_proj": q, "k_proj": k, "v_proj": v, "out_proj": out}
    return scaled(clip, {f"self_attn.{layer}": factor for layer, factor in factors.items()})


@node("UNetSelfAttentionMultiply", category=CATEGORY, function="multiply", experimental=True)
def unet_self_attention_multiply(model: MODEL, q: Factor, k: Factor, v: Factor, out: Factor) -> MODEL:
    """A UNet whose queries, keys, values and outputs of attention among cells are multiplied."""
    return scaled(model, {"attn1.to_q": q, "attn1.to_k": k, "attn1.to_v": v, "attn1.to_out.0": out})


@node("UNetCrossAttentionMultiply", category=CATEGORY, function="multiply", experimental=True)
def unet_cross_attention_multiply(model: MODEL, q: Factor, k: Factor, v: Factor, out: Factor) -> MODEL:
    """A UNet whose queries, keys, values and outputs of attention to the text are multiplied."""
    return scaled(model, {"attn2.to_q": q, "attn2.to_k": k, "attn2.to_v": v, "attn2.to_out.0": out})


@node("UNetTemporalAttentionMultiply", category=CATEGORY, function="multiply", experimental=True)
def unet_temporal_attention_multiply(
    model: MODEL, self_structural: Factor, self_temporal: Factor, cross_structural: Factor, cross_temporal: Factor
) -> MODEL:
    """A UNet whose outputs of attention are multiplied, those to the text and those among cells.

    The factors of attention over time are those of UNets of videos, which are not supported: they change nothing.

    Return the backbone's recipe with the factors.
    """
    return scaled(model, {"attn1.to_out.0": self_structural, "attn2.to_out.0": cross_structural})
