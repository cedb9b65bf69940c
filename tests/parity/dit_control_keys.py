"""Make golden/dit_control_keys.json: names and shapes of small ControlNets' files, by the layouts that publish them.

Diffusers' classes say their own; the layouts of single files are written out. Run it in this project's environment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.models.controlnets.controlnet_qwenimage import QwenImageControlNetModel
from diffusers.models.controlnets.controlnet_sd3 import SD3ControlNetModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock

GOLDEN = Path(__file__).parent / "golden"
WIDTH = 128
"""Of Flux's, which ComfyUI takes to have heads 128 wide."""
XLABS = ((3, 1), (3, 1), (3, 2), (3, 1), (3, 2), (3, 1), (3, 2), (3, 1))
MISTOLINE = ((3, 1), (1, 1), (3, 1), (3, 2), (3, 1), (3, 2), (3, 1), (3, 2), (1, 1), (3, 1))
"""Kernels and strides of what reads hints in pixels."""

Keys = Iterator[tuple[str, list[int]]]


def layer(name: str, *shape: int) -> Keys:
    yield f"{name}.weight", list(shape)
    yield f"{name}.bias", [shape[0]]


def of(module: Any) -> Keys:
    for name, tensor in module.state_dict().items():
        yield name, list(tensor.shape)


def sd3(*, masked: bool) -> Keys:
    return of(
        SD3ControlNetModel(
            sample_size=16,
            num_layers=2,
            num_attention_heads=4,
            joint_attention_dim=48,
            caption_projection_dim=256,
            pooled_projection_dim=2048,
            pos_embed_max_size=8,
            extra_conditioning_channels=int(masked),
        )
    )


def sd3_large(width: int = 256, pooled_width: int = 2048) -> Keys:
    """Yield the layout of Stability AI. pooled_width: of pooled text; `width` if the backbone embeds that."""
    for name, inside in (("t_embedder", 256), ("y_embedder", pooled_width)):
        yield from layer(f"{name}.mlp.0", width, inside)
        yield from layer(f"{name}.mlp.2", width, width)
    for name in ("pos_embed_input.proj", *(["pos_embed.proj"] if pooled_width == width else [])):
        yield from layer(name, width, 16, 2, 2)
    for number in range(2):
        block = f"transformer_blocks.{number}"
        yield from layer(f"{block}.attn.qkv", 3 * width, width)
        yield from layer(f"{block}.attn.proj", width, width)
        yield from layer(f"{block}.mlp.fc1", 4 * width, width)
        yield from layer(f"{block}.mlp.fc2", width, 4 * width)
        yield from layer(f"{block}.adaLN_modulation.1", 6 * width, width)
        yield from layer(f"controlnet_blocks.{number}", width, width)


def flux(*, singles: int, modes: int | None = None, masked: bool = False) -> Keys:
    yield from of(
        FluxControlNetModel(
            num_layers=5,
            num_single_layers=singles,
            attention_head_dim=WIDTH,
            num_attention_heads=1,
            joint_attention_dim=48,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=[16, 56, 56],
            num_mode=modes,
        )
    )
    if masked:
        yield "controlnet_x_embedder.weight", [WIDTH, 68]


def flux_single_file(*, mistoline: bool) -> Keys:
    for name, inside in (("img_in", 64), ("txt_in", 48), ("pos_embed_input", 64)):
        yield from layer(name, WIDTH, inside)
    for name, inside in (("time_in", 256), ("guidance_in", 256), ("vector_in", 32)):
        yield from layer(f"{name}.in_layer", WIDTH, inside)
        yield from layer(f"{name}.out_layer", WIDTH, WIDTH)
    for number in range(2):
        for stream in ("img", "txt"):
            block = f"double_blocks.{number}.{stream}"
            yield from layer(f"{block}_mod.lin", 6 * WIDTH, WIDTH)
            yield from layer(f"{block}_attn.qkv", 3 * WIDTH, WIDTH)
            yield from layer(f"{block}_attn.proj", WIDTH, WIDTH)
            yield from ((f"{block}_attn.norm.{kind}_norm.scale", [WIDTH]) for kind in ("query", "key"))
            yield from layer(f"{block}_mlp.0", 4 * WIDTH, WIDTH)
            yield from layer(f"{block}_mlp.2", WIDTH, 4 * WIDTH)
        if mistoline:
            block = f"single_blocks.{number}"
            yield from layer(f"{block}.modulation.lin", 3 * WIDTH, WIDTH)
            yield from layer(f"{block}.linear1", 7 * WIDTH, WIDTH)
            yield from layer(f"{block}.linear2", WIDTH, 5 * WIDTH)
            yield from ((f"{block}.norm.{kind}_norm.scale", [WIDTH]) for kind in ("query", "key"))
    convolutions = MISTOLINE if mistoline else XLABS
    sizes = pairwise((3, *(16 for _ in convolutions)))
    for number, ((before, after), (kernel, _)) in enumerate(zip(sizes, convolutions, strict=True)):
        block = "input_cond_block.encoder" if mistoline else "input_hint_block"
        yield from layer(f"{block}.{2 * number}", after, before, kernel, kernel)
    for number in range(2):
        if mistoline:
            yield from layer(f"controlnet_blocks.{number}.linear", WIDTH, WIDTH)
            yield from layer(f"single_controlnet_blocks.{number}.linear", WIDTH, WIDTH)
        else:
            yield from layer(f"controlnet_blocks.{number}", WIDTH, WIDTH)


QWEN_WIDTH = 64
"""Of Qwen-Image's, with two heads."""


def qwen(layers: int, *, masked: bool = False) -> Keys:
    yield from of(
        QwenImageControlNetModel(
            in_channels=64,
            num_layers=layers,
            attention_head_dim=QWEN_WIDTH // 2,
            num_attention_heads=2,
            joint_attention_dim=48,
            axes_dims_rope=(4, 14, 14),
            extra_condition_channels=4 if masked else 0,
        )
    )


def qwen_fun() -> Keys:
    yield from layer("control_img_in", QWEN_WIDTH, 132)
    for number in range(5):
        block = f"control_blocks.{number}"
        parts = QwenImageTransformerBlock(QWEN_WIDTH, 2, QWEN_WIDTH // 2)
        yield from ((f"{block}.{name}", shape) for name, shape in of(parts))
        for name in ("after_proj", *(() if number else ("before_proj",))):
            yield from layer(f"{block}.{name}", QWEN_WIDTH, QWEN_WIDTH)


def main() -> None:
    with torch.device("meta"):
        keys = {
            "sd3_diffusers": dict(sd3(masked=False)),
            "sd3_masked": dict(sd3(masked=True)),
            "sd3_large": dict(sd3_large()),
            "sd3_large_pooled": dict(sd3_large(pooled_width=256)),
            "flux_union": dict(flux(singles=4, modes=5)),
            "flux_doubles": dict(flux(singles=0)),
            "flux_masked": dict(flux(singles=4, masked=True)),
            "flux_xlabs": dict(flux_single_file(mistoline=False)),
            "flux_mistoline": dict(flux_single_file(mistoline=True)),
            "qwen_union": dict(qwen(5)),
            "qwen_masked": dict(qwen(20, masked=True)),
            "qwen_fun": dict(qwen_fun()),
        }
    (GOLDEN / "dit_control_keys.json").write_text(json.dumps(keys, indent=0))


if __name__ == "__main__":
    main()
