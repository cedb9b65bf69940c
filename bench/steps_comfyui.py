"""Counts ComfyUI's networks: run by its own interpreter, in its directory. Prints a JSON object, by job.

    PYTHONPATH=CHECKOUT_OF_THIS_PROJECT python -m bench.steps_comfyui

Texts of unequal length are two forwards, as ComfyUI does it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

sys.argv = ["main.py", "--cpu", "--use-pytorch-cross-attention"]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ops  # noqa: E402
import comfy.quant_ops  # noqa: E402
from comfy.ldm.flux.model import Flux  # noqa: E402
from comfy.ldm.lumina.model import NextDiT  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel  # noqa: E402
from comfy.ldm.wan.model import WanModel  # noqa: E402

from bench.counted import Counting  # noqa: E402
from bench.step_jobs import JOBS, StepJob  # noqa: E402

META = torch.device("meta")
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": (1, 2, 4, 4),
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "context_dim": 768,
        "num_heads": 8,
        "use_linear_in_transformer": False,
    },
    "sdxl": {
        "num_res_blocks": [2, 2, 2],
        "channel_mult": (1, 2, 4),
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "context_dim": 2048,
        "num_heads": -1,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
    },
}


def network(job: StepJob, device: torch.device = META) -> Any:
    """Return the network, without numbers."""
    operations = comfy.ops.disable_weight_init
    if job.fp8:
        operations = comfy.ops.mixed_precision_ops({}, torch.bfloat16)
    dtype = torch.float16 if job.family in UNETS else torch.bfloat16
    common = {"device": device, "dtype": dtype, "operations": operations}
    match job.family:
        case "sd15" | "sdxl":
            sizes = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320}
            return UNetModel(**sizes, use_spatial_transformer=True, legacy=False, **UNETS[job.family], **common)
        case "flux":
            made = Flux(
                in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0,
                num_heads=24, depth=19 // job.part, depth_single_blocks=38 // job.part, axes_dim=[16, 56, 56],
                theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[], **common,
            )  # fmt: skip
            return in_fp8(made, device) if job.fp8 else made
        case "zimage":
            return NextDiT(
                patch_size=2, in_channels=16, dim=3840, cap_feat_dim=2560, n_layers=30 // job.part, qk_norm=True,
                n_heads=30, n_kv_heads=30, axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512], rope_theta=256.0,
                ffn_dim_multiplier=8.0 / 3.0, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32,
                **common,
            )  # fmt: skip
        case "qwen":
            return QwenImageTransformer2DModel(num_layers=60 // job.part, **common)
        case "wan":
            return WanModel(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40 // job.part, **common)
    raise AssertionError(job.family)


def in_fp8(made: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Return the network with the weights of its blocks' linear layers in fp8, as its scaled files have them.

    The scales are 1: what a step takes does not depend on them.
    """
    for name, layer in made.named_modules():
        if not isinstance(layer, comfy.ops.CastWeightBiasOp) or not hasattr(layer, "_orig_shape"):
            continue
        shape, layer.quant_format = layer._orig_shape, None
        if "blocks" not in name:
            layer.weight = torch.nn.Parameter(torch.empty(shape, device=device, dtype=torch.bfloat16))
            continue
        layer.quant_format, layer.layout_type = "float8_e4m3fn", "TensorCoreFP8E4M3Layout"
        params = comfy.quant_ops.get_layout_class(layer.layout_type).Params(
            scale=torch.ones((), device=device), orig_dtype=torch.bfloat16, orig_shape=shape
        )
        drawn = torch.randn(shape, device=device, dtype=torch.bfloat16) / shape[-1] ** 0.5
        stored = drawn.to(torch.float8_e4m3fn)
        layer.weight = torch.nn.Parameter(
            comfy.quant_ops.QuantizedTensor(stored, layer.layout_type, params), requires_grad=False
        )
    return made


def draw(made: torch.nn.Module) -> None:
    """Fill all weights but those of `in_fp8` with random numbers, which keep what goes through them about as large."""
    for parameter in made.parameters():
        if not isinstance(parameter, comfy.quant_ops.QuantizedTensor):
            parameter.normal_(std=max(1, parameter[0].numel()) ** -0.5 if parameter.ndim else 1.0)


def forward(made: Any, job: StepJob, texts: tuple[int, ...], device: torch.device = META) -> None:
    """Run one forward for rows with texts of equal lengths."""
    rows, dtype = len(texts), torch.float16 if job.family in UNETS else torch.bfloat16

    def numbers(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        make = torch.empty if device == META else torch.randn
        return make(rows, *shape, device=device, dtype=dtype)

    widths = {"sd15": 768, "sdxl": 2048, "flux": 4096, "zimage": 2560, "qwen": 3584, "wan": 4096}
    x, time, text = numbers(*job.latents), numbers(dtype=torch.float32), numbers(texts[0], widths[job.family])
    match job.family:
        case "sd15":
            made(x, time, context=text)
        case "sdxl":
            made(x, time, context=text, y=numbers(2816))
        case "flux":
            made(x, time, text, y=numbers(768), guidance=numbers(dtype=torch.float32))
        case "zimage":
            made(x, time, text, num_tokens=texts[0])
        case _:
            made(x, time, text)


def main() -> None:
    found = {}
    for title, job in JOBS.items():
        made = network(job).eval().requires_grad_(False)
        equal = len(set(job.texts)) == 1
        with torch.inference_mode(), Counting() as counting:
            for texts in [job.texts] if equal else [(length,) for length in job.texts]:
                forward(made, job, texts)
        found[title] = vars(counting.counts)
    print(json.dumps(found, sort_keys=True))


if __name__ == "__main__":
    main()
