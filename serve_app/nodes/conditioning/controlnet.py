"""The nodes that apply ControlNets and T2I-Adapters to conditionings. They make values; samplers run the networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, TypeAlias

from torch import Tensor

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Choice, File, Float
from serve_app.nodes.sockets import CONDITIONING, CONTROL_NET, IMAGE, MASK, MODEL, VAE
from serve_app.recipe.controls import DiffControlNetBase, HintKind
from serve_app.recipe.recipe import Recipe
from serve_app.values import Conditioning, Control

FOLDER = "controlnet"

HINT_KINDS: Mapping[str, int] = {
    "openpose": 0,
    "depth": 1,
    "hed/pidi/scribble/ted": 2,
    "canny/lineart/anime_lineart/mlsd": 3,
    "normal": 4,
    "segment": 5,
    "tile": 6,
    "repaint": 7,
}
"""The kinds of hint that ControlNet Union has a mode for."""

Strength: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=10.0, step=0.01)]
Start: TypeAlias = Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.001)]
End: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.001)]


@node(
    "ControlNetApply",
    "Apply ControlNet (DEPRECATED)",
    category="model/conditioning/controlnet",
    function="apply_controlnet",
    deprecated=True,
)
def control_net_apply(
    conditioning: CONDITIONING, control_net: CONTROL_NET, image: IMAGE, strength: Strength
) -> CONDITIONING:
    """Put a conditioning under a ControlNet, and with it what the sampler is given as negative.

    Return the conditioning under one more control; the same conditioning at strength 0.
    """
    if strength == 0:
        return conditioning
    (applied,) = under(Control(control_net, image, strength), conditioning, to_uncond=True)
    return applied


@node(
    "ControlNetApplyAdvanced",
    "Apply ControlNet",
    category="model/conditioning/controlnet",
    function="apply_controlnet",
    return_names=("positive", "negative"),
)
def control_net_apply_advanced(
    positive: CONDITIONING,
    negative: CONDITIONING,
    control_net: CONTROL_NET,
    image: IMAGE,
    strength: Strength,
    start_percent: Start,
    end_percent: End,
    vae: VAE | None = None,
    mask: Tensor | None = None,
) -> tuple[CONDITIONING, CONDITIONING]:
    """Put both conditionings under a ControlNet for a share of the noise levels.

    Return the conditionings under one more control; the same ones at strength 0.

    vae, mask: for ControlNets that read latents, and a mask (N,H,W).
    """
    if strength == 0:
        return positive, negative
    control = Control(control_net, image, strength, start_percent, end_percent, vae=vae, mask=mask)
    controlled_positive, controlled_negative = under(control, positive, negative, to_uncond=False)
    return controlled_positive, controlled_negative


@node("ControlNetLoader", "Load ControlNet Model", category="model/loaders", function="load_controlnet")
def control_net_loader(control_net_name: Annotated[str, File(FOLDER)]) -> CONTROL_NET:
    """A ControlNet, control-LoRA or T2I-Adapter in a file of its own."""
    return Recipe("controlnet", FOLDER, control_net_name)


@node("DiffControlNetLoader", "Load ControlNet Model (diff)", category="model/loaders", function="load_controlnet")
def diff_control_net_loader(model: MODEL, control_net_name: Annotated[str, File(FOLDER)]) -> CONTROL_NET:
    """A ControlNet whose file may hold differences from a model's weights.

    Return the ControlNet's recipe, on top of the model's weights.
    """
    return Recipe("controlnet", FOLDER, control_net_name, (DiffControlNetBase(model),))


@node(
    "ControlNetApplySD3",
    "Apply Controlnet with VAE",
    category="model/conditioning/controlnet",
    function="apply_controlnet",
    deprecated=True,
    return_names=("positive", "negative"),
    required=("vae",),
    order=("positive", "negative", "control_net", "vae"),
)
def control_net_apply_sd3(
    positive: CONDITIONING,
    negative: CONDITIONING,
    control_net: CONTROL_NET,
    image: IMAGE,
    strength: Strength,
    start_percent: Start,
    end_percent: End,
    vae: VAE | None = None,
    mask: Tensor | None = None,
) -> tuple[CONDITIONING, CONDITIONING]:
    """As ControlNetApplyAdvanced, with the VAE demanded; the name that workflows for SD 3 began with."""
    return control_net_apply_advanced(
        positive, negative, control_net, image, strength, start_percent, end_percent, vae, mask
    )


@node(
    "SetUnionControlNetType",
    "Set Union ControlNet Type",
    category="model/conditioning/controlnet",
    function="set_controlnet_type",
)
def set_union_control_net_type(
    control_net: CONTROL_NET, type: Annotated[str, Choice(["auto", *HINT_KINDS])]
) -> CONTROL_NET:
    """Name the kind of hint that a ControlNet for several kinds is given.

    Return the recipe with the kind of hint; "auto" leaves it open.
    """
    return control_net.with_patch(HintKind(HINT_KINDS.get(type)))


@node(
    "ControlNetInpaintingAliMamaApply",
    "Apply ControlNet Inpainting (AliMama)",
    category="model/conditioning/controlnet",
    function="apply_inpaint_controlnet",
    return_names=("positive", "negative"),
)
def control_net_inpainting_ali_mama_apply(
    positive: CONDITIONING,
    negative: CONDITIONING,
    control_net: CONTROL_NET,
    vae: VAE,
    image: IMAGE,
    mask: MASK,
    strength: Strength,
    start_percent: Start,
    end_percent: End,
) -> tuple[CONDITIONING, CONDITIONING]:
    """As ControlNetApplyAdvanced, for ControlNets that read a mask as well; others do not.

    mask: 1 where the image is to be made anew.
    """
    return control_net_apply_advanced(
        positive, negative, control_net, image, strength, start_percent, end_percent, vae=vae, mask=mask
    )


def under(control: Control, *conditionings: Conditioning, to_uncond: bool) -> tuple[Conditioning, ...]:
    """Return the conditionings with every entry under one more control, on top of the chain it is under.

    Entries under the same chain get the same new one, so that its hint is read once. to_uncond: it also acts on the
    entries of a sampler's other branches that are under none.
    """
    chains: dict[Control | None, Control] = {}

    def on_top(previous: Control | None) -> Control:
        if previous not in chains:
            chains[previous] = replace(control, previous=previous)
        return chains[previous]

    return tuple(
        [
            (cond, {**options, "control": on_top(options.get("control")), "control_apply_to_uncond": to_uncond})
            for cond, options in conditioning
        ]
        for conditioning in conditionings
    )
