"""MiniMax H3's sparse attention beside dense attention, and beside a plain reading of "vsa"."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from serve_app.errors import NodeError
from serve_app.models.families.family import Rows
from serve_app.models.families.video.minimax_h3 import TRAINING, MiniMaxH3
from serve_app.models.families.video.minimax_h3_sparse import BLOCK, is_sparse, sequenced, sparse_attention, tiles_of
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.nested_tensor import NestedTensor
from serve_app.nodes.model.layer_patches import block_sparse_attention, scale_rope
from serve_app.recipe.layers import ScaledPositions, SparseAttention
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.forward import Canvas
from serve_app.sampling.guidance.layers import LayerPatches
from serve_app.sampling.latents.layout import LatentLayout
from serve_app.sampling.schedules.levels import FlowLevels
from tests.parity import minimax_h3_cases as cases
from tests.parity.dit_cases import noise

pytest.importorskip("comfy_kitchen")
CPU = torch.device("cpu")
SIZE = (6, 20, 24)
LENGTHS = (70, 26, 6 * 10 * 12)
"""Text, sound and video."""
HEADS, HEAD = 2, 128
GATE = "blocks.{}.attn.to_gate_compress.weight"


def qkv() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (noise(kind, (1, sum(LENGTHS), HEADS, HEAD)) for kind in "qkv")
    return q, k, v


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (rows.transpose(1, 2) for rows in (q, k, v))
    found = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return found.transpose(1, 2).flatten(2)


def test_each_row_has_one_place_and_blocks_are_cubes_of_the_video() -> None:
    tiles = tiles_of(LENGTHS, SIZE)
    assert tiles.source[tiles.place].tolist() == list(range(sum(LENGTHS)))
    assert int((tiles.source >= 0).sum()) == int(tiles.lengths.sum()) == sum(LENGTHS)
    # Two blocks of text, one of sound, then cubes by frame, row and column.
    assert tiles.lengths[:3].tolist() == [64, 6, 26]
    first = tiles.source[3 * BLOCK : 4 * BLOCK] - sum(LENGTHS[:2])
    assert {(int(row) // 120, int(row) // 12 % 10, int(row) % 12) for row in first} == {
        (frame, row, column) for frame in range(4) for row in range(4) for column in range(4)
    }
    for block, length in zip(tiles.source.view(-1, BLOCK), tiles.lengths.tolist(), strict=True):
        assert (block[:length] >= 0).all()
        assert (block[length:] < 0).all()


def test_vsa_attends_to_the_best_cubes_and_adds_the_gated_means() -> None:
    q, k, v = qkv()
    gate = noise("gate", q.shape)
    tiles = tiles_of(LENGTHS, SIZE)
    found = sparse_attention(SparseAttention("vsa", 20.0), q, k, v, sequenced(LENGTHS, tiles), gate)
    block_of = tiles.place // BLOCK
    blocks = len(tiles.lengths)
    pooled = [torch.stack([rows[0][block_of == b].mean(0) for b in range(blocks)]) for rows in (q, k, v)]
    scores = torch.einsum("qhd,khd->hqk", pooled[0], pooled[1]) / HEAD**0.5
    coarse = torch.einsum("hqk,khd->qhd", scores.softmax(-1), pooled[2])[block_of] * gate[0]
    video = scores[:, :, 3:]
    best = video >= video.topk(round(0.2 * video.shape[2]), dim=-1).values[..., -1:]
    near = (torch.arange(blocks)[:, None] - torch.arange(blocks)).abs() <= 1
    chosen = torch.cat([torch.ones_like(scores[:, :, :3], dtype=torch.bool), best], dim=2) | near
    chosen[:, :3] = True
    theirs = dense(q, k, v, chosen[:, block_of][:, :, block_of][None]) + coarse.flatten(1)[None]
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5)
    assert not chosen.all()


def test_the_other_methods_end_at_dense_attention_when_everything_is_kept() -> None:
    q, k, v = qkv()
    at = sequenced(LENGTHS, None)
    assert at[:2] == (2, 1)
    everything = sparse_attention(SparseAttention("sol-attn", -1e9), q, k, v, at, None)
    torch.testing.assert_close(everything, dense(q, k, v), rtol=1e-4, atol=1e-5)
    kept = sparse_attention(SparseAttention("sla", 30.0), q, k, v, at, None)
    # The sound's block of queries attends to all.
    torch.testing.assert_close(kept[:, 64:96], dense(q, k, v)[:, 64:96], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(kept, dense(q, k, v), atol=1e-3)


def test_what_is_short_or_in_a_dense_block_or_has_no_kernel_is_dense() -> None:
    q = torch.zeros(1, 300, HEADS, HEAD)
    patch = SparseAttention("vsa", 10.0, dense=frozenset({1}), least=300)
    assert is_sparse(patch, 0, q)
    assert not is_sparse(patch, 1, q)
    assert not is_sparse(patch, 0, q[:, :299])
    assert not is_sparse(patch, 0, q.expand(9000, -1, -1, -1))
    assert not is_sparse(None, 0, q)


def network(gates: bool, folder: Path) -> tuple[Any, Any]:
    tensors = cases.file("pruned")
    for number in range(2):
        tensors[GATE.format(number)] = noise(f"gate {number}", (256, 64)) * float(gates)
    save_file(tensors, path := folder / "fast.safetensors")
    family, made = Checkpoint(path).load("backbone")
    assert isinstance(family, MiniMaxH3)
    assert family.gated
    return family, made


def rows_of(family: Any, name: str, *layers: Any) -> Rows:
    case = cases.CASES[1]
    given = cases.asked(case)
    samples = NestedTensor([given.video, given.sound])
    layout = LatentLayout.of(samples)
    x = layout.pack(samples) + noise(name, (1, 1, 1))
    inputs = family.inputs(given.text, given.options, "positive", Canvas(x, x, None, cases.SEED, layout), CPU, TRAINING)
    return Rows(x, 0.7, torch.tensor([700.0]), inputs, layers=layers, training=TRAINING)


@torch.inference_mode()
def test_a_network_whose_gate_is_shut_computes_the_same_where_all_cubes_are_near(tmp_path: Path) -> None:
    sparse = SparseAttention("vsa", 10.0, least=0)
    family, made = network(False, tmp_path)
    [plain] = family.forward(made, [rows_of(family, "a")])
    [patched] = family.forward(made, [rows_of(family, "a", sparse)])
    torch.testing.assert_close(patched, plain, rtol=1e-4, atol=1e-5)
    family, made = network(True, tmp_path)
    alone = [family.forward(made, [row])[0] for row in (rows_of(family, "a", sparse), rows_of(family, "b"))]
    together = family.forward(made, [rows_of(family, "a", sparse), rows_of(family, "b")])
    for own, shared in zip(alone, together, strict=True):
        torch.testing.assert_close(shared, own, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone[0], plain, atol=1e-3)


def test_it_acts_between_two_shares_of_the_sampling() -> None:
    patch = SparseAttention("vsa", 10.0, 0.2, 0.9)
    layers = LayerPatches([patch], FlowLevels(1.0, 1000.0), torch.Generator)
    assert [bool(layers.at(sigma)) for sigma in (0.95, 0.79, 0.3, 0.11, 0.05)] == [False, True, True, True, False]


class Family:
    """The runtime of a model of a family."""

    def __init__(self, title: str) -> None:
        self.title = title

    async def family(self, recipe: Recipe) -> Any:
        return self


async def test_nodes_patch_the_models_that_read_the_patch_and_refuse_others() -> None:
    model = Recipe("backbone", "diffusion_models", "a.safetensors")
    selection = {"selection": "vsa", "keep_percent": 12.5}
    rest = (0.2, 1.0, "0, 2-3", 0, 256, "off", False)
    h3, wan, flux = (cast("Any", Family(title)) for title in ("MiniMax H3", "Wan 2.2", "Flux.1"))
    patched = await block_sparse_attention(model, selection, *rest, h3)
    assert patched.last(SparseAttention) == SparseAttention("vsa", 12.5, 0.2, 1.0, frozenset({0, 2, 3}), 0, 256, "off")
    with pytest.raises(NodeError, match=r"the model is one of Flux.1; attention is sparse for MiniMax H3 alone"):
        await block_sparse_attention(model, selection, *rest, flux)
    moved = await scale_rope(model, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, wan)
    assert moved.last(ScaledPositions) == ScaledPositions((5.0, 3.0, 1.0), (6.0, 4.0, 2.0))
    with pytest.raises(NodeError, match=r"the model is one of Flux.1; positions are scaled for Wan alone"):
        await scale_rope(model, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, flux)
