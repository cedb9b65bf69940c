"""Text encoders of HiDream: T5-XXL, every layer of Llama 3.1, and CLIP-L and CLIP-G pooled; any subset works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from serve_app.models.families.dit.hidream import STATES
from serve_app.models.families.text.clip import ClipText, TextEncoder
from serve_app.models.families.text.decoder import DecoderEncoder
from serve_app.models.families.text.llama import LlamaText
from serve_app.models.families.text.sd3_text import G_WIDTH, L_WIDTH, WIDTH, AbsentClip, device_of
from serve_app.models.families.text.t5 import MASKED, T5Encoder, T5Text
from serve_app.models.families.text_family import TextEnsemble, TextResources, own_text
from serve_app.models.tokenizers.prompt import Weighted, filled, runs
from serve_app.recipe.text import T5Padding
from serve_app.values import Conditioning, Text

LENGTH = 128
"""T5's fixed number of tokens."""
LLAMA_LAYERS = 32
READING = replace(MASKED, least=LENGTH, returns_mask=False)


@dataclass(frozen=True, slots=True)
class HiDreamText(TextEnsemble):
    """T5-XXL, Llama 3.1, CLIP-L and CLIP-G."""

    takes = {"CLIP-L": "l", "CLIP-G": "g", "T5-XXL": "t5", "Llama 3.1": "llama"}  # noqa: RUF012
    name = "HiDream"
    types = ("hidream",)
    partial = True

    l: ClipText | None = None  # noqa: E741
    g: ClipText | None = None
    t5: T5Text | None = None
    llama: LlamaText | None = None

    @classmethod
    def fits(cls, titles: Sequence[str], loaded_as: str) -> bool:
        """Whether encoders of these titles are some of the ensemble; Llama alone always is."""
        return list(titles) == [LlamaText.name] or super(HiDreamText, cls).fits(titles, loaded_as)

    def encoder(self, network: Any, lexicon: TextResources) -> HiDreamTextEncoder:
        device = device_of(network)

        def clip(family: ClipText | None, module: str, width: int) -> TextEncoder | AbsentClip:
            if family is None:
                return AbsentClip(width, device)
            return TextEncoder(family, network[module], lexicon.vectors, paired=True, projected=True)

        t5 = llama = None
        if self.t5 is not None:
            t5 = ShortT5(READING, self.t5.tokenize(network["t5"], lexicon), network["t5"], lexicon.vectors)
        if self.llama is not None:
            llama = self.llama.encoder(network["llama"], lexicon)
        return HiDreamTextEncoder(clip(self.l, "l", L_WIDTH), clip(self.g, "g", G_WIDTH), t5, llama)


class ShortT5(T5Encoder):
    """T5 with a fixed number of tokens."""

    def framed(self, text: str, padding: T5Padding | None = None) -> Weighted:
        return self.prompt_format.framed(filled(runs(text, self._tokenize, self._embedding), LENGTH - 1)[0], padding)


class HiDreamTextEncoder:
    """Those present, on their device; zeros for the others."""

    def __init__(
        self,
        l: TextEncoder | AbsentClip,  # noqa: E741
        g: TextEncoder | AbsentClip,
        t5: ShortT5 | None,
        llama: DecoderEncoder | None,
    ) -> None:
        self.l, self.g, self.t5, self.llama = l, g, t5, llama

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, all in one forward of each encoder; as `Encoder.encode`."""
        pooled = [
            clip.encode_chunks([clip.chunks(own_text(text, key)) for text in texts], stop_at)
            for key, clip in (("l", self.l), ("g", self.g))
        ]
        conds, states = self._of_t5(texts, stop_at, padding), self._of_llama(texts)
        return [
            [(cond, {"pooled_output": torch.cat([of_l, of_g], dim=1), STATES: of_layers})]
            for cond, of_layers, (_, of_l), (_, of_g) in zip(conds, states, *pooled, strict=True)
        ]

    def _of_t5(self, texts: Sequence[Text], stop_at: int | None, padding: T5Padding | None) -> list[Tensor]:
        if self.t5 is None:
            return [torch.zeros(1, LENGTH, WIDTH) for _ in texts]
        encoded = self.t5.encode_rows([self.t5.row(text, padding) for text in texts], stop_at)
        return [one.states[None] for one in encoded]

    def _of_llama(self, texts: Sequence[Text]) -> list[Tensor]:
        """Return each text's states of every layer, (1,L,T,D)."""
        if self.llama is None:
            return [torch.zeros(1, LLAMA_LAYERS, 1, WIDTH) for _ in texts]
        layers = self.llama.family.layers
        encoded = self.llama.encode_rows([self.llama.row(text) for text in texts])
        return [one.states.view(len(one.states), layers, -1).movedim(1, 0)[None] for one in encoded]
