"""CLIP's text encoders: from texts in the prompt syntax to CONDITIONING.

Source: Radford et al. 2021, arXiv:2103.00020; the treatment of weights and of long texts is ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.families import TextArchitecture, TextKind
from serve_app.models.prompt import Chunk, chunks, empty_chunk
from serve_app.models.tokenizer import END
from serve_app.values import Conditioning, TextPair

Vectors: TypeAlias = Callable[[str, int, TextKind], Tensor | None]
"""From an embedding's name and an encoder's width D and kind to its vectors (N,D), or None if none fits."""


Encoded: TypeAlias = tuple[Tensor, Tensor]
"""(cond (1,T,D), pooled (1,P)) of one text, float32 on the CPU."""

_PADDING = {"l": END, "h": 0, "g": 0}


class TextEncoder:
    """A text encoder on its device. network: transformers' CLIPTextModel. paired: it is one of SDXL's two.

    Where no layer is asked for it is CLIP-L's last and OpenCLIP's last but one, as SD 1.x and 2.x were trained, and the
    last but one of both of SDXL's. Those of SDXL are taken as they are, the others through the final norm.
    """

    def __init__(
        self, architecture: TextArchitecture, network: nn.Module, vectors: Vectors, *, paired: bool = False
    ) -> None:
        self.architecture = architecture
        self._network: Any = network
        self._vectors = vectors
        self._normed = architecture.kind != "g" and not paired
        self._default = -1 if architecture.kind == "l" and not paired else -2
        parameter = next(network.parameters())
        shape = (architecture.positions, architecture.positions)
        hidden = torch.full(shape, torch.finfo(parameter.dtype).min, dtype=parameter.dtype, device=parameter.device)
        self._mask = hidden.triu_(1)[None, None]

    def encode(self, texts: Sequence[str | TextPair], stop_at: int | None = None) -> list[Conditioning]:
        """Encode each text, all in one forward. The conds and pooled outputs are float32 on the CPU.

        stop_at: the layer whose output is taken, counted from the end; one the encoder does not have means the last,
        None the usual one. A text of n chunks gives a cond of n times the encoder's length. Weights move each token's
        row along the line from the empty text's. Errors: ModelFileError for an embedding that cannot be used; NodeError
        for a pair of texts, which only SDXL's encoders read.
        """
        by_text: list[list[Chunk]] = []
        for text in texts:
            if isinstance(text, str):
                by_text.append(self.chunks(text))
            elif self.architecture.kind == "g":
                by_text.append(self.padded(self.chunks(text.g), len(self.chunks(text.l))))
            else:
                raise NodeError(
                    f"the text encoder is CLIP-{self.architecture.kind.upper()}, which reads one text, not two"
                )
        encoded = self.encode_chunks(by_text, stop_at)
        return [[(cond, {"pooled_output": pooled})] for cond, pooled in encoded]

    def chunks(self, text: str) -> list[Chunk]:
        """Return a text's tokens with their weights."""
        return chunks(text, self.architecture.positions, self._embedding, _PADDING[self.architecture.kind])

    def padded(self, of_text: list[Chunk], count: int) -> list[Chunk]:
        """Return a text's chunks with empty ones after them, `count` in all if there are not more."""
        return of_text + [self._empty()] * (count - len(of_text))

    def encode_chunks(self, by_text: Sequence[list[Chunk]], stop_at: int | None) -> list[Encoded]:
        """Encode the chunks of several texts in one forward; as `encode`."""
        batch = [chunk for of_text in by_text for chunk in of_text]
        weights = torch.tensor([[weight for _, weight in chunk] for chunk in batch])[..., None]
        weighted = bool((weights != 1.0).any())
        hidden, pooled = self._forward([*batch, self._empty()] if weighted else batch, stop_at)
        if weighted:
            hidden, empty = hidden[:-1], hidden[-1]
            hidden = torch.where(weights == 1.0, hidden, (hidden - empty) * weights + empty)
        encoded: list[Encoded] = []
        start = 0
        for of_text in by_text:
            rows = slice(start, start + len(of_text))
            encoded.append((hidden[rows].flatten(0, 1)[None], pooled[start : start + 1]))
            start = rows.stop
        return encoded

    def _empty(self) -> Chunk:
        return empty_chunk(self.architecture.positions, _PADDING[self.architecture.kind])

    def _embedding(self, name: str) -> Sequence[Tensor] | None:
        vectors = self._vectors(name, self.architecture.width, self.architecture.kind)
        return None if vectors is None else list(vectors)

    def _forward(self, batch: list[Chunk], stop_at: int | None) -> tuple[Tensor, Tensor]:
        """Return the layer's rows (N,T,D) and each chunk's pooled row (N,P), float32 on the CPU."""
        network = self._network
        table: Tensor = network.embeddings.token_embedding.weight
        ids = torch.tensor([[token if isinstance(token, int) else END for token, _ in chunk] for chunk in batch])
        rows = table[ids.to(table.device)]
        for i, chunk in enumerate(batch):
            for j, (token, _) in enumerate(chunk):
                if not isinstance(token, int):
                    rows[i, j] = token.to(table)
        x = rows + network.embeddings.position_embedding.weight
        layers = len(network.encoder.layers)
        back = self._default if stop_at is None else stop_at
        stop = layers + back if -layers <= back < 0 else None
        taken: Tensor | None = None
        for index, layer in enumerate(network.encoder.layers):
            x = layer(x, self._mask)
            if index == stop:
                taken = x
        last = network.final_layer_norm(x)
        if taken is None or (taken is x and self._normed):
            hidden = last
        else:
            hidden = network.final_layer_norm(taken) if self._normed else taken
        # The text's own end token stands for the whole of it; a vector never counts as an end.
        ends = torch.tensor([next(j for j, (t, _) in enumerate(c) if isinstance(t, int) and t == END) for c in batch])
        pooled = last[torch.arange(len(batch)), ends]
        if self.architecture.projection:
            pooled = network.text_projection(pooled)
        return hidden.float().cpu(), pooled.float().cpu()


class DualTextEncoder:
    """SDXL's two text encoders: their rows side by side, the pooled output bigG's. Source: arXiv:2307.01952."""

    def __init__(self, l: TextEncoder, g: TextEncoder) -> None:  # noqa: E741
        self._l, self._g = l, g

    def encode(self, texts: Sequence[str | TextPair], stop_at: int | None = None) -> list[Conditioning]:
        """Encode each text, all in one forward of each encoder; as `TextEncoder.encode`.

        Two texts of different lengths are made equally long by empty ones.
        """
        l_chunks, g_chunks = [], []
        for text in texts:
            pair = TextPair(text, text) if isinstance(text, str) else text
            of_l, of_g = self._l.chunks(pair.l), self._g.chunks(pair.g)
            if not isinstance(text, str):
                of_l, of_g = self._l.padded(of_l, len(of_g)), self._g.padded(of_g, len(of_l))
            l_chunks.append(of_l)
            g_chunks.append(of_g)
        encoded: list[Conditioning] = []
        for (l_cond, _), (g_cond, pooled) in zip(
            self._l.encode_chunks(l_chunks, stop_at), self._g.encode_chunks(g_chunks, stop_at), strict=True
        ):
            # An embedding may have more vectors for one encoder than for the other.
            length = min(l_cond.shape[1], g_cond.shape[1])
            cond = torch.cat([l_cond[:, :length], g_cond[:, :length]], dim=2)
            encoded.append([(cond, {"pooled_output": pooled})])
        return encoded


@dataclass(frozen=True, slots=True)
class Clip:
    """A CLIP recipe made real: an encoder, which other recipes may share, and the layer to stop at, None its usual."""

    encoder: TextEncoder | DualTextEncoder
    stop_at: int | None = None

    def encode(self, texts: Sequence[str | TextPair]) -> list[Conditioning]:
        """Encode each text, all in one forward, as `TextEncoder.encode`."""
        return self.encoder.encode(texts, self.stop_at)
