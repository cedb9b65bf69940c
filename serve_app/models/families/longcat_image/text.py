"""Qwen2.5-VL as LongCat-Image reads texts: 512 tokens, of what a text quotes each letter by itself.

Source: Meituan 2025, arXiv:2512.07584.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from serve_app.models.families.text.qwen_vl import QWEN_IMAGE, QwenVlEncoder, QwenVlText
from serve_app.models.families.text.sequences import Encoded, PromptFormat
from serve_app.models.families.text_family import TextResources, own_text
from serve_app.models.tokenizers import qwen
from serve_app.models.tokenizers.prompt import Weighted
from serve_app.recipe.text import T5Padding
from serve_app.values import SEEN, IllustratedText, Text

LENGTH = 512
"""Tokens of a text, with padding."""
IM_END = 151645
_CAPTIONS = (
    "<|im_start|>system\nAs an image captioning expert, generate a descriptive text prompt based on an image content, "
    "suitable for input to a text-to-image model.<|im_end|>\n<|im_start|>user\n"
)
_EDITS = (
    "<|im_start|>system\nAs an image editing expert, first analyze the content and attributes of the input image(s). "
    "Then, based on the user's editing instructions, clearly and precisely determine how to modify the given image(s), "
    "ensuring that only the specified parts are altered and all other aspects remain consistent with the "
    f"original(s).<|im_end|>\n<|im_start|>user\n{SEEN}"
)
_END = "<|im_end|>\n<|im_start|>assistant\n"
_OWN_TEMPLATES = ("<|im_start|>", "<|start_header_id|>")
_QUOTED = re.compile("""('[^']*?'|"[^"]*?"|‘[^‘’]*?’|“[^“”]*?”)""")
_APOSTROPHE = re.compile("([a-zA-Z]+)'([a-zA-Z]+)")
_HIDDEN = "\ue000"
"""Stands for an apostrophe within a word, which quotes nothing."""


@dataclass(frozen=True, slots=True)
class LongCatText(QwenVlText):
    """Qwen2.5-VL as LongCat-Image uses it, with its vision tower."""

    types = ("longcat_image",)

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return QWEN_IMAGE

    def encoder(self, network: Any, lexicon: TextResources) -> LongCatEncoder:
        return LongCatEncoder(self, QWEN_IMAGE, self.tokenizer(None, lexicon), network, lexicon.vectors)


class LongCatEncoder(QwenVlEncoder):
    """Qwen2.5-VL on its device. Of its states those of the template are removed, before and after the text's."""

    unseen_at = 1

    def row(self, text: Text, padding: T5Padding | None = None) -> Weighted:
        return self._framed(own_text(text, self.prompt_format.key), _CAPTIONS)

    def illustrated(self, text: IllustratedText, stop_at: int | None) -> tuple[Tensor, dict[str, Any]]:
        images = () if text.text.startswith(_OWN_TEMPLATES) else text.images
        return self.entry(self.seen_among(self._framed(text.text, _EDITS), images, stop_at)[0])

    def entry(self, encoded: Encoded) -> tuple[Tensor, dict[str, Any]]:
        tokens = [token for token, _ in encoded.tokens]
        ends = [at for at, token in enumerate(tokens) if isinstance(token, int) and token == IM_END]
        last = ends[-1] if ends and ends[-1] > self.before(tokens) else len(tokens)
        return super().entry(replace(encoded, states=encoded.states[:last], seen=encoded.seen[:last]))

    def _framed(self, text: str, begin: str) -> Weighted:
        """Return a text's tokens, padded, in a template unless it has one of its own."""
        of_text = [token for part in _parts(text or " ") for token in self.tokenizer(part)][:LENGTH]
        padded = of_text + [qwen.PAD] * (LENGTH - len(of_text))
        if not text.startswith(_OWN_TEMPLATES):
            padded = [*self.tokenizer(begin), *padded, *self.tokenizer(_END)]
        return [(token, 1.0) for token in padded]


def _parts(text: str) -> Iterator[str]:
    """Yield the parts of a text that are tokenised one by one.

    Of several words with an apostrophe within ComfyUI's repeats one in the place of another; here each stays.
    """
    for number, part in enumerate(_QUOTED.split(_APOSTROPHE.sub(rf"\1{_HIDDEN}\2", text))):
        shown = part.replace(_HIDDEN, "'")
        yield from shown if number % 2 else [shown] if shown else []
