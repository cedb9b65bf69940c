"""The nodes that apply networks of the folder "model_patches" to a MODEL. They make values; samplers run them."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import File, Float, InputType
from serve_app.nodes.sockets import CLIP_VISION_OUTPUT, IMAGE, MASK, MODEL, MODEL_PATCH, RUNTIME, VAE
from serve_app.nodes.video.wan import video_vae
from serve_app.recipe.controls import ModelControl
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.latents.latent_formats import MINIMAX_H3

FOLDER = "model_patches"

Strength: TypeAlias = Annotated[float, Float(1.0, min=-10.0, max=10.0, step=0.01)]
Share: TypeAlias = Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.001, advanced=True)]
Whole: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.001, advanced=True)]


@node("ModelPatchLoader", "Load Model Patch", category="model/loaders", function="load_model_patch", experimental=True)
def model_patch_loader(name: Annotated[str, File(FOLDER)]) -> MODEL_PATCH:
    """A network that adds to what a diffusion model makes of images, in a file of its own."""
    return Recipe("model_patch", FOLDER, name)


@node(
    "QwenImageDiffsynthControlnet",
    "Apply Qwen Image DiffSynth ControlNet",
    category="model/patch/qwen",
    function="diffsynth_controlnet",
    experimental=True,
    required=("image", "strength"),
)
def qwen_image_diffsynth_controlnet(
    model: MODEL,
    model_patch: MODEL_PATCH,
    vae: VAE,
    image: IMAGE | None = None,
    strength: Strength = 1.0,
    inpaint_image: Tensor | None = None,
    mask: MASK | None = None,
) -> MODEL:
    """Let a model follow an image by a model patch of Qwen-Image or Z-Image.

    Return the model under one more control; the same model at strength 0. mask: 1 where to paint anew.
    """
    if strength == 0:
        return model
    seen, painted = (None if pixels is None else pixels[..., :3] for pixels in (image, inpaint_image))
    return model.with_patch(ModelControl(model_patch, vae, strength, seen, painted, mask))


@node(
    "ZImageFunControlnet",
    "Apply Z-Image Fun ControlNet",
    category="model/patch/z-image",
    function="diffsynth_controlnet",
    experimental=True,
    required=("strength",),
)
def z_image_fun_controlnet(
    model: MODEL,
    model_patch: MODEL_PATCH,
    vae: VAE,
    image: IMAGE | None = None,
    strength: Strength = 1.0,
    inpaint_image: IMAGE | None = None,
    mask: MASK | None = None,
) -> MODEL:
    """As QwenImageDiffsynthControlnet, with an image to paint into, for model patches of Z-Image that read one."""
    return qwen_image_diffsynth_controlnet(model, model_patch, vae, image, strength, inpaint_image, mask)


@node(
    "USOStyleReference",
    "Apply USO Style Reference",
    category="model/patch/flux",
    function="apply_patch",
    experimental=True,
)
def uso_style_reference(model: MODEL, model_patch: MODEL_PATCH, clip_vision_output: CLIP_VISION_OUTPUT) -> MODEL:
    """Let a Flux.1 draw in the style that is seen in images, by a model patch of USO.

    Return the model under one more style. Errors: NodeError for what another encoder than SigLIP sees.
    """
    if clip_vision_output.style_hidden_states is None:
        raise NodeError("style is read from what SigLIP sees; load an image encoder of that kind, such as sigclip")
    seen = (*clip_vision_output.style_hidden_states.unbind(1), clip_vision_output.penultimate_hidden_states)
    return model.with_patch(ModelControl(model_patch, None, 1.0, seen=seen))


@node(
    "AnimaLLLiteApply",
    "Apply Anima LLLite",
    category="model_patches/anima",
    function="apply_patch",
    experimental=True,
    required=("strength", "start_percent", "end_percent"),
)
def anima_lllite_apply(
    model: MODEL,
    model_patch: MODEL_PATCH,
    image: IMAGE,
    strength: Strength = 1.0,
    start_percent: Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.001)] = 0.0,
    end_percent: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.001)] = 1.0,
    mask: MASK | None = None,
) -> MODEL:
    """Let an Anima follow an image by an LLLite. mask: 1 where to paint anew, for those that read one."""
    if strength == 0:
        return model
    control = ModelControl(
        model_patch, None, strength, image[..., :3], mask=mask, start_percent=start_percent, end_percent=end_percent
    )
    return model.with_patch(control)


@node(
    "MiniMaxH3FunControlNetApply",
    "Apply MiniMax H3 Fun ControlNet",
    category="model/patch/minimax",
    description="Apply a MiniMax H3 Fun ControlNet to a text-to-video model as a model patch.",
    required=("strength", "start_percent", "end_percent"),
)
async def minimax_h3_fun_control_net_apply(
    model: MODEL,
    model_patch: MODEL_PATCH,
    vae: VAE,
    runtime: RUNTIME,
    strength: Annotated[float, Float(1.0, min=0.0, max=10.0, step=0.01)] = 1.0,
    start_percent: Share = 0.0,
    end_percent: Whole = 1.0,
    control_video: IMAGE | None = None,
    mask: Annotated[Tensor | None, InputType("MASK", {"tooltip": "1 marks the regions to regenerate."})] = None,
    source_video: Annotated[
        Tensor | None, InputType("IMAGE", {"tooltip": "Video behind the mask; only read when a mask is given."})
    ] = None,
) -> MODEL:
    """Let a MiniMax H3 follow a video of poses, depths or edges, or paint a video anew where a mask is 1.

    Return the model under one more control; the same model at strength 0, or without a video and a mask. A shorter
    video stands still at its end. Errors: NodeError for another model, and for another model's VAE.
    """
    if strength == 0 or (control_video is None and mask is None):
        return model
    family = await runtime.family(model)
    if family.title != "MiniMax H3":
        raise NodeError(f"the model is one of {family.title}; this ControlNet is for MiniMax H3")
    await video_vae(runtime, vae, MINIMAX_H3)
    source = source_video if mask is not None else None
    shown, behind = (None if video is None else video[..., :3] for video in (control_video, source))
    control = ModelControl(
        model_patch, vae, strength, shown, behind, mask, start_percent=start_percent, end_percent=end_percent
    )
    return model.with_patch(control)
