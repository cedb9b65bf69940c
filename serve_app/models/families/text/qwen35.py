"""Qwen3.5 of 0.8B to 27B, which writes prompts and sees images. Three of four layers are recurrent.

Images are normalised and placed as in its authors' code, which ComfyUI follows since 0.36; 0.33.0 reads them otherwise.
Source: Yang et al. 2024, arXiv:2412.06464, for the recurrent layers; Bai et al. 2025, arXiv:2511.21631, for images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig, Qwen3_5VisionConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5DecoderLayer, Qwen3_5RMSNorm, Qwen3_5VisionModel

from serve_app.errors import NodeError
from serve_app.models.families.text.decoder import DecoderEncoder, DecoderText
from serve_app.models.families.text.generation import Generation
from serve_app.models.families.text.qwen3_vl import HALVES, PATCH, Qwen3VisionTower
from serve_app.models.families.text.qwen_vl import QwenVlEncoder, Seen, laid_out, patches
from serve_app.models.families.text.sequences import Encoded, PromptFormat
from serve_app.models.families.text_family import TextResources
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenizer, qwen35
from serve_app.models.tokenizers.prompt import Token, Weighted
from serve_app.recipe.text import T5Padding
from serve_app.values import GenerationRequest, IllustratedText

_TURN = "<|im_start|>"
_SYSTEM = f"{_TURN}system\n{{}}<|im_end|>\n"
_USER = f"{_TURN}user\n{{}}<|im_end|>\n{_TURN}assistant\n"
_NO_THOUGHT = "<think>\n</think>\n"
"""The empty reasoning block that makes the model answer at once."""
_SEEN = "<|vision_start|><|image_pad|><|vision_end|>"

QWEN35 = PromptFormat(
    "qwen35_2b", template=_USER + _NO_THOUGHT, weighs=False, pad=qwen35.PAD, masked=True, returns_mask=True, taps=(-2,)
)
_SIZES = {1024: "08b", 2560: "4b", 4096: "9b", 5120: "27b"}
"""Names of the sizes by width; every other width is the 2B's."""
_WHOLE_EVERY, _ROTARY, _FRAMES, _MERGED = 4, 4, 2, 2
"""Every fourth layer attends, a quarter of a head is rotated, a patch has two frames and a token 2×2 patches."""
_NARROW, _FEWER_HEADS, _HEADS = 768, 12, 16


@dataclass(frozen=True, slots=True)
class Qwen35Text(DecoderText):
    """A Qwen3.5. key_heads, value_heads: of a recurrent layer; state: width of each. tower: None if it sees nothing."""

    name = "Qwen3.5"
    prefixes: ClassVar[tuple[str, ...]] = (
        *(f"text_encoders.qwen35_{size}.transformer." for size in ("2b", *_SIZES.values())),
        "",
    )
    first = "layers.0.linear_attn.A_log"
    theta = 1e7
    sections = (11, 11, 10)
    interleaved = True
    obeys: ClassVar[bool] = True
    """It takes a system prompt."""
    stop: ClassVar[tuple[int, ...]] = qwen35.STOP

    key_heads: int = 16
    value_heads: int = 16
    state: int = 128
    tower: Qwen3VisionTower | None = None

    @classmethod
    def recognises(cls, inner: Tensors) -> bool:
        return True

    @classmethod
    def probe(cls, tensors: Tensors) -> Qwen35Text:
        """Read the network's size off its tensors. Errors: ModelFileError for another layout."""
        inner = cls.inner(tensors)
        tokens, width = inner.shape("embed_tokens.weight")
        recurrent, attention = "layers.0.linear_attn", f"layers.{_WHOLE_EVERY - 1}.self_attn"
        (value_heads,), (state,) = inner.shape(f"{recurrent}.A_log"), inner.shape(f"{recurrent}.norm.weight")
        keys = (inner.shape(f"{recurrent}.conv1d.weight")[0] - value_heads * state) // 2
        (head,) = inner.shape(f"{attention}.q_norm.weight")
        return cls(
            layers=inner.count("layers."),
            width=width,
            hidden_width=inner.shape("layers.0.mlp.gate_proj.weight")[0],
            # Queries come with gates of their outputs.
            heads=inner.shape(f"{attention}.q_proj.weight")[0] // head // 2,
            kv_heads=inner.shape(f"{attention}.k_proj.weight")[0] // head,
            head=head,
            tokens=tokens,
            final_norm="norm.weight" in inner.shapes,
            separate_head=any(f"{root}lm_head.weight" in tensors.shapes for root in ("", "model.")),
            key_heads=keys // state,
            value_heads=value_heads,
            state=state,
            tower=_tower(tensors),
        )

    @property
    def rotary(self) -> int:
        return self.head // _ROTARY

    @property
    def sees(self) -> bool:
        """Whether it sees images that texts are about."""
        return self.tower is not None

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return replace(QWEN35, key=f"qwen35_{_SIZES.get(self.width, '2b')}")

    def table(self, tensors: Tensors | None = None) -> Table:
        return {**super(Qwen35Text, self).table(tensors), "model.visual": "visual", "visual": "visual"}

    def build(self) -> nn.Module:
        network = super(Qwen35Text, self).build()
        if self.tower is not None:
            network.visual = Qwen3_5VisionModel(self._vision(self.tower))
        return network

    def _vision(self, tower: Qwen3VisionTower) -> Any:
        return Qwen3_5VisionConfig(
            depth=tower.layers,
            hidden_size=tower.width,
            intermediate_size=tower.hidden_width,
            num_heads=_FEWER_HEADS if tower.width == _NARROW else _HEADS,
            patch_size=PATCH,
            spatial_merge_size=_MERGED,
            temporal_patch_size=_FRAMES,
            out_hidden_size=self.width,
            num_position_embeddings=tower.places,
            attn_implementation="sdpa",
        )

    def parts(self) -> tuple[Callable[[int], nn.Module], nn.Module]:
        config = Qwen3_5TextConfig(
            **self.sizes(),
            attention_bias=False,
            linear_num_key_heads=self.key_heads,
            linear_num_value_heads=self.value_heads,
            linear_key_head_dim=self.state,
            linear_value_head_dim=self.state,
        )
        return lambda i: _Layer(config, i), Qwen3_5RMSNorm(self.width, self.eps)

    def tokenizer(self, vocabulary: bytes | None, lexicon: TextResources) -> Tokenizer:
        return qwen35.tokenizer(lexicon.vocabulary)

    def encoder(self, network: Any, lexicon: TextResources) -> DecoderEncoder:
        prompt_format = self.prompt_format or self.prompt_format_for("")
        return Qwen35Encoder(self, prompt_format, self.tokenizer(None, lexicon), network, lexicon.vectors)


class _Layer(Qwen3_5DecoderLayer):  # type: ignore[misc]
    """A layer, of either kind. A recurrent one reads all tokens before its own, so masks are for others."""

    def forward(
        self, x: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor], **cache: Any
    ) -> Tensor:
        mask = None if hasattr(self, "linear_attn") else attention_mask
        out: Tensor = super().forward(x, position_embeddings=position_embeddings, attention_mask=mask, **cache)
        return out


class Qwen35Encoder(QwenVlEncoder):
    """Qwen3.5 on its device. It sees the images that it writes about; texts that it encodes have none."""

    def generation(self, request: GenerationRequest) -> Generation:
        """Return a new text generation. Errors: NodeError if the model cannot generate, or sees no images."""
        images = [] if request.image is None else [*torch.split(request.image, 1)]
        own = request.text.startswith(_TURN)
        text = request.text if own else _USER.replace("{}", _SEEN * len(images) + request.text)
        if request.system_prompt and not own:
            text = _SYSTEM.replace("{}", request.system_prompt) + text
        text += "" if own or request.thinking else _NO_THOUGHT
        row: list[tuple[Token, float] | Seen] = []
        for token, weight in self.framed(text, T5Padding(pads=0, length=1)):
            row.append(self.see(images.pop(0)) if images and token == qwen35.IMAGE_PAD else (token, weight))
        tokens, positions, seen = laid_out(row)
        return self.begun(request, [token for token, _ in tokens], positions if seen else None)

    def illustrated(self, text: IllustratedText, stop_at: int | None) -> tuple[Tensor, dict[str, Any]]:
        """Refuse a text with images. Errors: NodeError."""
        raise NodeError(
            f"Qwen3.5 encodes texts alone, and {len(text.images)} images were given; TextGenerate shows it images"
        )

    def before(self, tokens: Weighted) -> int:  # type: ignore[override]
        return 0

    def entry(self, encoded: Encoded) -> tuple[Tensor, dict[str, Any]]:
        return DecoderEncoder.entry(self, encoded)

    def see(self, image: Tensor) -> Seen:
        rows, columns, seen = self.looked(*patches(image, PATCH, HALVES, HALVES))
        return Seen(seen.pooler_output, rows, columns)


def _tower(tensors: Tensors) -> Qwen3VisionTower | None:
    for root in ("visual.", "model.visual."):
        if tensors.has(f"{root}blocks."):
            inner = tensors.within(root)
            hidden_width, width = inner.shape("blocks.0.mlp.linear_fc1.weight")
            places = inner.shape("pos_embed.weight")[0]
            return Qwen3VisionTower(inner.count("blocks."), width, hidden_width, places)
    return None
