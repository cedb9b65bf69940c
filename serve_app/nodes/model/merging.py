"""The nodes that mix the weights of two models. They extend recipes, not weights, so they cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Float
from serve_app.nodes.sockets import CLIP, MODEL
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Merge, Share

CATEGORY = "model/merging"
SPECIFIC = f"{CATEGORY}/model specific"
Ratio: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)]
Multiplier: TypeAlias = Annotated[float, Float(1.0, min=-10.0, max=10.0, step=0.01)]

MODELS = 32
"""How many models may be merged into one: a graph that merges a model with itself again and again doubles them."""


def merged(recipe: Recipe, other: Recipe, *shares: Share) -> Recipe:
    """Return a recipe with another's weights added; if nothing is to change, as it is. Errors: NodeError for too many.

    shares: as `Merge` has them.
    """
    if all(share.own == 1 and share.other == 0 for share in shares):
        return recipe
    made = recipe.with_patch(Merge(other, shares))
    if (count := _models(made)) > MODELS:
        raise NodeError(f"{count} models are merged into one; allowed are {MODELS}")
    return made


def _models(recipe: Recipe) -> int:
    return 1 + sum(_models(merge.other) for merge in recipe.all(Merge))


def _merged_parts(model1: Recipe, model2: Recipe, first: float, ratios: Mapping[str, float]) -> Recipe:
    """Return a recipe with another's parts mixed in.

    ratios: by how the names of a part's tensors begin. first: the ratio of what has none of its own.
    """
    shares = {"": first, **ratios}
    return merged(model1, model2, *(Share(prefix, ratio, 1.0 - ratio) for prefix, ratio in shares.items()))


@node("ModelMergeSimple", category=CATEGORY, function="merge")
def model_merge_simple(model1: MODEL, model2: MODEL, ratio: Ratio) -> MODEL:
    """Two diffusion models, one at a ratio and the other at the rest.

    Return the first model's recipe with the second's weights mixed in.
    """
    return merged(model1, model2, Share("", ratio, 1.0 - ratio))


@node("ModelMergeBlocks", category=CATEGORY, function="merge")
def model_merge_blocks(model1: MODEL, model2: MODEL, input: Ratio, middle: Ratio, out: Ratio) -> MODEL:
    """Two diffusion models, with a ratio for each of their parts."""
    return _merged_parts(model1, model2, input, {"input": input, "middle": middle, "out": out})


@node("ModelMergeSubtract", category=CATEGORY, function="merge")
def model_subtract(model1: MODEL, model2: MODEL, multiplier: Multiplier) -> MODEL:
    """The difference of two diffusion models, times a multiplier.

    Return the first model's recipe without the second's weights.
    """
    return merged(model1, model2, Share("", multiplier, -multiplier))


@node("ModelMergeAdd", category=CATEGORY, function="merge")
def model_add(model1: MODEL, model2: MODEL) -> MODEL:
    """The sum of two diffusion models, one of which is usually a difference.

    Return the first model's recipe with the second's weights added.
    """
    return merged(model1, model2, Share("", 1.0, 1.0))


@node("CLIPMergeSimple", category=CATEGORY, function="merge")
def clip_merge_simple(clip1: CLIP, clip2: CLIP, ratio: Ratio) -> CLIP:
    """Two text encoders, one at a ratio and the other at the rest.

    Return the first encoder's recipe with the second's weights mixed in.
    """
    return merged(clip1, clip2, Share("", ratio, 1.0 - ratio))


@node("CLIPMergeSubtract", category=CATEGORY, function="merge")
def clip_subtract(clip1: CLIP, clip2: CLIP, multiplier: Multiplier) -> CLIP:
    """The difference of two text encoders, times a multiplier.

    Return the first encoder's recipe without the second's weights.
    """
    return merged(clip1, clip2, Share("", multiplier, -multiplier))


@node("CLIPMergeAdd", category=CATEGORY, function="merge")
def clip_add(clip1: CLIP, clip2: CLIP) -> CLIP:
    """The sum of two text encoders, one of which is usually a difference.

    Return the first encoder's recipe with the second's weights added.
    """
    return merged(clip1, clip2, Share("", 1.0, 1.0))


def _blocks(stem: str, count: int, end: str = ".") -> tuple[str, ...]:
    return tuple(f"{stem}.{number}{end}" for number in range(count))


def _unet(blocks: int, end: str) -> tuple[str, ...]:
    inside = (*_blocks("input_blocks", blocks, end), *_blocks("middle_block", 3, end))
    return ("time_embed.", "label_emb.", *inside, *_blocks("output_blocks", blocks, end), "out.")


def _sd3(layers: int) -> tuple[str, ...]:
    embedders = ("pos_embed.", "x_embedder.", "context_embedder.", "y_embedder.", "t_embedder.")
    return (*embedders, *_blocks("joint_blocks", layers), "final_layer.")


_FLUX1 = (
    *("img_in.", "time_in.", "guidance_in", "vector_in.", "txt_in."),
    *_blocks("double_blocks", 19),
    *_blocks("single_blocks", 38),
    "final_layer.",
)
_AURAFLOW = (
    *("init_x_linear.", "positional_encoding", "cond_seq_linear.", "register_tokens", "t_embedder."),
    *_blocks("double_layers", 4),
    *_blocks("single_layers", 32),
    *("modF.", "final_linear."),
)
_QWEN_IMAGE = (
    *("pos_embeds.", "img_in.", "txt_norm.", "txt_in.", "time_text_embed."),
    *_blocks("transformer_blocks", 60),
    "proj_out.",
)
_KREA2 = (
    *("first.", "tmlp.", "txtmlp.", "tproj."),
    *_blocks("txtfusion.layerwise_blocks", 2),
    "txtfusion.projector.",
    *_blocks("txtfusion.refiner_blocks", 2),
    *_blocks("blocks", 28),
    "last.",
)
_WAN = (
    *("patch_embedding.", "time_embedding.", "time_projection.", "text_embedding.", "img_emb."),
    *_blocks("blocks", 40),
    "head.",
)

PARTS: Mapping[str, tuple[str, ...]] = {
    "ModelMergeSD1": _unet(12, "."),
    "ModelMergeSD2": _unet(12, "."),
    "ModelMergeSDXL": _unet(9, ""),
    "ModelMergeSD3_2B": _sd3(24),
    "ModelMergeSD35_Large": _sd3(38),
    "ModelMergeFlux1": _FLUX1,
    "ModelMergeAuraflow": _AURAFLOW,
    "ModelMergeQwenImage": _QWEN_IMAGE,
    "ModelMergeKrea2": _KREA2,
    "ModelMergeWAN2_1": _WAN,
}
"""Of each class that merges models of one family, the parts that it has a ratio for."""


def _declare_specific(name: str, prefixes: tuple[str, ...]) -> None:
    ratio = Float(1.0, min=0.0, max=1.0, step=0.01)

    @node(name, category=SPECIFIC, function="merge", inputs=dict.fromkeys(prefixes, ratio))
    def merge(model1: MODEL, model2: MODEL, **ratios: float) -> MODEL:
        """Two diffusion models of a family, with a ratio for each of their parts."""
        return _merged_parts(model1, model2, ratios[prefixes[0]], ratios)


for _name, _prefixes in PARTS.items():
    _declare_specific(_name, _prefixes)
