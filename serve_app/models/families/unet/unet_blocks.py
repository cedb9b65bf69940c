"""Blocks of a UNet for inference: diffusers' own, without work that no family here needs.

diffusers inspects a signature in every attention, repeats a mask for every head, divides by factors that are 1, and
recomputes an activation of the time in every residual block. For a GPU those are kernels, for the host a fifth of a
forward's work. Outputs are equal, to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.functional import silu


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Return attention over heads of queries (B,N,H·d), keys and values (B,M,H·d), as (B,N,H·d)."""
    q, k, v = (torch.unflatten(t, -1, (heads, -1)) for t in (q, k, v))
    found: Tensor = dispatch_attention_fn(q, k, v, attn_mask=mask)
    return found.flatten(-2)


class UnetAttention(Attention):  # type: ignore[misc]
    """Attention of a UNet's transformer blocks, which has no norms of its own."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return attention of x (R,n,D) to the text (R,T,C), or to x. attention_mask: added to logits, (R,1,T).

        The names of arguments are diffusers'.
        """
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = None if attention_mask is None else attention_mask[:, None]
        found = attention(self.to_q(hidden_states), self.to_k(text), self.to_v(text), self.heads, mask)
        out: Tensor = self.to_out[0](found)
        return out


class UnetResidual(ResnetBlock2D):  # type: ignore[misc]
    """A residual block of a UNet whose time input is already activated."""

    def forward(self, input_tensor: Tensor, temb: Tensor) -> Tensor:
        """Return the block's output for x (R,C,h,w) and the time (R,E). The names of arguments are diffusers'."""
        made = self.conv1(silu(self.norm1(input_tensor)))
        made = self.conv2(silu(self.norm2(made + self.time_emb_proj(temb)[:, :, None, None])))
        out: Tensor = (input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)) + made
        return out


def slimmed(network: Any) -> nn.Module:
    """Return a UNet2DConditionModel with its blocks replaced by these."""
    ours = {Attention: UnetAttention, ResnetBlock2D: UnetResidual}
    for module in network.modules():
        if (kind := ours.get(type(module))) is not None:
            # Only the class changes, so patches and hooks on modules keep working.
            module.__class__ = kind
    network.time_embed_act = nn.SiLU()
    slim: nn.Module = network
    return slim
