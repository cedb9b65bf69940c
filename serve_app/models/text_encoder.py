"""A CLIP value on its device: a text encoder of any family, with its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from serve_app.errors import NodeError
from serve_app.models.families.text.generation import Generation
from serve_app.models.families.text_family import Encoder, TokenEncoder
from serve_app.recipe.text import T5Padding
from serve_app.sampling.guidance.conditioning import with_tensors
from serve_app.sampling.transfer import to_host
from serve_app.values import Conditioning, GenerationRequest, Text


@runtime_checkable
class LanguageModel(Encoder, Protocol):
    """A text encoder that generates text."""

    def generation(self, request: GenerationRequest) -> Generation:
        """Return a new text generation. Errors: NodeError for a request that it cannot meet."""
        ...

    def generate(self, generations: Sequence[Generation]) -> None:
        """Generate at most one token for each of several texts."""
        ...


@dataclass(frozen=True, slots=True)
class Clip:
    """A CLIP recipe's encoder, which other recipes may share.

    stop_at: the layer to stop at, None: its default; padding: of T5's texts, None: the default.
    """

    encoder: Encoder
    stop_at: int | None = None
    padding: T5Padding | None = None

    def encode(self, texts: Sequence[Text]) -> list[Conditioning]:
        """Encode each text, all in one forward, as `Encoder.encode`; results go to the host by `to_host`."""
        encoded = self.encoder.encode(texts, self.stop_at, self.padding)
        return [with_tensors(entries, to_host) for entries in encoded]

    def tokens(self, text: str) -> Mapping[str, list[list[tuple[Any, float, int]]]] | None:
        """Return a text's chunks by encoder, as `TokenEncoder.tokens`; None if its tokens are not accessible."""
        return self.encoder.tokens(text) if isinstance(self.encoder, TokenEncoder) else None

    def generation(self, request: GenerationRequest) -> Generation:
        """Return a new text generation. Errors: NodeError for an encoder that cannot generate."""
        return self._language_model().generation(request)

    def generate(self, generations: Sequence[Generation]) -> None:
        """Generate at most one token for each of several texts."""
        self._language_model().generate(generations)

    def _language_model(self) -> LanguageModel:
        if not isinstance(self.encoder, LanguageModel):
            raise NodeError("the text encoder is no language model and generates no text; load one such as Qwen3")
        return self.encoder
