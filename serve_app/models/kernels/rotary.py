"""Rotary positions of queries and keys: one kernel on a GPU where comfy_kitchen is installed, torch's own elsewhere.

In torch a rotation in half precision is three passes over each tensor; comfy_kitchen's kernel is one over both, with
the norms before it. Source of rotary positions: Su et al. 2021, arXiv:2104.09864.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from serve_app.models.kernels.comfy_kitchen import has_kernels


def turns_of(angles: Tensor) -> Tensor:
    """Return rotary positions for `rotated` from angles (…,n,d/2) in radians.

    Complex numbers (…,n,d/2), or rotation matrices (…,n,d/2,2,2) where a fused kernel reads them.
    """
    if has_kernels(angles.device):
        cos, sin = angles.cos(), angles.sin()
        return torch.unflatten(torch.stack([cos, -sin, sin, cos], dim=-1), -1, (2, 2)).float()
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


Heads: TypeAlias = Callable[[str], Tensor]
"""Returns the heads (R,n,H,d) of a kind, "q" or "k"."""


def rotated(q: Tensor, k: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and keys (R,n,H,d), rotated in pairs of neighbours. turns: (n,…) or (R,n,…), of `turns_of`."""
    if turns.is_complex():
        return _rotated(q, turns), _rotated(k, turns)
    made: tuple[Tensor, Tensor] = torch.ops.comfy_kitchen.apply_rope(q, k, _by_heads(turns))
    return made


def made_and_rotated(heads: Heads, turns: Tensor) -> tuple[Tensor, Tensor]:
    """Return as `rotated`. Where they need not be together, queries are rotated before keys are made."""
    if turns.is_complex():
        return _rotated(heads("q"), turns), _rotated(heads("k"), turns)
    return rotated(heads("q"), heads("k"), turns)


def normed_and_rotated(heads: Heads, norms: tuple[nn.Module, nn.Module], turns: Tensor) -> tuple[Tensor, Tensor]:
    """Return as `made_and_rotated`, after RMS norms of each head. norms: of queries and of keys, with one epsilon."""
    of_q, of_k = norms
    if turns.is_complex() or any(map(_is_patched, norms)):
        return made_and_rotated(lambda kind: (of_q if kind == "q" else of_k)(heads(kind)), turns)
    made: tuple[Tensor, Tensor] = torch.ops.comfy_kitchen.rms_rope(
        heads("q"), heads("k"), _by_heads(turns), of_q.weight, of_k.weight, of_q.eps
    )
    return made


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    dtype, single = x.dtype, x.float()
    is_copy = single is not x
    # At the sizes of videos each of these takes gigabytes.
    del x
    pairs = torch.view_as_complex(torch.unflatten(single, -1, (-1, 2)))
    turned = pairs.mul_(turns.unsqueeze(-2)) if is_copy else pairs * turns.unsqueeze(-2)
    return torch.view_as_real(turned).flatten(-2).to(dtype)


def _by_heads(turns: Tensor) -> Tensor:
    """Return rotation matrices (n,…) or (R,n,…) as (1,n,1,…) or (R,n,1,…)."""
    return (turns if turns.ndim == 5 else turns[None])[:, :, None]


def _is_patched(norm: nn.Module) -> bool:
    """Whether a LoRA or a hook changes what a layer computes."""
    return "forward" in norm.__dict__ or bool(norm._forward_hooks)
