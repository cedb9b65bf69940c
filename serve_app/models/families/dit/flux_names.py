"""Tensor names of Flux.1 and its derivatives in the published single files.

The network's names are those of diffusers' FluxTransformer2DModel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from serve_app.models.families.shared import dit
from serve_app.models.families.shared.dit import thirds
from serve_app.models.files.layout import Place, Table

Entry = tuple[str, "str | tuple[Place, ...]"]

TWO_LAYERS = {"in_layer": "linear_1", "out_layer": "linear_2"}
NORM_LEAVES = ("scale", "weight")
"""Names of a norm's only tensor, in the authors' files and in newer ones."""


def embedders(names: Sequence[str] = ("time_in", "vector_in", "guidance_in")) -> Iterator[Entry]:
    """Yield the names of the embedders of time, pooled text and guidance."""
    kinds = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}
    for name in names:
        for theirs, ours in TWO_LAYERS.items():
            yield f"{name}.{theirs}", f"time_text_embed.{kinds[name]}.{ours}"


def ends() -> Iterator[Entry]:
    """Yield the names of the first and last layers."""
    yield "img_in", "x_embedder"
    yield "txt_in", "context_embedder"
    yield "final_layer.linear", "proj_out"


def double_block(number: int, width: int, inside: Sequence[str] = ("net.0.proj", "net.2")) -> Iterator[Entry]:
    """Yield the names of a double-stream block, without modulation.

    inside: the network's names of the layers to and from a stream's hidden layer.
    """
    theirs, ours = f"double_blocks.{number}", f"transformer_blocks.{number}"
    for of, kinds, out, mlp, norm in (
        ("img", ("to_q", "to_k", "to_v"), "to_out.0", "ff", "norm"),
        ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context", "norm_added"),
    ):
        yield f"{theirs}.{of}_attn.qkv", thirds(width, *(f"{ours}.attn.{kind}" for kind in kinds))
        yield f"{theirs}.{of}_attn.proj", f"{ours}.attn.{out}"
        yield f"{theirs}.{of}_mlp.0", f"{ours}.{mlp}.{inside[0]}"
        yield f"{theirs}.{of}_mlp.2", f"{ours}.{mlp}.{inside[1]}"
        yield from _norms(f"{theirs}.{of}_attn", f"{ours}.attn.{norm}")


def single_block(number: int, width: int, inside: int) -> Iterator[Entry]:
    """Yield the names of a single-stream block, without modulation. inside: width of its hidden layer."""
    theirs, ours = f"single_blocks.{number}", f"single_transformer_blocks.{number}"
    fused = thirds(width, *(f"{ours}.attn.to_{kind}" for kind in "qkv"))
    yield f"{theirs}.linear1", (*fused, Place(f"{ours}.proj_mlp", rows=(3 * width, 3 * width + inside)))
    yield f"{theirs}.linear2", f"{ours}.proj_out"
    yield from _norms(theirs, f"{ours}.attn.norm")


def whole_single_block(number: int) -> Iterator[Entry]:
    """Yield the names of a single-stream block whose fused layers the network has fused too."""
    theirs, ours = f"single_blocks.{number}", f"single_transformer_blocks.{number}"
    yield f"{theirs}.linear1", f"{ours}.attn.to_qkv_mlp_proj"
    yield f"{theirs}.linear2", f"{ours}.attn.to_out"
    yield from _norms(theirs, f"{ours}.attn.norm")


def modulation(doubles: int, singles: int) -> Iterator[Entry]:
    """Yield the names of the layers from time to shifts, scales and gates."""
    for number in range(doubles):
        yield f"double_blocks.{number}.img_mod.lin", f"transformer_blocks.{number}.norm1.linear"
        yield f"double_blocks.{number}.txt_mod.lin", f"transformer_blocks.{number}.norm1_context.linear"
    for number in range(singles):
        yield f"single_blocks.{number}.modulation.lin", f"single_transformer_blocks.{number}.norm.linear"
    # The file has the shift first, the network the scale.
    yield "final_layer.adaLN_modulation.1", (Place("norm_out.linear", swapped=True),)


def lora_names(parameters: Sequence[str], table: Table, singles: int) -> Table:
    """Return layers' names in LoRA files -> the parameters they change. table: of the single file.

    Some files name attention's share of a fused layer.
    """
    names = dit.lora_names(parameters, table)
    for number in range(singles):
        layer = f"single_blocks.{number}.linear1"
        fused = [place for place in table[layer][:3] if isinstance(place, Place)]
        names[f"diffusion_model.{layer}_qkv"] = tuple(place._replace(name=f"{place.name}.weight") for place in fused)
    return names


def _norms(theirs: str, ours: str) -> Iterator[Entry]:
    for kind in ("query", "key"):
        for leaf in NORM_LEAVES:
            yield f"{theirs}.norm.{kind}_norm.{leaf}", f"{ours}_{kind[0]}.weight"
