"""Tensor names of Stable Diffusion's UNet: in the single file, in diffusers' and in LoRA files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from serve_app.models.files.layout import Table, inside, reverse, translate

DIFFUSERS: Table = {
    "conv_in": "conv_in",
    "time_embedding": "time_embedding",
    "class_embedding": "class_embedding",
    "down_blocks": "down_blocks",
    "mid_block": "mid_block",
    "up_blocks": "up_blocks",
    "conv_norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    "add_embedding": "class_embedding",
}
"""Module names in diffusers' files, and in its network."""

RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
"""A residual block's layers in the single file, and in diffusers' names."""


def single_file(res_blocks: Sequence[int], depths: Sequence[int], *, has_vector: bool) -> Iterator[tuple[str, str]]:
    """Yield module names in the published single file, and in diffusers' network.

    res_blocks, depths: of each level, finest first. has_vector: the network reads one.
    """
    if has_vector:
        yield "label_emb.0.0", "class_embedding.linear_1"
        yield "label_emb.0.2", "class_embedding.linear_2"
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "input_blocks.0.0", "conv_in"
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"
    yield from inside("middle_block.0", "mid_block.resnets.0", RES_BLOCK)
    yield "middle_block.1", "mid_block.attentions.0"
    yield from inside("middle_block.2", "mid_block.resnets.1", RES_BLOCK)
    levels = list(zip(res_blocks, depths, strict=True))
    last = len(levels) - 1
    block = 1
    for level, (blocks, depth) in enumerate(levels):
        for i in range(blocks):
            yield from inside(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{i}", RES_BLOCK)
            if depth:
                yield f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{i}"
            block += 1
        if level != last:
            yield f"input_blocks.{block}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            block += 1
    block = 0
    for level, (blocks, depth) in enumerate(reversed(levels)):
        for i in range(blocks + 1):
            yield from inside(f"output_blocks.{block}.0", f"up_blocks.{level}.resnets.{i}", RES_BLOCK)
            if depth:
                yield f"output_blocks.{block}.1", f"up_blocks.{level}.attentions.{i}"
            if i == blocks and level != last:
                yield f"output_blocks.{block}.{2 if depth else 1}.conv", f"up_blocks.{level}.upsamplers.0.conv"
            block += 1


def lora_names(parameters: Sequence[str], table: Table) -> dict[str, str]:
    """Return layers' names in LoRA files -> the network's parameters. table: of the single file."""
    to_file = reverse(table)
    names: dict[str, str] = {}
    for ours in parameters:
        layer, _, kind = ours.rpartition(".")
        if (theirs := translate(ours, to_file)) is not None:
            if kind != "weight":
                names[f"diffusion_model.{theirs}"] = ours
                continue
            file_layer = theirs.removesuffix(".weight")
            names[f"lora_unet_{file_layer.replace('.', '_')}"] = ours
            names[f"diffusion_model.{file_layer}"] = ours
        if kind == "weight":
            # SDXL's vector goes through what diffusers calls an added embedding.
            for name in (layer, layer.replace("class_embedding.", "add_embedding.")):
                flat = name.replace(".", "_")
                names[f"lora_unet_{flat}"] = names[f"lycoris_{flat}"] = ours
                # diffusers named attention by its processors up to 0.21; PEFT names the layer itself.
                processor = name.replace(".to_", ".processor.to_")
                for full in (name, processor.removesuffix(".0") if name.endswith(".to_out.0") else processor):
                    names[full] = names[f"unet.{full}"] = ours
    return names
