"""A CLIP value made real: a text encoder, of whatever family, and where it is to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.models.families.family import Encoder
from serve_app.values import Conditioning, TextPair


@dataclass(frozen=True, slots=True)
class Clip:
    """A CLIP recipe made real: an encoder, which other recipes may share, and the layer to stop at, None its usual."""

    encoder: Encoder
    stop_at: int | None = None

    def encode(self, texts: Sequence[str | TextPair]) -> list[Conditioning]:
        """Encode each text, all in one forward, as `Encoder.encode`."""
        return self.encoder.encode(texts, self.stop_at)
