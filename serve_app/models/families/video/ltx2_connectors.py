"""The networks by which LTX-2's streams read a text, which they fill up with learnt registers.

The layers are those of diffusers' LTX2ConnectorTransformer1d. Source: HaCohen et al. 2026, arXiv:2601.03233; the
numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.ltx2.connectors import LTX2ConnectorTransformer1d
from torch import Tensor, nn

from serve_app.models.families.video.ltx2_blocks import Blocks, normed, rotations
from serve_app.models.files.tensors import Tensors

PLACES: Mapping[str, str] = {
    "video_embeddings_connector": "video_connector",
    "audio_embeddings_connector": "audio_connector",
}
"""Names of the connectors in a file, and in the network."""
REGISTERS_LEAST = 1024
"""Texts are filled up with registers to at least this length."""
SPAN = 4096.0
"""Tokens whose positions fill the rotation's range."""


@dataclass(frozen=True, slots=True)
class Connector:
    """The network that reads a text for one stream. width: of a token."""

    width: int
    heads: int
    layers: int
    registers: int
    gated: bool

    @classmethod
    def probe(cls, tensors: Tensors, name: str, heads: int) -> Connector:
        """Read a connector's size off its tensors. heads: where they do not say. Errors: ModelFileError."""
        registers, width = tensors.shape(f"{name}.learnable_registers")
        first = f"{name}.transformer_1d_blocks.0.attn1.to_gate_logits.weight"
        gated = first in tensors.shapes
        layers = tensors.count(f"{name}.transformer_1d_blocks.")
        return cls(width, tensors.shape(first)[0] if gated else heads, layers, registers, gated)

    def build(self, rope: str) -> nn.Module:
        """Return the empty network. rope: how heads' numbers are paired, as diffusers calls it."""
        made: nn.Module = LTX2ConnectorTransformer1d(
            num_attention_heads=self.heads,
            attention_head_dim=self.width // self.heads,
            num_layers=self.layers,
            num_learnable_registers=self.registers,
            rope_type=rope,
            gated_attention=self.gated,
        )
        return made

    def filled(self, tokens: int) -> int:
        """Return the length of a text with registers."""
        return -(-max(REGISTERS_LEAST, tokens) // self.registers) * self.registers


def connected(blocks: Blocks, connector: Any, text: Tensor, is_text: Tensor) -> Tensor:
    """Return a text (R,L,W) after its connector, which fills it up with registers."""
    registers = connector.learnable_registers.to(text.dtype)
    whole = registers.repeat(text.shape[1] // len(registers), 1)
    tokens = torch.where(is_text[..., None], text, whole)
    at = torch.arange(text.shape[1], dtype=torch.float32, device=text.device)[:, None] / SPAN
    turns = rotations(at, connector.num_attention_heads, text.shape[2], double=True)
    for block in connector.transformer_blocks:
        tokens = tokens + blocks.attention(block.attn1, normed(tokens), turns=turns)
        tokens = tokens + block.ff(normed(tokens))
    return normed(tokens)
