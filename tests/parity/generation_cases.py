"""Texts that small random language models generate; the figures in golden/generations.npz are ComfyUI's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from serve_app.models.families.text.gemma import Gemma2Text
from serve_app.models.families.text.ltx2_text import Gemma3Text
from serve_app.models.families.text.qwen import Qwen3Text
from serve_app.models.families.text.qwen3_vl import Qwen3VisionTower
from serve_app.models.families.text.qwen35 import Qwen35Text
from serve_app.models.families.vision.clip_vision import ClipVision
from serve_app.models.tokenizers import qwen35
from serve_app.models.tokenizers.vocabularies import no_file
from serve_app.values import GenerationRequest, TokenSampling
from tests.parity.text_cases import CASES as TEXTS
from tests.parity.text_cases import DECODER_SIZES, EMBEDDING, TextCase, image

USUAL = TokenSampling(temperature=0.7, top_k=64, top_p=0.95, min_p=0.05, repetition_penalty=1.05)
"""What the node offers."""
VARIED = replace(USUAL, repetition_penalty=3.0)
"""So that a network whose last layer is its first does not repeat itself."""
REQUESTS = (
    GenerationRequest("a fox", 9),
    GenerationRequest("a fox", 24, USUAL),
    GenerationRequest("a (red:1.2) fox \\(old\\), ünïcode 写一只狐狸", 24, replace(VARIED, seed=2**64 - 1, top_k=1000)),
    GenerationRequest("a hen", 24, TokenSampling(1.3, 0, 0.9, 0.01, 1.0, 5.0, seed=7)),
    GenerationRequest("", 24, TokenSampling(1.0, 0, 1.0, 0.0, 2.5, 0.0, seed=3)),
)
MODES = (
    GenerationRequest("a fox", 24, VARIED, thinking=True),
    GenerationRequest("a fox", 24, VARIED, use_template=False),
    GenerationRequest("<|im_start|>user\na fox<|im_end|>\n", 24, VARIED),
    GenerationRequest(f"a fox, embedding:{EMBEDDING} of old", 24, VARIED),
)
TURNS = (
    GenerationRequest("<start_of_turn>user\na fox<end_of_turn>\n<start_of_turn>model\n", 24, VARIED),
    GenerationRequest("a fox", 24, VARIED, use_template=False),
    GenerationRequest("a fox " * 600, 24, VARIED),
)
"""The last is longer than the window of most layers."""
TOWER = {"hidden_size": 32, "intermediate_size": 48, "image_size": 448}
SEEING = Gemma3Text(7, 32, 48, 2, 1, 256, 256000, tower=ClipVision(27, 32, 48, 32, 14, siglip=True))
"""A Gemma 3 that sees images, by the sizes of ComfyUI's."""
_SHOWN = GenerationRequest("<start_of_turn>user\n<image_soft_token>a fox<end_of_turn>\n", 24, VARIED)
_QWEN3 = Qwen3Text(layers=3, width=32, hidden_width=48, heads=2, kv_heads=1, head=128, tokens=151936)
_SIZES = {**DECODER_SIZES, "num_hidden_layers": 3}
QWEN35 = Qwen35Text(
    layers=4,
    width=32,
    hidden_width=48,
    heads=2,
    kv_heads=1,
    head=64,
    tokens=248320,
    separate_head=True,
    key_heads=2,
    value_heads=4,
    state=16,
)
"""A Qwen3.5 of three recurrent layers and one that attends."""
SEEING_QWEN35 = replace(QWEN35, tower=Qwen3VisionTower(2, 64, 96, 49))
"""The same with a part that sees."""
_QWEN35_SIZES = {
    **DECODER_SIZES,
    "num_hidden_layers": 4,
    "head_dim": 64,
    "lm_head": True,
    "mrope_section": [3, 3, 2],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
}


@dataclass(frozen=True, slots=True)
class GenerationCase:
    """A language model, as a case of text encoders, and what it is asked. encoded: texts that it encodes."""

    encoder: TextCase
    requests: tuple[GenerationRequest, ...] = REQUESTS
    encoded: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what ComfyUI's side is asked."""
        return {
            **self.encoder.as_json(),
            "texts": self.encoded,
            "generations": [_asked(request) for request in self.requests],
            "ranks": str(qwen35.vocabulary(no_file)),
        }


def _asked(request: GenerationRequest) -> dict[str, Any]:
    sampling = asdict(request.sampling or TokenSampling())
    return {
        "text": request.text,
        "max_tokens": request.max_tokens,
        "sampling": {"do_sample": request.sampling is not None, **sampling},
        "modes": {"thinking": request.thinking, "skip_template": not request.use_template},
        "image": None if request.image is None else list(request.image.shape[1:3]),
    }


def _case(name: str, family: Any, kind: str, module: str, made: str, tokenizer: str, key: str, **more: Any) -> TextCase:
    return TextCase({name: family}, kind, module, made, tokenizer, {key: _SIZES}, **more)


CASES: Mapping[str, GenerationCase] = {
    "z_image": GenerationCase(_case("qwen3", _QWEN3, "lumina2", "z_image", "te", "ZImageTokenizer", "qwen3_4b")),
    "klein_9b": GenerationCase(
        _case(
            "qwen3_head",
            replace(_QWEN3, separate_head=True),
            "flux2",
            "flux",
            "klein_te",
            "KleinTokenizer8B",
            "qwen3_8b",
            called={"model_type": "qwen3_8b"},
        )
    ),
    "krea2": GenerationCase(
        _case("qwen3", _QWEN3, "krea2", "krea2", "te", "Krea2Tokenizer", "qwen3vl_4b"), REQUESTS + MODES
    ),
    "qwen35": GenerationCase(
        TextCase(
            {"qwen35": QWEN35},
            "stable_diffusion",
            "qwen35",
            "te",
            "Qwen35ImageTokenizer",
            {"qwen35_2b": _QWEN35_SIZES},
        ),
        (*REQUESTS, MODES[0], MODES[2], GenerationRequest("a fox " * 40, 12)),
        ("a fox", "a (red:1.2) fox, ünïcode 写一只狐狸 हिन्दी"),
    ),
    "ltx2": GenerationCase(
        TEXTS["ltx23"],
        REQUESTS + TURNS,
    ),
    "ltx2 seeing": GenerationCase(
        replace(TEXTS["ltx23"], files={"gemma3_seeing": SEEING, "ltx23": TEXTS["ltx23"].files["ltx23"]}, tower=TOWER),
        tuple(replace(request, image=image(40, 64)) for request in (REQUESTS[1], _SHOWN)),
    ),
    "lumina2": GenerationCase(
        _case(
            "gemma2",
            Gemma2Text(3, 32, 48, 2, 1, 256, 256000),
            "lumina2",
            "lumina2",
            "te",
            "LuminaTokenizer",
            "gemma2_2b",
        )
    ),
}
