"""Where each tensor of the published layouts lives in the networks we build: prefix to prefix.

A table maps module names in the file to module names in diffusers' UNet2DConditionModel and AutoencoderKL or
transformers' CLIPTextModel; what follows the longest known prefix is the same on both sides. Pure: no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

from serve_app.models.families import (
    Architecture,
    DualTextArchitecture,
    TextArchitecture,
    TinyVaeArchitecture,
    UNetArchitecture,
    VaeArchitecture,
)
from serve_app.models.tensors import Tensors

_UNET_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_RES_BLOCK = {"nin_shortcut": "conv_shortcut"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

_DIFFUSERS_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of a VAE's attention in diffusers' own files of before 2023; the rest is named as in the network."""


_UNET_MODULES = (
    "conv_in",
    "time_embedding",
    "class_embedding",
    "down_blocks",
    "mid_block",
    "up_blocks",
    "conv_norm_out",
    "conv_out",
)
TINY_LAYERS = 20
"""More layers than either half of a TAESD has."""

_TEXT_MODULES = ("embeddings", "encoder", "final_layer_norm")
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn": "self_attn",
}

Layout: TypeAlias = Literal["single", "diffusers", "open_clip"]
"""Whose names a file has: the published single file's, diffusers' and transformers', or, for text, OpenCLIP's."""


class Place(NamedTuple):
    """Where a tensor of the file goes. third: which third of its rows goes there, if not all. transposed: sideways."""

    name: str
    third: int | None = None
    transposed: bool = False


_OPEN_CLIP_ROOT = {
    "positional_embedding": Place("embeddings.position_embedding.weight"),
    "text_projection": Place("text_projection.weight", transposed=True),
}


def layout_of(tensors: Tensors) -> Layout:
    """Return whose names a part's tensors have."""
    if tensors.has("transformer.resblocks."):
        return "open_clip"
    marks = ("down_blocks.", "encoder.down_blocks.", "text_model.")
    return "diffusers" if any(tensors.has(mark) for mark in marks) else "single"


def table(architecture: Architecture, layout: Layout = "single") -> dict[str, str]:
    """Return module names in the file -> module names in the network, both without a trailing dot.

    Of a DualTextArchitecture the encoders have tables of their own; the network has them as `l` and `g`.
    """
    match architecture:
        case UNetArchitecture() if layout == "diffusers":
            return {name: name for name in _UNET_MODULES} | {"add_embedding": "class_embedding"}
        case UNetArchitecture():
            return dict(_unet(architecture))
        case VaeArchitecture() if layout == "diffusers":
            return dict(_diffusers_vae())
        case VaeArchitecture():
            return dict(_vae(architecture))
        case TinyVaeArchitecture():
            # Each half's file counts its layers; the network has them below the half's name.
            return {str(layer): str(layer) for layer in range(TINY_LAYERS)}
        case TextArchitecture() if layout == "open_clip":
            return dict(_open_clip(architecture))
        case TextArchitecture():
            inside = "text_model." if layout == "diffusers" else ""
            return {inside + name: name for name in _TEXT_MODULES} | {"text_projection": "text_projection"}
        case DualTextArchitecture():
            raise TypeError("each of two text encoders has a table of its own")


def places(name: str, prefixes: Mapping[str, str]) -> tuple[Place, ...]:
    """Return where a tensor of the file goes by a table; () if nowhere."""
    if (place := _OPEN_CLIP_ROOT.get(name)) is not None:
        return (place,)
    if (ours := translate(name, prefixes)) is None:
        return ()
    attention, fused, kind = ours.partition(".in_proj_")
    if fused:
        return tuple(Place(f"{attention}.{part}_proj.{kind}", third) for third, part in enumerate("qkv"))
    return (Place(ours),)


def translate(name: str, prefixes: Mapping[str, str]) -> str | None:
    """Return the name with its longest known prefix replaced, or None if no prefix of it is known."""
    end = len(name)
    while (end := name.rfind(".", 0, end)) > 0:
        if (prefix := prefixes.get(name[:end])) is not None:
            return prefix + name[end:]
    return None


def _inside(file: str, network: str, children: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield file, network
    for theirs, ours in children.items():
        yield f"{file}.{theirs}", f"{network}.{ours}"


def _unet(architecture: UNetArchitecture) -> Iterator[tuple[str, str]]:
    if architecture.vector_dim:
        yield "label_emb.0.0", "class_embedding.linear_1"
        yield "label_emb.0.2", "class_embedding.linear_2"
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "input_blocks.0.0", "conv_in"
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"
    yield from _inside("middle_block.0", "mid_block.resnets.0", _UNET_RES_BLOCK)
    yield "middle_block.1", "mid_block.attentions.0"
    yield from _inside("middle_block.2", "mid_block.resnets.1", _UNET_RES_BLOCK)
    levels = list(zip(architecture.res_blocks, architecture.depths, strict=True))
    last = len(levels) - 1
    block = 1
    for level, (res_blocks, depth) in enumerate(levels):
        for i in range(res_blocks):
            yield from _inside(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{i}", _UNET_RES_BLOCK)
            if depth:
                yield f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{i}"
            block += 1
        if level != last:
            yield f"input_blocks.{block}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            block += 1
    block = 0
    for level, (res_blocks, depth) in enumerate(reversed(levels)):
        for i in range(res_blocks + 1):
            yield from _inside(f"output_blocks.{block}.0", f"up_blocks.{level}.resnets.{i}", _UNET_RES_BLOCK)
            if depth:
                yield f"output_blocks.{block}.1", f"up_blocks.{level}.attentions.{i}"
            if i == res_blocks and level != last:
                yield f"output_blocks.{block}.{2 if depth else 1}.conv", f"up_blocks.{level}.upsamplers.0.conv"
            block += 1


def _vae(architecture: VaeArchitecture) -> Iterator[tuple[str, str]]:
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"
    last = len(architecture.channels) - 1
    for half in ("encoder", "decoder"):
        yield f"{half}.conv_in", f"{half}.conv_in"
        yield f"{half}.norm_out", f"{half}.conv_norm_out"
        yield f"{half}.conv_out", f"{half}.conv_out"
        yield from _inside(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", _VAE_ATTENTION)
        for i in (0, 1):
            yield from _inside(f"{half}.mid.block_{i + 1}", f"{half}.mid_block.resnets.{i}", _VAE_RES_BLOCK)
    for level in range(last + 1):
        # The file counts the decoder's levels from the finest, the network from the coarsest.
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{last - level}"
        for i in range(architecture.res_blocks):
            yield from _inside(f"encoder.down.{level}.block.{i}", f"{down}.resnets.{i}", _VAE_RES_BLOCK)
        for i in range(architecture.res_blocks + 1):
            yield from _inside(f"decoder.up.{level}.block.{i}", f"{up}.resnets.{i}", _VAE_RES_BLOCK)
        if level != last:
            yield f"encoder.down.{level}.downsample.conv", f"{down}.downsamplers.0.conv"
        if level:
            yield f"decoder.up.{level}.upsample.conv", f"{up}.upsamplers.0.conv"


def _diffusers_vae() -> Iterator[tuple[str, str]]:
    for name in ("quant_conv", "post_quant_conv", "encoder", "decoder"):
        yield name, name
    for half in ("encoder", "decoder"):
        attention = f"{half}.mid_block.attentions.0"
        yield from _inside(attention, attention, _DIFFUSERS_VAE_ATTENTION)


def _open_clip(architecture: TextArchitecture) -> Iterator[tuple[str, str]]:
    yield "token_embedding", "embeddings.token_embedding"
    yield "ln_final", "final_layer_norm"
    for layer in range(architecture.layers):
        yield from _inside(f"transformer.resblocks.{layer}", f"encoder.layers.{layer}", _OPEN_CLIP_LAYER)
