"""The loaders of kijai's ComfyUI-KJNodes, by its names and inputs; they make recipes.

The pack's own hand tensors of the whole file to ComfyUI. What they are asked of speed and attention is the pool's here,
as it is for every other model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.nodes.loaders.gguf import UnetLoaderGGUFAdvanced
from serve_app.nodes.loaders.models import EIGHT_BIT, UNETLoader
from serve_app.recipe import ComputedIn, Recipe

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
OFF = ("BOOLEAN", {"default": False})


class DiffusionModelLoaderKJ:
    """A diffusion model in a file of its own, held and worked with in dtypes of the workflow's."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch_and_load"
    CATEGORY = CATEGORY
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model_name": (FolderChoice("diffusion_models"),),
                "weight_dtype": (["default", *EIGHT_BIT, *WIDE],),
                "compute_dtype": (["default", *WIDE], {"default": "default"}),
                "patch_cublaslinear": OFF,
                "sage_attention": (list(SAGE_ATTENTION), {"default": "disabled"}),
                "enable_fp16_accumulation": OFF,
            },
            "optional": {"extra_state_dict": ("STRING", {"forceInput": True})},
        }

    def patch_and_load(
        self,
        model_name: str,
        weight_dtype: str = "default",
        compute_dtype: str = "default",
        extra_state_dict: str | None = None,
        **speed: Any,
    ) -> tuple[Recipe]:
        """Return the diffusion model's recipe. Errors: NodeError for a second file to put into the model."""
        _one_file("extra_state_dict", extra_state_dict)
        (recipe,) = UNETLoader().load_unet(model_name, weight_dtype if weight_dtype in EIGHT_BIT else "default")
        wide = compute_dtype if compute_dtype in WIDE else weight_dtype
        return (recipe.with_patch(ComputedIn(wide)) if wide in WIDE else recipe,)


class GGUFLoaderKJ:
    """A diffusion model in a GGUF file."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "execute"
    CATEGORY = CATEGORY
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        given = dict(UnetLoaderGGUFAdvanced.INPUT_TYPES()["required"])
        return {
            "required": {
                "model_name": given.pop("unet_name"),
                "extra_model_name": ("STRING", {"default": "none"}),
                **given,
                "enable_fp16_accumulation": OFF,
                "attention_override": (["none", "sdpa", "sageattn", "xformers", "flashattn"], {"default": "none"}),
            }
        }

    def execute(self, model_name: str, extra_model_name: str = "none", **speed: Any) -> tuple[Recipe]:
        """Return the diffusion model's recipe. Errors: NodeError for a second file to put into the model."""
        _one_file("extra_model_name", extra_model_name)
        return UnetLoaderGGUFAdvanced().load_unet(model_name)


def _one_file(name: str, extra: str | None) -> None:
    if extra not in (None, "", "none"):
        raise NodeError(
            f"{name} is {extra!r}: this server puts no second file into a diffusion model; use a file that has both, "
            "as Wan's VACE is published, or a pool that runs ComfyUI (docs/comfyui-pool.md)"
        )


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "DiffusionModelLoaderKJ": DiffusionModelLoaderKJ,
    "GGUFLoaderKJ": GGUFLoaderKJ,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "DiffusionModelLoaderKJ": "Diffusion Model Loader KJ",
    "GGUFLoaderKJ": "GGUF Loader KJ",
}
