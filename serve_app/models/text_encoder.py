"""A CLIP value made real: a text encoder, of whatever family, and how it is to be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.models.families.family import Encoder
from serve_app.values import Conditioning, T5Padding, Text


@dataclass(frozen=True, slots=True)
class Clip:
    """A CLIP recipe made real: an encoder, which other recipes may share.

    stop_at: the layer to stop at, None its usual; padding: of T5's texts, None the usual.
    """

    encoder: Encoder
    stop_at: int | None = None
    padding: T5Padding | None = None

    def encode(self, texts: Sequence[Text]) -> list[Conditioning]:
        """Encode each text, all in one forward, as `Encoder.encode`."""
        return self.encoder.encode(texts, self.stop_at, self.padding)
