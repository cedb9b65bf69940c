"""Blocks of diffusion transformers for inference: diffusers' own, with fewer passes over the tokens.

A separate sum, product or cast is another pass over all tokens, and at the sizes of images and videos passes take as
long as matrix products. A norm is one kernel here, a modulation one, a gate and its sum one, and queries and keys are
rotated together. Names of arguments are diffusers'. `temb` is activated already, once for all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from torch import Tensor, addcmul, nn
from torch.nn.functional import rms_norm

from serve_app.models.kernels.rotary import normed_and_rotated

Layer: TypeAlias = Callable[[Tensor], Tensor]


class FusedRMSNorm(RMSNorm):  # type: ignore[misc]
    """diffusers' RMS norm as torch's one kernel; like ComfyUI's, it rounds once."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.dim, self.weight, self.eps)


class FluxDouble(FluxTransformerBlock):  # type: ignore[misc]
    """A block of Flux.1 with separate streams of text and image."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the text (R,T,W) and the image (R,n,W). temb: (R,W), activated.

        image_rotary_emb: of text and image, as `turns_of`. attention_mask: of text and image, as `by_heads`.
        """
        attn, length = self.attn, encoder_hidden_states.shape[1]
        of_text, of_image = (_parts(norm.linear(temb), 6) for norm in (self.norm1_context, self.norm1))
        text, image = joint_attention(
            attn,
            modulated(self.norm1_context.norm, encoder_hidden_states, *of_text[:2]),
            modulated(self.norm1.norm, hidden_states, *of_image[:2]),
            (image_rotary_emb[:length], image_rotary_emb[length:]),
            attention_mask,
        )
        image = _finished(hidden_states, image, of_image[2:], self.norm2, self.ff)
        text = _finished(encoder_hidden_states, text, of_text[2:], self.norm2_context, self.ff_context)
        return _within_range(text), image


class FluxSingle(FluxSingleTransformerBlock):  # type: ignore[misc]
    """A block of Flux.1 with text and image as one stream."""

    def forward(
        self, hidden_states: Tensor, temb: Tensor, image_rotary_emb: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Return the stream (R,T+n,W), the text first. Arguments: as `FluxDouble`."""
        shift, scale, gate = _parts(self.norm.linear(temb), 3)
        inner = modulated(self.norm.norm, hidden_states, shift, scale)
        found = attention_output(*projected(self.attn, inner, "to_{}", "norm_{}", image_rotary_emb), attention_mask)
        made = self.proj_out(torch.cat([found, self.act_mlp(self.proj_mlp(inner))], dim=2))
        return _within_range(addcmul(hidden_states, made, gate))


class QwenImageBlock(QwenImageTransformerBlock):  # type: ignore[misc]
    """A block of Qwen-Image."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
        modulate_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the text (R,T,W) and the image (R,n,W).

        temb: (R,W), activated; with `modulate_index`, (R,n), (2R,W): its second half is for the tokens that are 1.
        image_rotary_emb: of the image and of the text.
        """
        of_image = _parts(self.img_mod[1](temb), 6)
        if modulate_index is not None:
            rows, first = len(hidden_states), modulate_index[..., None] == 0
            of_image = [torch.where(first, part[:rows], part[rows:]) for part in of_image]
        of_text = _parts(self.txt_mod[1](temb[: len(hidden_states)]), 6)
        text, image = joint_attention(
            self.attn,
            modulated(self.txt_norm1, encoder_hidden_states, *of_text[:2]),
            modulated(self.img_norm1, hidden_states, *of_image[:2]),
            (image_rotary_emb[1], image_rotary_emb[0]),
            attention_mask,
        )
        image = _finished(hidden_states, image, of_image[2:], self.img_norm2, self.img_mlp)
        text = _finished(encoder_hidden_states, text, of_text[2:], self.txt_norm2, self.txt_mlp)
        return _within_range(text), _within_range(image)


class ZImageBlock(ZImageTransformerBlock):  # type: ignore[misc]
    """A layer of Z-Image."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None, freqs_cis: Tensor, adaln_input: Tensor | None = None
    ) -> Tensor:
        """Return the tokens (R,S,W). attn_mask: of real tokens, (R,S). freqs_cis: as `turns_of`.

        adaln_input: of the modulation, (R,M), for a layer that has one.
        """
        attn, mask = self.attention, None if attn_mask is None else attn_mask[:, None, None]

        def attention(tokens: Tensor) -> Tensor:
            found = attention_output(*projected(attn, tokens, "to_{}", "norm_{}", freqs_cis), mask)
            out: Tensor = attn.to_out[0](found)
            return out

        if not self.modulation:
            x = x + self.attention_norm2(attention(self.attention_norm1(x)))
            x = x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
            return x
        scale, gate, inner_scale, inner_gate = _parts(self.adaLN_modulation(adaln_input), 4)
        found = attention(self.attention_norm1(x) * (1 + scale))
        x = addcmul(x, self.attention_norm2(found), gate.tanh())
        made = self.feed_forward(self.ffn_norm1(x) * (1 + inner_scale))
        return addcmul(x, self.ffn_norm2(made), inner_gate.tanh())


_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    RMSNorm: FusedRMSNorm,
    FluxTransformerBlock: FluxDouble,
    FluxSingleTransformerBlock: FluxSingle,
    QwenImageTransformerBlock: QwenImageBlock,
    ZImageTransformerBlock: ZImageBlock,
}


def fused(network: Any) -> nn.Module:
    """Return a network of diffusers' with its blocks and norms replaced by these, in place."""
    for module in network.modules():
        if (kind := _BLOCKS.get(type(module))) is not None:
            # Only the class changes: tensors and their names stay.
            module.__class__ = kind
    made: nn.Module = network
    return made


def modulated(norm: Layer, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return a norm's output (R,n,W), scaled by 1 + scale and shifted, both (R,1,W)."""
    return addcmul(shift, norm(x), 1 + scale)


def projected(attn: Any, x: Tensor, layers: str, norms: str, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of tokens x (R,n,W), (R,n,H,d) each, the first two normed and rotated.

    layers, norms: the names of the attention's parts, with {} for q, k or v.
    """

    def heads(kind: str) -> Tensor:
        made: Tensor = getattr(attn, layers.format(kind))(x).unflatten(-1, (attn.heads, -1))
        return made

    of_q, of_k = (getattr(attn, norms.format(kind)) for kind in "qk")
    return *normed_and_rotated(heads, (of_q, of_k), turns), heads("v")


def joint_attention(
    attn: Any, text: Tensor, image: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the attention output of text (R,T,W) and image (R,n,W), which attend to both. turns: of each."""
    of_text = projected(attn, text, "add_{}_proj", "norm_added_{}", turns[0])
    of_image = projected(attn, image, "to_{}", "norm_{}", turns[1])
    q, k, v = (torch.cat(pair, dim=1) for pair in zip(of_text, of_image, strict=True))
    found = attention_output(q, k, v, mask)
    text, image = found[:, : text.shape[1]], found[:, text.shape[1] :]
    return attn.to_add_out(text.contiguous()), attn.to_out[0](image.contiguous())


def attention_output(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the attention output of queries, keys and values (R,n,H,d), as tokens (R,n,H·d)."""
    found: Tensor = dispatch_attention_fn(q, k, v, attn_mask=mask)
    return found.flatten(2)


def _parts(modulation: Tensor, count: int) -> Sequence[Tensor]:
    """Return the parts (R,1,W) of a modulation (R,count·W)."""
    return modulation[:, None].chunk(count, dim=-1)


def _finished(x: Tensor, found: Tensor, parts: Sequence[Tensor], norm: Layer, feed: Layer) -> Tensor:
    """Return tokens with what attention found for them and, after that, a feed-forward layer's output."""
    gate, shift, scale, inner_gate = parts
    x = addcmul(x, found, gate)
    return addcmul(x, feed(modulated(norm, x, shift, scale)), inner_gate)


def _within_range(x: Tensor) -> Tensor:
    """Return tokens without infinities, as half precision would round its largest numbers to."""
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x
