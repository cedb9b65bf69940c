"""Qwen3 as text encoder: 4B for Z-Image and Flux.2 klein 4B, 8B for klein 9B; Qwen3-VL for several other families.

Source: Yang et al. 2025, arXiv:2505.09388.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm

from serve_app.errors import NodeError
from serve_app.models.families.text.decoder import DecoderEncoder, DecoderText
from serve_app.models.families.text.minimax_h3_text import LAYERS, MINIMAX_H3, MiniMaxH3Encoder
from serve_app.models.families.text.qwen3_vl import QWEN_IMAGE_21, Qwen3VisionTower, QwenImage21Encoder, tower
from serve_app.models.families.text.qwen_vl import QWEN_IMAGE, QwenImageEncoder, QwenVlEncoder
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.families.text_family import TextFamily, TextResources
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenizer, qwen
from serve_app.models.tokenizers.prompt import Weighted
from serve_app.recipe.text import T5Padding
from serve_app.values import GenerationRequest, IllustratedText, Text

_USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

PLAIN = PromptFormat("qwen3_4b", pad=qwen.PAD, weighs=False, masked=True, returns_mask=True)
Z_IMAGE = replace(PLAIN, template=_USER, taps=(-2,))
_NO_THOUGHT = "<think>\n\n</think>\n\n"
"""The empty reasoning block that makes the model answer at once."""
KLEIN = replace(PLAIN, template=_USER + _NO_THOUGHT, least=512, taps=(9, 18, 27))

KREA2 = replace(QWEN_IMAGE, key="qwen3vl_4b", embeds=True, taps=tuple(range(2, 36, 3)))

FLUX3 = replace(PLAIN, key="qwen3vl_4b", template=_USER, multiple=80, returns_mask=False, taps=tuple(range(4, 33, 4)))
IDEOGRAM4 = replace(QWEN_IMAGE, key="qwen3vl_8b", template=_USER, embeds=True, taps=(*range(1, 35, 3), 36))

_KEYS = ("qwen3_4b", "qwen3_8b", "qwen3vl_4b", "qwen3vl_8b", "qwen3vl_32b")
WIDTH_06B, WIDTH_OVIS = 1024, 2048
"""Widths of models used otherwise: Anima's and Ovis-Image's."""
WITH_CODES = 217204
"""Tokens of one that writes codes of sound, ACE-Step 1.5's."""
_WIDTH_8B = 4096
"""From this width on it is Flux.2 klein 9B's encoder, whatever the type."""


@dataclass(frozen=True, slots=True)
class Qwen3Text(DecoderText):
    """A Qwen3, or a Qwen3-VL. tower: its vision tower, None if the file has none; only some encoders use it."""

    name = "Qwen3"
    prefixes: ClassVar[tuple[str, ...]] = (
        *(f"text_encoders.{key}.transformer." for key in _KEYS),
        "",
    )
    theta = 1e6
    stop: ClassVar[tuple[int, ...]] = qwen.STOP

    tower: Qwen3VisionTower | None = None

    @classmethod
    def probe(cls, tensors: Tensors) -> Qwen3Text:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        return replace(super(Qwen3Text, cls).probe(tensors), tower=Qwen3VisionTower.probe(tensors))

    def table(self, tensors: Tensors | None = None) -> Table:
        return {**super(Qwen3Text, self).table(tensors), "model.visual": "visual", "visual": "visual"}

    @classmethod
    def recognises(cls, inner: Tensors) -> bool:
        attention, norm = "layers.0.self_attn.q_norm.weight", "layers.0.post_feedforward_layernorm.weight"
        if attention not in inner.shapes or norm in inner.shapes:
            return False
        tokens, width = inner.shape("embed_tokens.weight")
        return tokens != WITH_CODES and cls.reads(width)

    @classmethod
    def reads(cls, width: int) -> bool:
        """Whether a model of this width is used in this way."""
        return width != WIDTH_06B

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        if self.width >= _WIDTH_8B:
            return replace(KLEIN, key="qwen3_8b")
        return KLEIN if loaded_as in ("flux", "flux2") else Z_IMAGE

    def parts(self) -> tuple[Callable[[int], nn.Module], nn.Module]:
        config = Qwen3Config(**self.sizes(), attention_bias=False)
        return lambda i: Qwen3DecoderLayer(config, i), Qwen3RMSNorm(self.width, self.eps)

    def tokenizer(self, vocabulary: bytes | None, lexicon: TextResources) -> Tokenizer:
        return qwen.tokenizer(lexicon.vocabulary)


@dataclass(frozen=True, slots=True)
class Krea2Text(Qwen3Text):
    """Qwen3-VL as Krea 2 uses it, with another theta of its rotary positions. It reads no images."""

    types = ("krea2",)
    theta = 5e6

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return KREA2

    def encoder(self, network: Any, lexicon: TextResources) -> Krea2Encoder:
        return Krea2Encoder(self, KREA2, self.tokenizer(None, lexicon), network, lexicon.vectors)


class Krea2Encoder(QwenImageEncoder):
    """Qwen3-VL on its device. The thinking option applies only in its own chat template."""

    def row(self, text: Text, padding: T5Padding | None = None) -> Weighted:
        # ComfyUI's sees them, so leaving them out would make another picture than there.
        if isinstance(text, IllustratedText) and text.images:
            raise NodeError(f"Krea 2's text encoder sees no images here, and {len(text.images)} were given")
        return super().row(text, padding)

    def prompt(self, request: GenerationRequest) -> Weighted:
        own = not request.use_template or request.text.startswith("<|im_start|>")
        text = request.text if own else self.prompt_format.around(request.text)
        thought = "" if own or request.thinking else _NO_THOUGHT
        return self.framed(text + thought, T5Padding(pads=0, length=1))


@dataclass(frozen=True, slots=True)
class Flux3Text(Qwen3Text):
    """Qwen3-VL as Flux.3 uses it. It reads no images: the network has them itself."""

    types = ("flux3",)
    theta = 5e6

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return FLUX3

    def encoder(self, network: Any, lexicon: TextResources) -> Flux3Encoder:
        return Flux3Encoder(self, FLUX3, self.tokenizer(None, lexicon), network, lexicon.vectors)


class Flux3Encoder(DecoderEncoder):
    """Qwen3-VL on its device. A text's padding is part of its conditioning."""

    def forward(self, x: Tensor, seen: Tensor | None, stop_at: int | None) -> Tensor:
        at = torch.arange(x.shape[1], device=x.device)[None]
        # The network is trained on padding at position 1.
        return self.states(self.scaled(x), seen, at if seen is None else torch.where(seen, at, 1), stop_at)


@dataclass(frozen=True, slots=True)
class Ideogram4Text(Qwen3Text):
    """Qwen3-VL as Ideogram 4 uses it. It reads no images."""

    types = ("ideogram4",)
    theta = 5e6

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return IDEOGRAM4

    def parts(self) -> tuple[Callable[[int], nn.Module], nn.Module]:
        layer, norm = super(Ideogram4Text, self).parts()
        # The last layer's states are normed where the file has a tower, as in ComfyUI.
        return layer, nn.Identity() if self.tower is None else norm

    def encoder(self, network: Any, lexicon: TextResources) -> Ideogram4Encoder:
        return Ideogram4Encoder(self, IDEOGRAM4, self.tokenizer(None, lexicon), network, lexicon.vectors)


class Ideogram4Encoder(DecoderEncoder):
    """Qwen3-VL on its device. The layers' states of a token alternate, number by number."""

    def around(self, text: str, template: str | None) -> str:
        return text if text.startswith("<|im_start|>") else super().around(text, template)

    def forward(self, x: Tensor, seen: Tensor | None, stop_at: int | None) -> Tensor:
        states = super().forward(x, seen, stop_at)
        by_layer = states.view(*states.shape[:-1], -1, x.shape[-1])
        return by_layer.transpose(-1, -2).flatten(-2)


@dataclass(frozen=True, slots=True)
class QwenImage21Text(Qwen3Text):
    """Qwen3-VL as Qwen-Image 2.1 uses it, with its vision tower."""

    types = ("qwen_image",)
    theta = 5e6
    sections = (24, 20, 20)
    interleaved = True

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return QWEN_IMAGE_21

    def build(self) -> nn.Module:
        network = super(QwenImage21Text, self).build()
        if self.tower is not None:
            network.visual = tower(self.tower, self.width)
        return network

    def encoder(self, network: Any, lexicon: TextResources) -> QwenVlEncoder:
        return QwenImage21Encoder(self, QWEN_IMAGE_21, self.tokenizer(None, lexicon), network, lexicon.vectors)


@dataclass(frozen=True, slots=True)
class MiniMaxH3Text(QwenImage21Text):
    """Qwen3-VL 32B as MiniMax H3 uses it, up to layer 50, with its vision tower."""

    types = ("minimax",)

    @classmethod
    def replaces(cls, found: TextFamily, loaded_as: str) -> bool:
        """Whether the type says so, or the file: only MiniMax H3's has a vision tower and 50 layers."""
        whole = isinstance(found, Qwen3Text) and found.tower is not None and found.layers >= LAYERS
        return whole or loaded_as in cls.types

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return replace(MINIMAX_H3, taps=(min(LAYERS, self.layers),))

    def encoder(self, network: Any, lexicon: TextResources) -> QwenVlEncoder:
        return MiniMaxH3Encoder(
            self, self.prompt_format_for(""), self.tokenizer(None, lexicon), network, lexicon.vectors
        )
