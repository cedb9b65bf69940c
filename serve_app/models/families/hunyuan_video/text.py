"""Text encoders of HunyuanVideo: of 1, CLIP-L and Llama 3; of 1.5, Qwen2.5-VL and ByT5 for what a text quotes.

Of the language models, a text's words are kept, and not the template around them. Source: Kong et al. 2024,
arXiv:2412.03603; Wu et al. 2025, arXiv:2511.18870; ByT5: Xue et al. 2021, arXiv:2105.13626, with the glyphs of Liu et
al. 2024, arXiv:2406.10208.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from serve_app.models.families.hunyuan_video.backbone import GLYPHS
from serve_app.models.families.text.clip import ClipText, TextEncoder
from serve_app.models.families.text.decoder import DecoderEncoder
from serve_app.models.families.text.llama import LlamaText
from serve_app.models.families.text.qwen_vl import QWEN_IMAGE, QwenVlEncoder, QwenVlText
from serve_app.models.families.text.sequences import Encoded, PromptFormat
from serve_app.models.families.text.t5 import BYT5_KEYS, T5Encoder, T5Text
from serve_app.models.families.text_family import TextEnsemble, TextResources, own_text
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenize, byt5, llama
from serve_app.recipe.text import T5Padding
from serve_app.values import Conditioning, IllustratedText, Text

_LISTED = (
    "1. The main content and theme of the video.",
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects.",
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.",
    "4. background environment, light, style and atmosphere.",
    "5. camera angles, movements, and transitions used in the video",
)
"""What the models are asked to describe."""

LLAMA = PromptFormat(
    "llama",
    template="<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    + "".join(_LISTED)
    + ":<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    start=llama.START,
    pad=128258,
    empty=(llama.START,),
    masked=True,
    taps=(-3,),
)
QWEN = replace(
    QWEN_IMAGE,
    template="<|im_start|>system\nYou are a helpful assistant. Describe the video by detailing the following "
    "aspects:\n" + "\n".join(_LISTED) + ".<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    taps=(-3,),
)
_HEADER, _USER, _HEADER_END, _TURN_END, _BLANK = 128006, 882, 128007, 128009, 271
"""Llama's tokens around the user's words."""
_QUOTED = (r"\"(.*?)\"", "‘(.*?)’", "“(.*?)”")
"""What of a text is to be seen written, by the quotes around it."""

_KEY = "encoder.block.0.layer.0.SelfAttention.k.weight"


@dataclass(frozen=True, slots=True)
class ByT5Text(T5Text):
    """A small ByT5 that knows glyphs."""

    prefixes = ("text_encoders.byt5_small.transformer.", "")
    name = "ByT5"
    prompt_formats: ClassVar[Mapping[str, PromptFormat]] = {}
    usual = PromptFormat("byt5_small", end=byt5.END, pad=byt5.PAD, empty=(byt5.END,), masked=True, zeroed=True)

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return tensors.shape(_KEY)[0] == BYT5_KEYS

    def tokenize(self, network: Any, lexicon: TextResources) -> Tokenize:
        return byt5.tokenize


@dataclass(frozen=True, slots=True)
class HunyuanVideoText(TextEnsemble):
    """CLIP-L and Llama 3."""

    takes = {"CLIP-L": "l", "Llama 3.1": "llama"}  # noqa: RUF012
    name = "HunyuanVideo"
    types = ("hunyuan_video",)

    l: ClipText  # noqa: E741
    llama: LlamaText

    def encoder(self, network: Any, lexicon: TextResources) -> HunyuanVideoTextEncoder:
        tokenizer = self.llama.tokenizer(None, lexicon)
        of_llama = _LlamaEncoder(self.llama, LLAMA, tokenizer, network["llama"], lexicon.vectors)
        return HunyuanVideoTextEncoder(TextEncoder(self.l, network["l"], lexicon.vectors), of_llama)


class HunyuanVideoTextEncoder:
    """Both on their device: Llama's states, and CLIP-L's pooled output without its projection."""

    def __init__(self, l: TextEncoder, llama: _LlamaEncoder) -> None:  # noqa: E741
        self.l, self.llama = l, llama

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, all in one forward of each encoder; as `Encoder.encode`."""
        states = self.llama.encode(texts, stop_at, padding)
        pooled = self.l.encode_chunks([self.l.chunks(own_text(text, "l")) for text in texts], stop_at)
        return [
            [(cond, {**options, "pooled_output": of_text})]
            for [(cond, options)], (_, of_text) in zip(states, pooled, strict=True)
        ]


class _LlamaEncoder(DecoderEncoder):
    """Llama 3 on its device. States around the user's words are removed."""

    def entry(self, encoded: Encoded) -> tuple[Tensor, dict[str, Any]]:
        tokens = [token for token, _ in encoded.tokens]
        first, last = 0, len(tokens)
        for at in range(len(tokens) - 2):
            if tokens[at : at + 3] == [_HEADER, _USER, _HEADER_END]:
                first = at + 2
        if first:
            ends = (at + 1 for at in range(first, len(tokens)) if tokens[at] == _TURN_END)
            last = next(ends, len(tokens))
        if len(tokens) > first + 2 and tokens[first + 1] == _BLANK:
            first += 2
        return super().entry(replace(encoded, states=encoded.states[first:last], seen=encoded.seen[first:last]))


@dataclass(frozen=True, slots=True)
class HunyuanVideo15Text(TextEnsemble):
    """Qwen2.5-VL, and ByT5 for quoted text."""

    takes = {"Qwen2.5-VL": "qwen", "ByT5": "byt5"}  # noqa: RUF012
    name = "HunyuanVideo 1.5"
    types = ("hunyuan_video_15",)

    qwen: QwenVlText
    byt5: ByT5Text

    def encoder(self, network: Any, lexicon: TextResources) -> HunyuanVideo15TextEncoder:
        tokenizer = self.qwen.tokenizer(None, lexicon)
        glyphs = self.byt5.encoder(network["byt5"], lexicon)
        return HunyuanVideo15TextEncoder(
            _QwenEncoder(self.qwen, QWEN, tokenizer, network["qwen"], lexicon.vectors), glyphs
        )


class HunyuanVideo15TextEncoder:
    """Both on their device: Qwen2.5-VL's states, and of a text with quotes ByT5's beside them."""

    def __init__(self, qwen: _QwenEncoder, byt5: T5Encoder) -> None:
        self.qwen, self.byt5 = qwen, byt5

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, all in one forward of each encoder; as `Encoder.encode`."""
        whole = self.qwen.encode(texts, stop_at, padding)
        written = [_written(own_text(text, self.qwen.prompt_format.key)) for text in texts]
        rows = [self.byt5.row(text) for text in written if text]
        glyphs = iter(self.byt5.encode_rows(rows) if rows else ())
        return [
            [(cond, {**options, GLYPHS: next(glyphs).states[None]} if text else options)]
            for [(cond, options)], text in zip(whole, written, strict=True)
        ]


class _QwenEncoder(QwenVlEncoder):
    """Qwen2.5-VL on its device, as HunyuanVideo 1.5 reads it. An empty text is a space."""

    def around(self, text: str, template: str | None) -> str:
        return super().around(text or " ", template)

    def illustrated(self, text: IllustratedText, stop_at: int | None) -> tuple[Tensor, dict[str, Any]]:
        return self.entry(self.seeing(text, stop_at)[0])


def _written(text: str) -> str:
    """Return what a text quotes as ByT5 reads it; "" if it quotes nothing."""
    return "".join(f'Text "{quoted}". ' for quotes in _QUOTED for quoted in re.findall(quotes, text))
