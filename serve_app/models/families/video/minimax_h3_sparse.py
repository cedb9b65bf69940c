"""Sparse attention of MiniMax H3: the video's rows attend to the best blocks of 64 rows, by comfy_kitchen's kernels.

"vsa" cuts the video into cubes of 4×4×4 rows, which FastH3's files are trained for, with a gate for a coarse branch
over the means of blocks. "sla" and "sol-attn" take the rows in order. Sources: Zhang et al. 2025 (VSA),
arXiv:2505.13389; Zhang et al. 2025 (SLA), arXiv:2509.24006; the rules of ComfyUI 0.46's BlockSparseAttention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from serve_app.models.families.video.minimax_h3_sequence import PATCH, Size
from serve_app.models.kernels.comfy_kitchen import has_kernels, is_installed
from serve_app.recipe.layers import SparseAttention

BLOCK = 64
"""Rows of a block of queries or of keys."""
_CUBE = 4
_HEAD = 128
"""Width of the heads that the kernels take."""
_LARGEST_SCORES = 1 << 28
"""Most scores that are computed where there are no kernels, all at a time; beyond, attention is dense."""


class Tiles(NamedTuple):
    """A sequence's rows in blocks: those before the video by segment, the video's by cube, each filled up.

    source: (N,) the row at each place, -1 for filling; place: (n,) of each row; lengths: (N/64,) real rows of each
    block, int32, which come first.
    """

    source: Tensor
    place: Tensor
    lengths: Tensor


class Sequenced(NamedTuple):
    """Where a sequence's kinds are. before: blocks, begun or whole, before the video's rows; sound: block in which the
    sound begins; tiles: None but for "vsa", and `before` counts its blocks then.
    """

    before: int
    sound: int
    tiles: Tiles | None = None


@lru_cache(maxsize=8)
def tiles_of(lengths: tuple[int, ...], size: Size) -> Tiles:
    """Return the tiles of a sequence. lengths: of its segments, the video's last; size: of the video's latents."""
    frames, rows, columns = size[0], size[1] // PATCH, size[2] // PATCH
    parts, start = [], 0
    for length in lengths[:-1]:
        parts.append(pad(torch.arange(start, start + length), (0, -length % BLOCK), value=-1).view(-1, BLOCK))
        start += length
    video = torch.arange(start, start + frames * rows * columns).view(frames, rows, columns)
    filled = pad(video, (0, -columns % _CUBE, 0, -rows % _CUBE, 0, -frames % _CUBE), value=-1)
    cut = filled.view(*(side for axis in filled.shape for side in (axis // _CUBE, _CUBE)))
    cubes = cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, BLOCK)
    # Filling is last in a block.
    parts.append(cubes.gather(1, (cubes < 0).to(torch.int8).argsort(dim=1, stable=True)))
    blocks = torch.cat(parts)
    source = blocks.flatten()
    place = torch.empty(start + video.numel(), dtype=torch.long)
    place[source[source >= 0]] = (source >= 0).nonzero()[:, 0]
    return Tiles(source, place, (blocks >= 0).sum(dim=1).to(torch.int32))


def sequenced(lengths: Sequence[int], tiles: Tiles | None) -> Sequenced:
    """Return where a sequence's kinds are. lengths: of its segments, the sound's and the video's last."""
    before = sum(lengths[:-1])
    if tiles is not None:
        return Sequenced(sum(-(-length // BLOCK) for length in lengths[:-1]), 0, tiles)
    return Sequenced(-(-before // BLOCK), (before - lengths[-2]) // BLOCK)


def is_sparse(patch: SparseAttention | None, block: int, q: Tensor) -> bool:
    """Whether a block's attention is sparse for queries (R,n,H,d); where nothing computes it, it is dense."""
    if patch is None or block in patch.dense or q.shape[1] < patch.least:
        return False
    if has_kernels(q.device):
        available = bool(import_module("comfy_kitchen").sol_attn_is_available(q.device))
        return available and q.shape[3] == _HEAD and q.dtype in (torch.bfloat16, torch.float16)
    return q.device.type == "cpu" and is_installed() and q.shape[:3].numel() * q.shape[1] <= _LARGEST_SCORES


def sparse_attention(
    patch: SparseAttention, q: Tensor, k: Tensor, v: Tensor, at: Sequenced, gate: Tensor | None
) -> Tensor:
    """Return the attention output (R,n,H·d) of rows (R,n,H,d). gate: of the coarse branch, as q, which "vsa" adds."""
    keep = patch.amount / 100
    if at.tiles is not None:
        q, k, v = (_tiled(rows, at.tiles) for rows in (q, k, v))
        whole = [0, at.before]
        found = _kernel()(
            q,
            k,
            v,
            sink_blocks=whole,
            sink_q=whole,
            topk_ratio=keep,
            tail=False,
            block_len=at.tiles.lengths,
            coarse_gate=None if gate is None else _tiled(gate, at.tiles),
        )
        return found[:, at.tiles.place].flatten(2)
    whole = [0, 0] if patch.sinks == "off" else [0, at.before]
    found = _kernel()(
        q,
        k,
        v,
        sink_blocks=whole,
        sink_q=[at.sound, at.before] if patch.sinks == "exact_kv_and_rows" else [0, 0],
        token_aug=patch.extra,
        **({"topk_ratio": keep} if patch.method == "sla" else {"tau": patch.amount}),
    )
    return found.flatten(2)


def _kernel() -> Callable[..., Tensor]:
    computed: Callable[..., Tensor] = import_module("comfy_kitchen").sol_attn
    return computed


def _tiled(rows: Tensor, tiles: Tiles) -> Tensor:
    """Return rows (R,n,H,d) in their places (R,N,H,d), zeros between."""
    real = (tiles.source >= 0)[:, None, None]
    return rows[:, tiles.source.clamp(min=0)] * real
