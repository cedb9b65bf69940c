"""CLIP's text encoder: from texts in the prompt syntax to CONDITIONING.

Source: Radford et al. 2021, arXiv:2103.00020; the treatment of weights and of long texts is ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from serve_app.models.families import TextArchitecture
from serve_app.models.prompt import Chunk, chunks, empty_chunk
from serve_app.models.tokenizer import END
from serve_app.values import Conditioning

Vectors: TypeAlias = Callable[[str, int], Tensor | None]
"""From an embedding's name and the encoder's width D to its vectors (N,D), or None if there is none that fits."""


class TextEncoder:
    """A text encoder on its device. network: transformers' CLIPTextModel."""

    def __init__(self, architecture: TextArchitecture, network: nn.Module, vectors: Vectors) -> None:
        self.architecture = architecture
        self._network: Any = network
        self._vectors = vectors
        parameter = next(network.parameters())
        shape = (architecture.positions, architecture.positions)
        hidden = torch.full(shape, torch.finfo(parameter.dtype).min, dtype=parameter.dtype, device=parameter.device)
        self._mask = hidden.triu_(1)[None, None]

    def encode(self, texts: Sequence[str], stop_at: int = -1) -> list[Conditioning]:
        """Encode each text, all in one forward. The conds and pooled outputs are float32 on the CPU.

        stop_at: the layer whose output is taken, counted from the end; one the encoder does not have means the last.
        A text of n chunks gives a cond of n times the encoder's length. Weights move each token's row along the line
        from the empty text's. Errors: ModelFileError for an embedding that cannot be used.
        """
        length = self.architecture.positions
        by_text = [chunks(text, length, self._embedding) for text in texts]
        batch = [chunk for of_text in by_text for chunk in of_text]
        weights = torch.tensor([[weight for _, weight in chunk] for chunk in batch])[..., None]
        weighted = bool((weights != 1.0).any())
        hidden, pooled = self._forward([*batch, empty_chunk(length)] if weighted else batch, stop_at)
        if weighted:
            hidden, empty = hidden[:-1], hidden[-1]
            hidden = torch.where(weights == 1.0, hidden, (hidden - empty) * weights + empty)
        encoded: list[Conditioning] = []
        start = 0
        for of_text in by_text:
            rows = slice(start, start + len(of_text))
            encoded.append([(hidden[rows].flatten(0, 1)[None], {"pooled_output": pooled[start : start + 1]})])
            start = rows.stop
        return encoded

    def _embedding(self, name: str) -> Sequence[Tensor] | None:
        vectors = self._vectors(name, self.architecture.width)
        return None if vectors is None else list(vectors)

    def _forward(self, batch: list[Chunk], stop_at: int) -> tuple[Tensor, Tensor]:
        """Return the layer's rows (N,T,D) and each chunk's pooled row (N,D), float32 on the CPU."""
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
        stop = layers + stop_at if -layers <= stop_at < 0 else layers - 1
        taken = x
        for index, layer in enumerate(network.encoder.layers):
            x = layer(x, self._mask)
            if index == stop:
                taken = x
        last = network.final_layer_norm(x)
        hidden = last if stop == layers - 1 else network.final_layer_norm(taken)
        # The text's own end token stands for the whole of it; a vector never counts as an end.
        ends = torch.tensor([next(j for j, (t, _) in enumerate(c) if isinstance(t, int) and t == END) for c in batch])
        pooled = last[torch.arange(len(batch)), ends]
        return hidden.float().cpu(), pooled.float().cpu()


@dataclass(frozen=True, slots=True)
class Clip:
    """A CLIP recipe made real: an encoder, which other recipes may share, and the layer to stop at."""

    encoder: TextEncoder
    stop_at: int = -1

    def encode(self, texts: Sequence[str]) -> list[Conditioning]:
        """Encode each text, all in one forward, as `TextEncoder.encode`."""
        return self.encoder.encode(texts, self.stop_at)
