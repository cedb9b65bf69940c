"""Ovis 2.5's language model as Ovis-Image reads texts: a Qwen3 2B, whose states from the template's colon on are kept.

Source: Wang et al. 2025, arXiv:2511.22982.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from serve_app.models.families.text.decoder import DecoderEncoder
from serve_app.models.families.text.qwen import WIDTH_OVIS, Qwen3Text
from serve_app.models.families.text.sequences import Encoded, PromptFormat
from serve_app.models.families.text_family import TextFamily, TextResources
from serve_app.models.tokenizers import qwen

OVIS = PromptFormat(
    "qwen3_2b",
    template="<|im_start|>user\nDescribe the image by detailing the color, quantity, text, shape, size, texture, "
    "spatial relationships of the objects and background: {}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    weighs=False,
    embeds=False,
    pad=qwen.PAD,
    least=284,
    masked=True,
    zeroed=True,
)
_BACKGROUND, _COLON = 4004, 25
"""The template's tokens before the user's words."""


@dataclass(frozen=True, slots=True)
class OvisText(Qwen3Text):
    """A Qwen3 2B, whatever the loader's type."""

    name = "Ovis 2.5"
    prefixes = ("text_encoders.qwen3_2b.transformer.", "")

    @classmethod
    def replaces(cls, found: TextFamily, loaded_as: str) -> bool:
        return type(found) is Qwen3Text and found.width == WIDTH_OVIS and found.tower is None

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return OVIS

    def encoder(self, network: Any, lexicon: TextResources) -> DecoderEncoder:
        return OvisEncoder(self, OVIS, self.tokenizer(None, lexicon), network, lexicon.vectors)


class OvisEncoder(DecoderEncoder):
    """Ovis's language model on its device."""

    def entry(self, encoded: Encoded) -> tuple[Tensor, dict[str, Any]]:
        first = _before_words([token for token, _ in encoded.tokens])
        return super().entry(replace(encoded, states=encoded.states[first:], seen=encoded.seen[first:]))


def _before_words(tokens: Sequence[Any]) -> int:
    """Return the number of a text's tokens that are removed; -1 for all but the last."""
    at = next((i for i, token in enumerate(tokens) if isinstance(token, int) and token == _BACKGROUND), -1)
    following = tokens[at + 1] if at + 1 < len(tokens) else None
    return at + 1 if isinstance(following, int) and following == _COLON else at
