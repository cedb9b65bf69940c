"""The nodes that put conditionings under ControlNets and T2I-Adapters: they make values, and a sampler acts on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from serve_app.execution.protocol import FolderChoice
from serve_app.recipe import Difference, HintKind, Recipe
from serve_app.values import Conditioning, Control

if TYPE_CHECKING:
    from torch import Tensor

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
"""The kinds of hint that ControlNet Union tells apart."""

STRENGTH = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01})
START = ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.001})
END = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.001})


class ControlNetLoader:
    """A ControlNet, control-LoRA or T2I-Adapter in a file of its own."""

    RETURN_TYPES = ("CONTROL_NET",)
    FUNCTION = "load_controlnet"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"control_net_name": (FolderChoice(FOLDER),)}}

    def load_controlnet(self, control_net_name: str) -> tuple[Recipe]:
        """Return the ControlNet's recipe."""
        return (Recipe("controlnet", FOLDER, control_net_name),)


class DiffControlNetLoader:
    """A ControlNet whose file may hold differences from a model's weights."""

    RETURN_TYPES = ("CONTROL_NET",)
    FUNCTION = "load_controlnet"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "control_net_name": (FolderChoice(FOLDER),)}}

    def load_controlnet(self, model: Recipe, control_net_name: str) -> tuple[Recipe]:
        """Return the ControlNet's recipe, on top of the model's weights."""
        return (Recipe("controlnet", FOLDER, control_net_name, (Difference(model),)),)


class ControlNetApply:
    """Put a conditioning under a ControlNet, and with it what the sampler is given as negative."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "apply_controlnet"
    CATEGORY = "model/conditioning/controlnet"
    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "control_net": ("CONTROL_NET",),
                "image": ("IMAGE",),
                "strength": STRENGTH,
            }
        }

    def apply_controlnet(
        self, conditioning: Conditioning, control_net: Recipe, image: Tensor, strength: float
    ) -> tuple[Conditioning]:
        """Return the conditioning under one more control; the same conditioning at strength 0."""
        if strength == 0:
            return (conditioning,)
        (applied,) = under(Control(control_net, image, strength), conditioning, to_uncond=True)
        return (applied,)


class ControlNetApplyAdvanced:
    """Put both conditionings under a ControlNet for a share of the noise levels."""

    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    FUNCTION = "apply_controlnet"
    CATEGORY = "model/conditioning/controlnet"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "control_net": ("CONTROL_NET",),
                "image": ("IMAGE",),
                "strength": STRENGTH,
                "start_percent": START,
                "end_percent": END,
            },
            "optional": {"vae": ("VAE",)},
        }

    def apply_controlnet(
        self,
        positive: Conditioning,
        negative: Conditioning,
        control_net: Recipe,
        image: Tensor,
        strength: float,
        start_percent: float,
        end_percent: float,
        vae: Recipe | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Conditioning, Conditioning]:
        """Return the conditionings under one more control; the same ones at strength 0.

        vae, mask: read by the ControlNets that are told latents, and a mask (N,H,W), of those there are.
        """
        if strength == 0:
            return positive, negative
        control = Control(control_net, image, strength, start_percent, end_percent, vae=vae, mask=mask)
        controlled_positive, controlled_negative = under(control, positive, negative, to_uncond=False)
        return controlled_positive, controlled_negative


class ControlNetApplySD3(ControlNetApplyAdvanced):
    """As ControlNetApplyAdvanced, with the VAE demanded; the name that workflows for SD 3 began with."""

    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "control_net": ("CONTROL_NET",),
                "vae": ("VAE",),
                "image": ("IMAGE",),
                "strength": STRENGTH,
                "start_percent": START,
                "end_percent": END,
            }
        }


class SetUnionControlNetType:
    """Name the kind of hint that a ControlNet for several kinds is given."""

    RETURN_TYPES = ("CONTROL_NET",)
    FUNCTION = "set_controlnet_type"
    CATEGORY = "model/conditioning/controlnet"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"control_net": ("CONTROL_NET",), "type": (["auto", *HINT_KINDS],)}}

    def set_controlnet_type(self, control_net: Recipe, type: str) -> tuple[Recipe]:
        """Return the recipe with the kind of hint; "auto" leaves it open."""
        return (control_net.with_patch(HintKind(HINT_KINDS.get(type))),)


class ControlNetInpaintingAliMamaApply(ControlNetApplyAdvanced):
    """As ControlNetApplyAdvanced, for ControlNets that read a mask as well; others do not."""

    FUNCTION = "apply_inpaint_controlnet"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "control_net": ("CONTROL_NET",),
                "vae": ("VAE",),
                "image": ("IMAGE",),
                "mask": ("MASK",),
                "strength": STRENGTH,
                "start_percent": START,
                "end_percent": END,
            }
        }

    def apply_inpaint_controlnet(
        self,
        positive: Conditioning,
        negative: Conditioning,
        control_net: Recipe,
        vae: Recipe,
        image: Tensor,
        mask: Tensor,
        strength: float,
        start_percent: float,
        end_percent: float,
    ) -> tuple[Conditioning, Conditioning]:
        """Return the conditionings under one more control. mask: 1 where the image is to be made anew."""
        return self.apply_controlnet(
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


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "ControlNetApply": ControlNetApply,
    "ControlNetApplyAdvanced": ControlNetApplyAdvanced,
    "ControlNetLoader": ControlNetLoader,
    "DiffControlNetLoader": DiffControlNetLoader,
    "ControlNetApplySD3": ControlNetApplySD3,
    "SetUnionControlNetType": SetUnionControlNetType,
    "ControlNetInpaintingAliMamaApply": ControlNetInpaintingAliMamaApply,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "ControlNetApply": "Apply ControlNet (DEPRECATED)",
    "ControlNetApplyAdvanced": "Apply ControlNet",
    "ControlNetLoader": "Load ControlNet Model",
    "DiffControlNetLoader": "Load ControlNet Model (diff)",
    "ControlNetApplySD3": "Apply Controlnet with VAE",
    "SetUnionControlNetType": "Set Union ControlNet Type",
    "ControlNetInpaintingAliMamaApply": "Apply ControlNet Inpainting (AliMama)",
}
