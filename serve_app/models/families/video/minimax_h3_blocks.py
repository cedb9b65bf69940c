"""The blocks of MiniMax H3 over a sequence of rows of several kinds, each modulated by its time and kind.

Its ControlNet's blocks are the same. Run by the layers of diffusers' MiniMaxH3Transformer3DModel. Source: MiniMax 2026,
MiniMax-H3; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from serve_app.models.families.shared.dit import thirds
from serve_app.models.files.layout import Place, Table

KINDS = 3
"""Kinds of rows, each with a modulation of its own: VISION_TAG, TEXT_TAG, SOUND_TAG."""
ROPE, THETA = 16, 10000.0
"""Frequencies of each of the three axes."""

_ATTENTION = {
    "q_norm": "norm_q",
    "k_norm": "norm_k",
    "out_proj": "to_out.0",
    "to_gate_compress": "to_gate_compress",
}
Attention: TypeAlias = Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]
"""From an attention layer, its input (R,n,W), and queries, keys and values (R,n,H,d) to its output (R,n,H·d)."""


class Modulated(NamedTuple):
    """Rows start…end of a sequence with one modulation: of time number `time` and of a kind.

    time: or the numbers of every row's, (R,n).
    """

    start: int
    end: int
    time: int | Tensor
    kind: int


def block_names(theirs: str, ours: str, inner: int) -> Table:
    """Return the names of a block's layers in a file and in diffusers' network. inner: the width of all heads."""
    return {
        **{f"{theirs}.{name}": f"{ours}.{name}" for name in ("norm1", "norm2", "adaln_proj")},
        **{f"{theirs}.attn.{a}": f"{ours}.attn.{b}" for a, b in _ATTENTION.items()},
        f"{theirs}.attn.qkv_proj": thirds(inner, *(f"{ours}.attn.to_{kind}" for kind in "qkv")),
        # diffusers has the values before the gates.
        f"{theirs}.mlp.fc1": (Place(f"{ours}.ff.net.0.proj", swapped=True),),
        f"{theirs}.mlp.fc2": f"{ours}.ff.net.2",
    }


def turns_of(at: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (n,1,3·ROPE) of positions (n,3)."""
    steps = torch.arange(0, 2 * ROPE, 2, dtype=torch.float32, device=at.device) / (2 * ROPE)
    turned = (at[..., None] * (1.0 / THETA**steps)).flatten(1)[:, None]
    return turned.cos().to(dtype), turned.sin().to(dtype)


def _rotated(heads: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Return heads (R,n,H,d) with their first numbers rotated: each with the one half of these further."""
    cos, sin = turns
    half = cos.shape[-1]
    first, second, rest = torch.split(heads, [half, half, heads.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def modulation_of(by_time: Tensor, part: Modulated, number: int) -> Tensor:
    """Return a shift, scale or gate of rows, (R,1,W) or (R,n,W). by_time: (R,M,kinds,K,W)."""
    of_kind = by_time[:, :, part.kind, number]
    if isinstance(part.time, int):
        return of_kind[:, part.time, None]
    return torch.take_along_dim(of_kind, part.time[..., None], dim=1)


def through_block(
    block: Any,
    sequence: Tensor,
    times: Tensor,
    plan: Sequence[Modulated],
    turns: tuple[Tensor, Tensor],
    attention: Attention,
) -> Tensor:
    """Return a block's output for a sequence (R,n,W), a rank's shard. times: embedded, (R·M,time_width)."""
    rows, width = len(sequence), sequence.shape[2]
    by_time = block.adaln_proj.linear(times).to(sequence.dtype).view(rows, -1, KINDS, 6, width)
    attn = block.attn
    inner = _modulated(block.norm1(sequence), by_time, plan, 0)
    q, k, v = (torch.unflatten(getattr(attn, f"to_{kind}")(inner), -1, (attn.heads, -1)) for kind in "qkv")
    found = attention(attn, inner, _rotated(attn.norm_q(q), turns), _rotated(attn.norm_k(k), turns), v)
    sequence = _gated(sequence, attn.to_out[0](found), by_time, plan, 2)
    return _gated(sequence, block.ff(_modulated(block.norm2(sequence), by_time, plan, 3)), by_time, plan, 5)


def _modulated(normed: Tensor, by_time: Tensor, plan: Sequence[Modulated], first: int) -> Tensor:
    """Return a norm's output (R,n,W), which is changed in place, shifted and scaled by numbers first and first + 1."""
    for part in plan:
        rows = normed[:, part.start : part.end]
        rows.mul_(1 + modulation_of(by_time, part, first + 1)).add_(modulation_of(by_time, part, first))
    return normed


def _gated(sequence: Tensor, found: Tensor, by_time: Tensor, plan: Sequence[Modulated], number: int) -> Tensor:
    """Return a sequence with a layer's output, which is changed in place, times a gate."""
    for part in plan:
        found[:, part.start : part.end].mul_(modulation_of(by_time, part, number))
    return found.add_(sequence)
