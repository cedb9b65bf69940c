"""Text encoders of Flux.1: T5-XXL for the tokens, and CLIP-L for the pooled text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.models.families.text.clip import ClipText, TextEncoder
from serve_app.models.families.text.t5 import PADDED, T5Encoder, T5Text
from serve_app.models.families.text_family import TextEnsemble, TextResources, own_text
from serve_app.recipe.text import T5Padding
from serve_app.values import Conditioning, Text


@dataclass(frozen=True, slots=True)
class FluxText(TextEnsemble):
    """CLIP-L and T5-XXL."""

    takes = {"CLIP-L": "l", "T5-XXL": "t5"}  # noqa: RUF012
    name = "Flux.1"
    types = ("flux",)

    l: ClipText  # noqa: E741
    t5: T5Text

    def encoder(self, network: Any, lexicon: TextResources) -> FluxTextEncoder:
        t5 = T5Encoder(PADDED, self.t5.tokenize(network["t5"], lexicon), network["t5"], lexicon.vectors)
        return FluxTextEncoder(TextEncoder(self.l, network["l"], lexicon.vectors), t5)


class FluxTextEncoder:
    """Both on their device: T5's states, and CLIP-L's pooled output without its projection."""

    def __init__(self, l: TextEncoder, t5: T5Encoder) -> None:  # noqa: E741
        self.l, self.t5 = l, t5

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, all in one forward of each encoder; as `Encoder.encode`."""
        states = self.t5.encode_rows([self.t5.row(text, padding) for text in texts], stop_at)
        pooled = self.l.encode_chunks([self.l.chunks(own_text(text, "l")) for text in texts], stop_at)
        return [
            [(encoded.states[None], {"pooled_output": of_text})]
            for encoded, (_, of_text) in zip(states, pooled, strict=True)
        ]
