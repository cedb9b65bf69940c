"""Text encoders of Kandinsky 5: Qwen2.5-VL, with a template for images and one for videos, and CLIP-L.

Source: Arkhipkin et al. 2025, arXiv:2511.14993.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from serve_app.models.families.text.clip import ClipText, TextEncoder
from serve_app.models.families.text.qwen_vl import QWEN_IMAGE, QwenVlEncoder, QwenVlText
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.families.text_family import TextEnsemble, TextResources, own_text
from serve_app.recipe.text import T5Padding
from serve_app.values import Conditioning, Text

_USER = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>"
_OF_VIDEOS = (
    "You are a prompt engineer. Describe the video in detail.",
    "Describe how the camera moves or shakes, describe the zoom and view angle, whether it follows the objects.",
    "Describe the location of the video, main characters or objects and their action.",
    "Describe the dynamism of the video and presented actions.",
    "Name the visual style of the video: whether it is a professional footage, user generated content, some kind of "
    "animation, video game or screen content.",
    "Describe the visual effects, postprocessing and transitions if they are presented in the video.",
    "Pay attention to the order of key actions shown in the scene.",
)
_OF_IMAGES = (
    "You are a promt engineer. Describe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:"
)
VIDEOS = replace(QWEN_IMAGE, template=f"<|im_start|>system\n{chr(10).join(_OF_VIDEOS)}{_USER}", taps=(-1,))
IMAGES = replace(VIDEOS, template=f"<|im_start|>system\n{_OF_IMAGES}{_USER}")


@dataclass(frozen=True, slots=True)
class Kandinsky5Text(TextEnsemble):
    """Qwen2.5-VL and CLIP-L, for videos."""

    takes = {"Qwen2.5-VL": "qwen", "CLIP-L": "l"}  # noqa: RUF012
    name = "Kandinsky 5"
    types = ("kandinsky5",)
    template: ClassVar[PromptFormat] = VIDEOS

    qwen: QwenVlText
    l: ClipText  # noqa: E741

    def encoder(self, network: Any, lexicon: TextResources) -> Kandinsky5TextEncoder:
        tokenizer = self.qwen.tokenizer(None, lexicon)
        of_qwen = QwenVlEncoder(self.qwen, self.template, tokenizer, network["qwen"], lexicon.vectors)
        return Kandinsky5TextEncoder(of_qwen, TextEncoder(self.l, network["l"], lexicon.vectors))


@dataclass(frozen=True, slots=True)
class Kandinsky5ImageText(Kandinsky5Text):
    """Qwen2.5-VL and CLIP-L, for images."""

    name = "Kandinsky 5 Image"
    types = ("kandinsky5_image",)
    template = IMAGES


class Kandinsky5TextEncoder:
    """Both on their device: Qwen2.5-VL's states, and CLIP-L's pooled output without its projection."""

    def __init__(self, qwen: QwenVlEncoder, l: TextEncoder) -> None:  # noqa: E741
        self.qwen, self.l = qwen, l

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, all in one forward of each encoder; as `Encoder.encode`."""
        states = self.qwen.encode(texts, stop_at, padding)
        pooled = self.l.encode_chunks([self.l.chunks(own_text(text, "l")) for text in texts], stop_at)
        return [
            [(cond, {**options, "pooled_output": of_text})]
            for [(cond, options)], (_, of_text) in zip(states, pooled, strict=True)
        ]
