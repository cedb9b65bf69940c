"""The nodes that apply networks of the folder "model_patches" to a MODEL. They make values; samplers run them."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import File, Float
from serve_app.nodes.sockets import CLIP_VISION_OUTPUT, IMAGE, MASK, MODEL, MODEL_PATCH, VAE
from serve_app.recipe.controls import ModelControl
from serve_app.recipe.recipe import Recipe

FOLDER = "model_patches"

Strength: TypeAlias = Annotated[float, Float(1.0, min=-10.0, max=10.0, step=0.01)]


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
