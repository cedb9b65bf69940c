"""Qwen3-VL 4B as Mage-Flow reads texts, and edits with their images. Source: Microsoft 2026, Mage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from serve_app.models.families.text.qwen import QwenImage21Text
from serve_app.models.families.text.qwen3_vl import HALVES, PATCH
from serve_app.models.families.text.qwen_vl import QWEN_IMAGE, QwenVlEncoder, Seen, patches
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.families.text_family import TextResources
from serve_app.values import EDIT_TEMPLATE, SEEN, IllustratedText

MAGE_FLOW = replace(QWEN_IMAGE, key="qwen3vl_4b", embeds=True)


@dataclass(frozen=True, slots=True)
class MageFlowText(QwenImage21Text):
    """Qwen3-VL as Mage-Flow uses it, with its vision tower."""

    types = ("mage",)

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return MAGE_FLOW

    def encoder(self, network: Any, lexicon: TextResources) -> QwenVlEncoder:
        return MageFlowEncoder(self, MAGE_FLOW, self.tokenizer(None, lexicon), network, lexicon.vectors)


class MageFlowEncoder(QwenVlEncoder):
    """Qwen3-VL on its device. Images of an edit precede its text, as "Image 1: " and so on."""

    def illustrated(self, text: IllustratedText, stop_at: int | None) -> tuple[Tensor, dict[str, Any]]:
        pictures = "".join(f"Image {number}: {SEEN}" for number in range(1, len(text.images) + 1))
        template = text.template or EDIT_TEMPLATE.replace("{}", f"{pictures}{{}}", 1)
        return self.entry(self.seeing(replace(text, template=template), stop_at)[0])

    def see(self, image: Tensor) -> Seen:
        rows, columns, seen = self.looked(*patches(image[:1], PATCH, HALVES, HALVES))
        return Seen(seen.pooler_output, rows, columns, seen.deepstack_features)
