"""Qwen3-VL 8B as Boogu-Image reads texts, and edits with their images: the last states of all tokens.

Source: Boogu 2026, Boogu-Image 0.1; the templates are ComfyUI's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from serve_app.models.families.text.decoder import DecoderEncoder
from serve_app.models.families.text.qwen import QwenImage21Text
from serve_app.models.families.text.qwen3_vl import HALVES, PATCH
from serve_app.models.families.text.qwen_vl import QWEN_IMAGE, QwenVlEncoder, Seen, patches
from serve_app.models.families.text.sequences import Encoded, PromptFormat
from serve_app.models.families.text_family import TextResources
from serve_app.values import EDIT_TEMPLATE, SEEN, IllustratedText

_TURN = "<|im_start|>"
_ANSWER = "<|im_start|>assistant\n"
EDITS = EDIT_TEMPLATE.removesuffix(_ANSWER)
"""The template of a text with images, and of one without words."""
BOOGU = replace(
    QWEN_IMAGE,
    key="qwen3vl_8b",
    template="<|im_start|>system\nYou are a helpful assistant that generates high-quality images based on user "
    "instructions. The instructions are as follows.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n",
    embeds=True,
)


@dataclass(frozen=True, slots=True)
class BooguText(QwenImage21Text):
    """Qwen3-VL as Boogu-Image uses it, with its vision tower."""

    types = ("boogu",)

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return BOOGU

    def encoder(self, network: Any, lexicon: TextResources) -> QwenVlEncoder:
        return BooguEncoder(self, BOOGU, self.tokenizer(None, lexicon), network, lexicon.vectors)


class BooguEncoder(QwenVlEncoder):
    """Qwen3-VL on its device. The template's states stay; images precede the text."""

    def around(self, text: str, template: str | None) -> str:
        if text.startswith(_TURN):
            return text
        return self.prompt_format.around(text, EDITS if template is None and not text.strip() else template)

    def entry(self, encoded: Encoded) -> tuple[Tensor, dict[str, Any]]:
        return DecoderEncoder.entry(self, encoded)

    def illustrated(self, text: IllustratedText, stop_at: int | None) -> tuple[Tensor, dict[str, Any]]:
        pictures = SEEN * len(text.images)
        template = text.template or EDITS.replace("{}", f"{pictures}{{}}", 1)
        return self.entry(self.seeing(replace(text, template=template), stop_at)[0])

    def see(self, image: Tensor) -> Seen:
        rows, columns, seen = self.looked(*patches(image[:1], PATCH, HALVES, HALVES))
        return Seen(seen.pooler_output, rows, columns, seen.deepstack_features)
