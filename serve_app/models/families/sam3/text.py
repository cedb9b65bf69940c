"""SAM 3.1's text encoder: one of CLIP's form with 32 positions, which reads things one by one.

A text is a list of things, with commas between them; "cat: 3" looks for three cats at most. Brackets are left out of a
list, and are letters of a single thing. As in ComfyUI.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve_app.models.families.family import Located
from serve_app.models.families.sam3.segmenting import ALONE
from serve_app.models.families.text.clip import ClipText, TextEncoder
from serve_app.models.families.text_family import TextResources, own_text
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers.clip import END
from serve_app.models.tokenizers.prompt import Chunk, chunks
from serve_app.recipe.text import T5Padding
from serve_app.sampling.transfer import to_device
from serve_app.values import Conditioning, Text

PREFIX = "detector.backbone.language_backbone.encoder."
_MANY = re.compile(r"(.+?)\s*:\s*([\d.]+)")
_PADDING = 0


@dataclass(frozen=True, slots=True)
class Sam3Text(ClipText):
    """SAM 3.1's text encoder."""

    name = "SAM 3.1's text"

    @property
    def title(self) -> str:
        return self.name

    @property
    def key(self) -> str:
        return "sam3_clip"

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        for number, whole in enumerate(files):
            if f"{PREFIX}token_embedding.weight" in whole.shapes:
                tensors = whole.within(PREFIX)
                # The detector reads the states, not what the projection makes of the last one.
                used = {name: shape for name, shape in tensors.shapes.items() if name != "text_projection"}
                tensors = Tensors(used, whole.where)
                yield Located(cls.probe(tensors, "l"), tensors, number, PREFIX)

    def encoder(self, network: Any, lexicon: TextResources) -> Sam3Encoder:
        return Sam3Encoder(self, network, lexicon.vectors)


class Sam3Encoder(TextEncoder):
    """The encoder on its device. A conditioning says which tokens count, and has each thing's tokens as ALONE."""

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        listed = [things(own_text(text, "l")) for text in texts]
        by_thing = [self.chunks(thing) for text in listed for thing, _ in text]
        encoded = iter(zip(self.encode_chunks(by_thing, stop_at), by_thing, strict=True))
        made: list[Conditioning] = []
        for text in listed:
            alone: list[dict[str, Any]] = []
            options: dict[str, Any] = {}
            for _, most in text:
                (cond, pooled), of_thing = next(encoded)
                mask = to_device(counting(of_thing), cond.device).flatten()[None]
                options = options or {"pooled_output": pooled, "attention_mask": mask}
                alone.append({"cond": cond, "attention_mask": mask, "max_detections": most})
            if len(alone) > 1 or alone[0]["max_detections"] != 1:
                options[ALONE] = alone
            made.append([(alone[0]["cond"], options)])
        return made

    def chunks(self, text: str) -> list[Chunk]:
        return chunks(text, self._family.positions, self._embedding, _PADDING, weighs=False)

    def _attention(self, batch: Sequence[Chunk]) -> Tensor:
        """Return the mask (N,1,T,T) of chunks, in which padding is not attended to."""
        hidden = to_device(counting(batch), self._mask.device)[:, None, None] == 0
        return self._mask.masked_fill(hidden, torch.finfo(torch.float32).min)


def things(text: str) -> list[tuple[str, int]]:
    """Return the things that a text lists, and how many of each are looked for; of a single one the text as it is."""
    listed: list[tuple[str, int]] = []
    for part in text.replace("(", "").replace(")", "").split(","):
        if not (thing := part.strip()):
            continue
        found = _MANY.fullmatch(thing)
        try:
            listed.append((thing, 1) if found is None else (found[1].strip(), max(1, round(float(found[2])))))
        except ValueError:
            listed.append((thing, 1))
    return listed if len(listed) > 1 or (listed and listed[0][1] != 1) else [(text, 1)]


def counting(chunks: Sequence[Chunk]) -> Tensor:
    """Return which tokens of chunks count (N,T), 1 up to the end of each and 0 after it, int64."""
    rows = []
    for chunk in chunks:
        end = next(at for at, (token, _) in enumerate(chunk) if isinstance(token, int) and token == END)
        rows.append([int(at <= end) for at in range(len(chunk))])
    return torch.tensor(rows)
