"""Text encoders of SD 3: CLIP-L and CLIP-G concatenated, then T5-XXL; any subset works.

Source: Esser et al. 2024, arXiv:2403.03206.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from serve_app.models.families.text.clip import ClipText, Encoded, TextEncoder
from serve_app.models.families.text.t5 import PADDED_77, T5Encoder, T5Text
from serve_app.models.families.text_family import TextEnsemble, TextResources, own_text
from serve_app.models.tokenizers.prompt import Chunk, Weighted, chunks, empty_chunk
from serve_app.models.tokenizers.t5 import END
from serve_app.recipe.text import T5Padding
from serve_app.values import Conditioning, Text, Texts

L_WIDTH, G_WIDTH, WIDTH, LENGTH = 768, 1280, 4096, 77
"""How wide and long the rows are of an encoder that is not there, and of all of them together."""


@dataclass(frozen=True, slots=True)
class Sd3Text(TextEnsemble):
    """CLIP-L, CLIP-G and T5-XXL."""

    takes = {"CLIP-L": "l", "CLIP-G": "g", "T5-XXL": "t5"}  # noqa: RUF012
    name = "SD 3"
    types = ("sd3",)
    partial = True

    l: ClipText | None = None  # noqa: E741
    g: ClipText | None = None
    t5: T5Text | None = None

    def encoder(self, network: Any, lexicon: TextResources) -> Sd3TextEncoder:
        device = device_of(network)

        def clip(family: ClipText | None, module: str, width: int) -> TextEncoder | AbsentClip:
            if family is None:
                return AbsentClip(width, device)
            return TextEncoder(family, network[module], lexicon.vectors, paired=True)

        t5 = None
        if self.t5 is not None:
            t5 = T5Encoder(PADDED_77, self.t5.tokenize(network["t5"], lexicon), network["t5"], lexicon.vectors)
        return Sd3TextEncoder(clip(self.l, "l", L_WIDTH), clip(self.g, "g", G_WIDTH), t5)


def device_of(networks: Mapping[str, nn.Module]) -> torch.device:
    """Return the device of encoders' networks."""
    return next(next(iter(networks.values())).parameters()).device


class AbsentClip:
    """Stand-in for a missing CLIP: its rows are zeros, one for each token."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._width, self._device = width, device

    def chunks(self, text: str) -> list[Chunk]:
        """Return a text's tokens with their weights."""
        return chunks(text, LENGTH, lambda name: None)

    def padded(self, of_text: list[Chunk], count: int) -> list[Chunk]:
        """Return a text's chunks, padded with empty ones to `count`."""
        return of_text + [empty_chunk(LENGTH)] * (count - len(of_text))

    def encode_chunks(self, by_text: Sequence[list[Chunk]], stop_at: int | None) -> list[Encoded]:
        """Return zeros for the chunks of several texts."""
        return [(self._zeros(LENGTH * len(of_text), self._width), self._zeros(self._width)) for of_text in by_text]

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(1, *shape, device=self._device)


class Sd3TextEncoder:
    """Those present, on their device: the rows of both CLIPs concatenated, padded with zeros, then T5's."""

    def __init__(self, l: TextEncoder | AbsentClip, g: TextEncoder | AbsentClip, t5: T5Encoder | None) -> None:  # noqa: E741
        self.l, self.g, self.t5 = l, g, t5

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, all in one forward of each encoder; as `Encoder.encode`."""
        pairs = [self._pair(text) for text in texts]
        said = [pair for pair in pairs if pair[0]]
        of_clips: Iterator[tuple[Encoded, Encoded]] = iter(())
        if said:
            of_l, of_g = ([pair[i] for pair in said] for i in (0, 1))
            of_clips = zip(self.l.encode_chunks(of_l, stop_at), self.g.encode_chunks(of_g, stop_at), strict=True)
        of_t5: Iterator[Tensor] = iter(())
        if self.t5 is not None:
            rows = [_row(self.t5, text, padding) for text in texts]
            of_t5 = (states.states[None] for states in self.t5.encode_rows(rows, stop_at))
        encoded: list[Conditioning] = []
        for pair in pairs:
            clips = next(of_clips) if pair[0] else None
            cond = self._joined(clips, next(of_t5, None))
            pooled = torch.zeros(1, L_WIDTH + G_WIDTH)
            if clips is not None:
                pooled = torch.cat([clips[0][1], clips[1][1]], dim=1)
            encoded.append([(cond, {"pooled_output": pooled})])
        return encoded

    def _pair(self, text: Text) -> tuple[list[Chunk], list[Chunk]]:
        """Return both CLIPs' chunks, equally many; none if both texts are empty and skipped."""
        of_l, of_g = ([] if _left_out(text, key) else clip.chunks(own_text(text, key)) for key, clip in self._clips())
        if isinstance(text, Texts):
            of_l, of_g = self.l.padded(of_l, len(of_g)), self.g.padded(of_g, len(of_l))
        return of_l, of_g

    def _clips(self) -> tuple[tuple[str, TextEncoder | AbsentClip], ...]:
        return ("l", self.l), ("g", self.g)

    def _joined(self, clips: tuple[Encoded, Encoded] | None, states: Tensor | None) -> Tensor:
        parts = [] if states is None else [states]
        if clips is not None and any(isinstance(clip, TextEncoder) for _, clip in self._clips()):
            (of_l, _), (of_g, _) = clips
            # An embedding may have more vectors for one encoder than for the other.
            length = min(of_l.shape[1], of_g.shape[1])
            rows = torch.cat([of_l[:, :length], of_g[:, :length]], dim=2)
            width = WIDTH if states is None else states.shape[2]
            parts.insert(0, pad(rows, (0, width - rows.shape[2])))
        return torch.cat(parts, dim=1) if parts else torch.zeros(1, LENGTH, WIDTH)


def _left_out(text: Text, key: str) -> bool:
    return isinstance(text, Texts) and text.skip_empty and not own_text(text, key)


def _row(t5: T5Encoder, text: Text, padding: T5Padding | None) -> Weighted:
    # A skipped text leaves its end token.
    return [(END, 1.0)] if _left_out(text, t5.prompt_format.key) else t5.row(text, padding)
