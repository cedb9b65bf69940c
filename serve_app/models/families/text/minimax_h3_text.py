"""Qwen3-VL 32B as MiniMax H3 reads it: raw texts with images and frames among them, and the kind of each token.

The published file ends after layer 50, whose output is taken without a norm. Source: MiniMax 2026, MiniMax-H3; Bai et
al. 2025, arXiv:2511.21631; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from serve_app.models.families.text.qwen3_vl import HALVES, PATCH
from serve_app.models.families.text.qwen_vl import QwenVlEncoder, Seen, patches
from serve_app.models.families.text.sequences import Encoded, PromptFormat
from serve_app.models.tokenizers import qwen
from serve_app.models.tokenizers.prompt import Token
from serve_app.recipe.text import T5Padding
from serve_app.values import Conditioning, IllustratedText, InterleavedText, Text

MINIMAX_H3 = PromptFormat("qwen3vl_32b", weighs=False, pad=qwen.PAD)
LAYERS = 50
"""The network reads the output of this layer of the encoder."""
TAGS = "minimax_token_tags"
"""The conditioning's option with the kind of each token, (T,): VISION_TAG or TEXT_TAG."""
VISION_TAG, TEXT_TAG = 0, 1

_VISION_START, _VISION_END = 151652, 151653


def with_pictures(text: str, images: Sequence[Tensor]) -> InterleavedText:
    """Return a text after numbered images (1,H,W,3)."""
    pictures = (part for i, image in enumerate(images, 1) for part in (f"<Picture {i}>: ", image[:1]))
    return InterleavedText((*pictures, text))


class MiniMaxH3Encoder(QwenVlEncoder):
    """Qwen3-VL on its device, without a template."""

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, those without images in one forward, those with images one by one; as `Encoder.encode`."""
        given = [with_pictures(t.text, t.images) if isinstance(t, IllustratedText) else t for t in texts]
        plain = [self.row(t, padding) for t in given if not isinstance(t, InterleavedText)]
        encoded = iter(self.encode_rows(plain, stop_at) if plain else ())
        return [
            [self._interleaved(t, stop_at) if isinstance(t, InterleavedText) else self.entry(next(encoded))]
            for t in given
        ]

    def around(self, text: str, template: str | None) -> str:
        return text

    def entry(self, encoded: Encoded) -> tuple[Tensor, dict[str, Any]]:
        return encoded.states[None], {TAGS: torch.full((len(encoded.tokens),), TEXT_TAG)}

    def see(self, image: Tensor) -> Seen:
        rows, columns, seen = self.looked(*patches(image, PATCH, HALVES, HALVES))
        return Seen(seen.pooler_output, rows, columns, seen.deepstack_features)

    def _interleaved(self, text: InterleavedText, stop_at: int | None) -> tuple[Tensor, dict[str, Any]]:
        row = [piece for part in text.parts for piece in self._pieces(part)]
        encoded, spans = self.spliced(row or self.prompt_format.framed([], None), stop_at)
        cond, options = self.entry(encoded)
        for start, end in spans:
            # The tokens around an image are of its kind too.
            options[TAGS][start - 1 : end + 1] = VISION_TAG
        return cond, options

    def _pieces(self, part: str | Tensor) -> Iterator[tuple[Token, float] | Seen]:
        """Yield the tokens of a text, or an image between the tokens that enclose it."""
        if isinstance(part, str):
            yield from self.framed(part, T5Padding(pads=0, length=0))
            return
        yield _VISION_START, 1.0
        yield self.see(part)
        yield _VISION_END, 1.0
