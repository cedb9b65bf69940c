"""Text encoders with one token sequence of any length for each text, as T5 and decoders; CLIP has chunks of one length.

A `PromptFormat` says how a family of backbones formats its texts. Texts of many jobs share a forward: shorter ones are
padded and masked. Weights and padding are ComfyUI's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve_app.models.families.text_family import Vectors, own_text
from serve_app.models.tokenizers import Tokenize
from serve_app.models.tokenizers.prompt import Token, Weighted, runs
from serve_app.recipe.text import T5Padding
from serve_app.sampling.transfer import to_device
from serve_app.values import Conditioning, IllustratedText, Text


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How a text is formatted for an encoder, and which of its states make a conditioning.

    key: the encoder's name in embedding files and `Texts`. template: contains {} for the text. weighs: brackets are
    weights; embeds: embeddings are looked up. start, end, pad: special tokens, or None; least: minimum length;
    multiple: of the length. empty: beginning of the empty text that weights are measured from. masked: padding is
    masked in the network; returns_mask: the conditioning has the mask; zeroed: states of padding become zeros. taps:
    layers whose states are concatenated; 0 is the input of the first layer, -1 the output of the last; (): the last
    after the final norm.
    """

    key: str
    template: str = "{}"
    weighs: bool = True
    embeds: bool = True
    start: int | None = None
    end: int | None = None
    pad: int = 0
    least: int = 1
    multiple: int = 1
    empty: tuple[int, ...] = ()
    masked: bool = False
    returns_mask: bool = False
    zeroed: bool = False
    taps: tuple[int, ...] = ()

    def around(self, text: str, template: str | None = None) -> str:
        """Return a text in a template, None: its own. A format without one ignores others, as ComfyUI's do."""
        return (self.template if template is None or self.template == "{}" else template).replace("{}", text)

    def framed(self, tokens: Weighted, padding: T5Padding | None) -> Weighted:
        """Return a text's tokens with special tokens and padding."""
        row = [(token, 1.0) for token in (self.start,) if token is not None] + tokens
        row += [(token, 1.0) for token in (self.end,) if token is not None]
        pads, least = (0, self.least) if padding is None else (padding.pads, padding.length)
        row += [(self.pad, 1.0)] * max(pads, least - len(row))
        return row + [(self.pad, 1.0)] * (-len(row) % self.multiple)

    def seen(self, row: Weighted) -> list[bool]:
        """Return the mask of a row's unmasked tokens: up to the first end, else to the first pad."""
        mark = self.pad if self.end is None else self.end
        at = next((i for i, (token, _) in enumerate(row) if isinstance(token, int) and token == mark), len(row))
        count = at if self.end is None else at + 1
        return [self.masked is False or i < count for i in range(len(row))]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """An encoded text. states: (T,D) float32, on the device; seen: mask (T,) of unmasked tokens, on the host."""

    tokens: Weighted
    states: Tensor
    seen: Tensor


class SequenceEncoder(ABC):
    """A text encoder on its device. table: token embeddings (V,D)."""

    def __init__(self, prompt_format: PromptFormat, tokenize: Tokenize, table: Tensor, vectors: Vectors) -> None:
        self.prompt_format = prompt_format
        self._tokenize = tokenize
        self._table = table
        self._vectors = vectors

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, all in one forward; as `Encoder.encode`. Errors: NodeError for unsupported input."""
        rows = [self.row(text, padding) for text in texts]
        return [[self.entry(encoded)] for encoded in self.encode_rows(rows, stop_at)]

    def entry(self, encoded: Encoded) -> tuple[Tensor, dict[str, Any]]:
        """Return the conditioning of an encoded text."""
        seen = encoded.seen.long()[None]
        return encoded.states[None], {"attention_mask": seen} if self.prompt_format.returns_mask else {}

    def row(self, text: Text, padding: T5Padding | None = None) -> Weighted:
        """Return a text's tokens with weights, formatted. Errors: NodeError for unsupported input."""
        template = text.template if isinstance(text, IllustratedText) else None
        return self.framed(self.around(own_text(text, self.prompt_format.key), template), padding)

    def around(self, text: str, template: str | None) -> str:
        """Return a text in a template, None: the default."""
        return self.prompt_format.around(text, template)

    def framed(self, text: str, padding: T5Padding | None = None) -> Weighted:
        """Return the tokens of a text in its template, with special tokens and padding."""
        lookup = self._embedding if self.prompt_format.embeds else None
        of_text = runs(text, self._tokenize, lookup, weighs=self.prompt_format.weighs)
        return self.prompt_format.framed([token for run in of_text for token in run], padding)

    def encode_rows(self, rows: Sequence[Weighted], stop_at: int | None = None) -> list[Encoded]:
        """Encode rows, all in one forward. Weights move a token's state along the line from the empty text's."""
        lengths = {self.length(row) for row in rows if any(weight != 1.0 for _, weight in row)}
        empty = {length: len(rows) + i for i, length in enumerate(sorted(lengths))}
        batch = [*rows, *(self._empty(length) for length in empty)]
        states, seen = self._states(batch, stop_at)
        encoded = []
        for i, row in enumerate(rows):
            of_row = states[i]
            if (reference := empty.get(self.length(row))) is not None and any(weight != 1.0 for _, weight in row):
                weights = to_device(torch.tensor([weight for _, weight in row]), of_row.device)[:, None]
                moved = (of_row - states[reference]) * weights + states[reference]
                of_row = torch.where(weights == 1.0, of_row, moved)
            encoded.append(Encoded(row, of_row, seen[i]))
        return encoded

    def length(self, row: Weighted) -> int:
        """Return the number of states of a row."""
        return len(row)

    def _empty(self, length: int) -> Weighted:
        prompt_format = self.prompt_format
        begun: Weighted = [(token, 1.0) for token in prompt_format.empty[:length]]
        return begun + [(prompt_format.pad, 1.0)] * (length - len(begun))

    def _states(self, batch: Sequence[Weighted], stop_at: int | None) -> tuple[list[Tensor], list[Tensor]]:
        """Return each row's states (…,T,D) and mask (T,), as in `Encoded`."""
        longest = max(map(len, batch))
        seen = [torch.tensor(self.prompt_format.seen(row)) for row in batch]
        filled = torch.zeros(len(batch), longest, dtype=torch.bool)
        for i, of_row in enumerate(seen):
            filled[i, : len(of_row)] = of_row
        x = embedded(self._table, [[token for token, _ in row] for row in batch], self.prompt_format.pad)
        hidden = None if bool(filled.all()) else to_device(filled, x.device)
        states = self.forward(x, hidden, stop_at).float()
        if self.prompt_format.zeroed and hidden is not None:
            states = states * hidden[..., None]
        return [states[i, ..., : len(row), :] for i, row in enumerate(batch)], seen

    @abstractmethod
    def forward(self, x: Tensor, seen: Tensor | None, stop_at: int | None) -> Tensor:
        """Return the states (N,…,T,D) of rows of vectors (N,T,W). seen: mask (N,T), None: all."""

    def _embedding(self, name: str) -> Sequence[Tensor] | None:
        vectors = self._vectors(name, self._table.shape[1], self.prompt_format.key)
        return None if vectors is None else list(vectors)


def whole_names(key: str, layer: str) -> tuple[str, str]:
    """Return a layer's name in LoRA files with full names. layer: its name in the encoder's file."""
    return f"text_encoders.{key}.transformer.{layer}", f"text_encoders.transformer.{layer}"


def from_the_end(layer: int, count: int) -> int | None:
    """Return which of `count` layers a number names, as -1 for the last; None for one that there is not.

    Numbers from 0 on count from the first layer, as in ComfyUI.
    """
    back = layer - count if layer >= 0 else layer
    return back if -count <= back < 0 else None


def embedded(table: Tensor, batch: Sequence[Sequence[Token]], fill: int) -> Tensor:
    """Return rows of tokens as vectors (N,T,D) of a table (V,D), in float32; shorter ones are padded with a token."""
    longest = max(map(len, batch))
    ids = torch.full((len(batch), longest), fill)
    for i, row in enumerate(batch):
        ids[i, : len(row)] = torch.tensor([token if isinstance(token, int) else fill for token in row])
    x = table[to_device(ids, table.device)].float()
    for i, row in enumerate(batch):
        for j, token in enumerate(row):
            if not isinstance(token, int):
                x[i, j] = to_device(token, table.device).to(x.dtype)
    return x
