"""The nodes that save models: the weights that recipes stand for, LoRAs and merges in them, as safetensors files.

And LoRAs that are taken out of such weights.
"""

from __future__ import annotations

from typing import Annotated, Any

from serve_app.execution.runtime import NodeStore, Runtime
from serve_app.nodes.declare import node
from serve_app.nodes.image.images import workflow_text
from serve_app.nodes.inputs import Bool, Choice, InputType, Int, Text
from serve_app.nodes.model.merging import CATEGORY
from serve_app.nodes.sockets import CLIP, EXTRA_PNGINFO, MODEL, PROMPT, RUNTIME, STORE, VAE
from serve_app.recipe.recipe import Recipe
from serve_app.values import Extraction

SUFFIX = ".safetensors"


async def saved(
    runtime: Runtime,
    store: NodeStore,
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


@node(
    "CheckpointSave",
    "Save Checkpoint",
    category=CATEGORY,
    function="save",
    output_node=True,
    order=("prompt", "extra_pnginfo"),
)
async def checkpoint_save(
    model: MODEL,
    clip: CLIP,
    vae: VAE,
    filename_prefix: Annotated[str, Text("checkpoints/ComfyUI")],
    runtime: RUNTIME,
    store: STORE,
    prompt: PROMPT = None,
    extra_pnginfo: EXTRA_PNGINFO = None,
) -> dict[str, Any]:
    """A diffusion model, a text encoder and a VAE to one file. Store the file and show where."""
    return await saved(runtime, store, filename_prefix, prompt, extra_pnginfo, model=model, clip=clip, vae=vae)


@node("ModelSave", category=CATEGORY, function="save", output_node=True, order=("prompt", "extra_pnginfo"))
async def model_save(
    model: MODEL,
    filename_prefix: Annotated[str, Text("diffusion_models/ComfyUI")],
    runtime: RUNTIME,
    store: STORE,
    prompt: PROMPT = None,
    extra_pnginfo: EXTRA_PNGINFO = None,
) -> dict[str, Any]:
    """A diffusion model to a file of its own. Store the file and show where."""
    return await saved(runtime, store, filename_prefix, prompt, extra_pnginfo, model=model)


@node("CLIPSave", category=CATEGORY, function="save", output_node=True, order=("prompt", "extra_pnginfo"))
async def clip_save(
    clip: CLIP,
    filename_prefix: Annotated[str, Text("clip/ComfyUI")],
    runtime: RUNTIME,
    store: STORE,
    prompt: PROMPT = None,
    extra_pnginfo: EXTRA_PNGINFO = None,
) -> dict[str, Any]:
    """Text encoders to a file each, whose name says which it is. Store the files and show where."""
    return await saved(runtime, store, filename_prefix, prompt, extra_pnginfo, clip=clip)


@node("VAESave", category=CATEGORY, function="save", output_node=True, order=("prompt", "extra_pnginfo"))
async def vae_save(
    vae: VAE,
    filename_prefix: Annotated[str, Text("vae/ComfyUI_vae")],
    runtime: RUNTIME,
    store: STORE,
    prompt: PROMPT = None,
    extra_pnginfo: EXTRA_PNGINFO = None,
) -> dict[str, Any]:
    """A VAE to a file of its own. Store the file and show where."""
    return await saved(runtime, store, filename_prefix, prompt, extra_pnginfo, vae=vae)


@node(
    "LoraSave",
    "Extract and Save Lora",
    category="experimental",
    function="save",
    output_node=True,
    experimental=True,
    search_aliases=("export lora",),
)
async def lora_save(
    filename_prefix: Annotated[str, Text("loras/ComfyUI_extracted_lora", multiline=False)],
    rank: Annotated[int, Int(8, min=1, max=4096, step=1, advanced=True)],
    lora_type: Annotated[str, Choice(["standard", "full_diff"], advanced=True)],
    bias_diff: Annotated[bool, Bool(True, advanced=True)],
    runtime: RUNTIME,
    store: STORE,
    model_diff: Annotated[
        Recipe, InputType("MODEL", {"tooltip": "The ModelSubtract output to be converted to a lora."})
    ]
    | None = None,
    text_encoder_diff: Annotated[
        Recipe, InputType("CLIP", {"tooltip": "The CLIPSubtract output to be converted to a lora."})
    ]
    | None = None,
) -> dict[str, Any]:
    """The difference of two models, as subtracting one from the other gives it, to a file as a LoRA.

    Store the file and show where; nothing without a difference.
    """
    if model_diff is None and text_encoder_diff is None:
        return {}
    asked = Extraction(rank, lora_type == "full_diff", bias_diff)
    content = await runtime.lora_file(model_diff, text_encoder_diff, asked)
    return {"ui": {"models": await store.save("output", filename_prefix, SUFFIX, [content])}}
