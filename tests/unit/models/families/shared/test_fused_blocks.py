"""Blocks in half precision, whose largest number is 65504."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock

from serve_app.models.families.shared.fused_blocks import fused

WIDTH, TOKENS = 32, 6


@torch.no_grad()
def test_a_stream_beyond_half_precisions_range_ends_at_its_largest_number_and_another_is_the_same():
    torch.manual_seed(1)
    block: Any = fused(FluxSingleTransformerBlock(WIDTH, 2, WIDTH // 2))
    tokens, modulation = torch.randn(1, TOKENS, WIDTH), torch.randn(1, WIDTH)
    turns = torch.ones(TOKENS, WIDTH // 4, dtype=torch.complex64)
    whole = block(tokens, modulation, turns)
    block = block.half()
    torch.testing.assert_close(block(tokens.half(), modulation.half(), turns).float(), whole, atol=1e-2, rtol=1e-2)
    block.norm.linear.bias[2 * WIDTH :] = 100.0
    for sign in (1, -1):
        block.proj_out.bias.fill_(sign * 3000.0)
        assert (block(tokens.half(), modulation.half(), turns) == sign * 65504).all()
