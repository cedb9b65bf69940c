"""The loaders of kijai's ComfyUI-KJNodes, by its names and inputs; they make recipes.

The pack's own hand tensors of the whole file to ComfyUI. What they are asked of speed and attention is the pool's here,
as it is for every other model.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool, Choice, File, Text
from serve_app.nodes.loaders.gguf import Dtype, unet_loader_gguf
from serve_app.nodes.loaders.models import EIGHT_BIT, unet_loader
from serve_app.nodes.sockets import MODEL
from serve_app.recipe.weights import ComputedIn

CATEGORY = "KJNodes/model_loaders"
WIDE = ("fp16", "bf16", "fp32")
SAGE_ATTENTION = (
    "disabled",
    "auto",
    "sageattn_qk_int8_pv_fp16_cuda",
    "sageattn_qk_int8_pv_fp16_triton",
    "sageattn_qk_int8_pv_fp8_cuda",
    "sageattn_qk_int8_pv_fp8_cuda++",
    "sageattn3",
    "sageattn3_per_block_mean",
)
Off: TypeAlias = Annotated[bool, Bool(False)]


@node(
    "DiffusionModelLoaderKJ",
    "Diffusion Model Loader KJ",
    category=CATEGORY,
    function="patch_and_load",
    experimental=True,
    required=("weight_dtype", "compute_dtype", "patch_cublaslinear", "sage_attention", "enable_fp16_accumulation"),
)
def diffusion_model_loader_kj(
    model_name: Annotated[str, File("diffusion_models")],
    weight_dtype: Annotated[str, Choice(["default", *EIGHT_BIT, *WIDE])] = "default",
    compute_dtype: Annotated[str, Choice(["default", *WIDE], default="default")] = "default",
    patch_cublaslinear: Off = False,
    sage_attention: Annotated[str, Choice(SAGE_ATTENTION, default="disabled")] = "disabled",
    enable_fp16_accumulation: Off = False,
    extra_state_dict: Annotated[str, Text(forceInput=True)] | None = None,
) -> MODEL:
    """A diffusion model in a file of its own, held and worked with in dtypes of the workflow's.

    Errors: NodeError for a second file to put into the model.
    """
    _one_file("extra_state_dict", extra_state_dict)
    recipe = unet_loader(model_name, weight_dtype if weight_dtype in EIGHT_BIT else "default")
    wide = compute_dtype if compute_dtype in WIDE else weight_dtype
    return recipe.with_patch(ComputedIn(wide)) if wide in WIDE else recipe


@node(
    "GGUFLoaderKJ",
    "GGUF Loader KJ",
    category=CATEGORY,
    experimental=True,
    required=(
        "extra_model_name",
        "dequant_dtype",
        "patch_dtype",
        "patch_on_device",
        "enable_fp16_accumulation",
        "attention_override",
    ),
)
def gguf_loader_kj(
    model_name: Annotated[str, File("unet_gguf")],
    extra_model_name: Annotated[str, Text("none")] = "none",
    dequant_dtype: Dtype = "default",
    patch_dtype: Dtype = "default",
    patch_on_device: Off = False,
    enable_fp16_accumulation: Off = False,
    attention_override: Annotated[
        str, Choice(["none", "sdpa", "sageattn", "xformers", "flashattn"], default="none")
    ] = "none",
) -> MODEL:
    """A diffusion model in a GGUF file. Errors: NodeError for a second file to put into the model."""
    _one_file("extra_model_name", extra_model_name)
    return unet_loader_gguf(model_name)


def _one_file(name: str, extra: str | None) -> None:
    if extra not in (None, "", "none"):
        raise NodeError(
            f"{name} is {extra!r}: this server puts no second file into a diffusion model; use a file that has both, "
            "as Wan's VACE is published, or a pool that runs ComfyUI (docs/comfyui-pool.md)"
        )
