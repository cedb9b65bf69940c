"""Tensor names of HunyuanVideo's files: the authors', and those that ComfyUI saves, which are Flux.1's.

The network's names are diffusers'. Second source of the authors' names: diffusers' single-file conversion.
"""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.models.families.dit import flux_names
from serve_app.models.families.dit.flux_names import TWO_LAYERS, Entry
from serve_app.models.families.shared.dit import thirds
from serve_app.models.files.layout import Place

_STREAMS = ("img_attn", "txt_attn")
_EMBEDDERS = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}
_SEQUENTIAL = {"mlp.0": "linear_1", "mlp.2": "linear_2"}
_REFINER = "txt_in.individual_token_refiner.blocks"


def all_names(width: int, doubles: int, singles: int, refiners: int) -> Iterator[Entry]:
    """Yield all names of a file, in both layouts, and the network's."""
    yield from _ends()
    for number in range(refiners):
        yield from _refiner(number, width)
    for number in range(doubles):
        for theirs, ours in flux_names.double_block(number, width):
            yield theirs, ours
            yield _authors(theirs), ours
    for number in range(singles):
        for theirs, ours in flux_names.single_block(number, width, 4 * width):
            yield theirs, ours
            yield _authors(theirs), ours
    for theirs, ours in flux_names.modulation(doubles, singles):
        yield theirs, ours
        yield _authors(theirs), ours


def _authors(name: str) -> str:
    """Return the authors' name of a layer that Flux.1 has too."""
    for stream in _STREAMS:
        for kind in ("query", "key"):
            name = name.replace(f"{stream}.norm.{kind}_norm.", f"{stream}_{kind[0]}_norm.")
        name = name.replace(f"{stream}.", f"{stream}_")
    for kind in ("query", "key"):
        name = name.replace(f".norm.{kind}_norm.", f".{kind[0]}_norm.")
    for theirs, ours in (("_mlp.0", "_mlp.fc1"), ("_mlp.2", "_mlp.fc2"), ("_mod.lin", "_mod.linear")):
        name = name.replace(theirs, ours)
    return name.replace("modulation.lin", "modulation.linear")


def _ends() -> Iterator[Entry]:
    """Yield the names of layers outside blocks."""
    yield "img_in.proj", "x_embedder"
    yield "txt_in.input_embedder", "context_embedder.proj_in"
    yield "final_layer.linear", "proj_out"
    for theirs, ours in _EMBEDDERS.items():
        for layers in (TWO_LAYERS, _SEQUENTIAL):
            yield from ((f"{theirs}.{a}", f"time_text_embed.{ours}.{b}") for a, b in layers.items())
    inner = "context_embedder.time_text_embed"
    for theirs, ours, layers in (
        ("t_embedder", "timestep_embedder", TWO_LAYERS | _SEQUENTIAL),
        ("c_embedder", "text_embedder", TWO_LAYERS | {name: name for name in TWO_LAYERS.values()}),
    ):
        yield from ((f"txt_in.{theirs}.{a}", f"{inner}.{ours}.{b}") for a, b in layers.items())
    yield "byt5_in.layernorm", "context_embedder_2.norm"
    yield from ((f"byt5_in.fc{number}", f"context_embedder_2.linear_{number}") for number in (1, 2, 3))
    for number, part in enumerate(("norm_in", "linear_1", "", "linear_2", "norm_out")):
        if part:
            yield f"vision_in.proj.{number}", f"image_embedder.{part}"
    yield "cond_type_embedding", "cond_type_embed"


def _refiner(number: int, width: int) -> Iterator[Entry]:
    theirs, ours = f"{_REFINER}.{number}", f"context_embedder.token_refiner.refiner_blocks.{number}"
    fused: tuple[Place, ...] = thirds(width, *(f"{ours}.attn.to_{kind}" for kind in "qkv"))
    for dot in "._":
        yield f"{theirs}.self_attn{dot}qkv", fused
        yield f"{theirs}.self_attn{dot}proj", f"{ours}.attn.to_out.0"
    for first, second in (("0", "2"), ("fc1", "fc2")):
        yield f"{theirs}.mlp.{first}", f"{ours}.ff.net.0.proj"
        yield f"{theirs}.mlp.{second}", f"{ours}.ff.net.2"
    yield from ((f"{theirs}.{norm}", f"{ours}.{norm}") for norm in ("norm1", "norm2"))
    yield f"{theirs}.adaLN_modulation.1", f"{ours}.norm_out.linear"
