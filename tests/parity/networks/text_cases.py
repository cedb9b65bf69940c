"""Text encoders of families in sub-packages of their own, as `tests.parity.text_cases`; golden/network_texts.npz."""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.models.families.hunyuan_video.text import ByT5Text
from serve_app.models.families.text.clip import ClipText
from serve_app.models.families.text.qwen import Qwen3Text, QwenImage21Text
from serve_app.models.families.text.qwen3_vl import Qwen3VisionTower as DeepTower
from serve_app.models.families.text.qwen_vl import QwenVisionTower, QwenVlText
from tests.parity.text_cases import AWKWARD, DECODER_SIZES, TextCase

_BYT5 = {"d_model": 32, "d_kv": 64, "d_ff": 48, "num_heads": 6, "num_layers": 2, "vocab_size": 384}
_FEW = tuple(AWKWARD[i] for i in (0, 5, 7))

_QWEN_VL = {"qwen25_7b": {**DECODER_SIZES, "num_hidden_layers": 2, "vocab_size": 151936}}
_L = ClipText(layers=3, width=64, hidden_width=96, positions=77)
_L_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 1, "num_hidden_layers": 3}
OVIS_WIDTH = 56
"""As wide as Ovis's model is here, which its width tells from others."""

NETWORK_TEXTS: Mapping[str, TextCase] = {
    **{
        name: TextCase(
            {"qwen_vl_kandinsky5": QwenVlText(2, 32, 48, 2, 1, 128, 151936), "clip_l_kandinsky5": _L},
            name,
            "kandinsky5",
            "te",
            tokenizer,
            _QWEN_VL | {"clip_l": _L_SIZES},
            texts=(*_FEW, "", "<|im_start|>user\nof my own"),
            every=3,
        )
        for name, tokenizer in (
            ("kandinsky5", "Kandinsky5Tokenizer"),
            ("kandinsky5_image", "Kandinsky5TokenizerImage"),
        )
    },
    "boogu": TextCase(
        {"qwen3_vl_boogu": QwenImage21Text(4, 32, 48, 2, 1, 128, 151936, tower=DeepTower(27, 64, 96, 49))},
        "boogu",
        "boogu",
        "te",
        "BooguTokenizer",
        {"qwen3vl_8b": {**DECODER_SIZES, "num_hidden_layers": 4, "vocab_size": 151936}},
        texts=(
            *(*_FEW, " ", "<|im_start|>user\nof my own"),
            {"text": "make it blue", "images": [[60, 100]], "template": None},
            {"text": "as {both}", "images": [[64, 64], [96, 64]], "template": None},
        ),
        tower={"hidden_size": 64, "intermediate_size": 96, "num_position_embeddings": 49},
        every=5,
    ),
    "ovis": TextCase(
        {"qwen3_ovis": Qwen3Text(3, OVIS_WIDTH, 48, 2, 1, 128, 151936)},
        "ovis",
        "ovis",
        "te",
        "OvisTokenizer",
        {"qwen3_2b": {**DECODER_SIZES, "hidden_size": OVIS_WIDTH, "num_hidden_layers": 3}},
        texts=(*_FEW, ""),
        every=11,
    ),
    "mage_flow": TextCase(
        {"qwen3_vl_mage": QwenImage21Text(4, 32, 48, 2, 1, 128, 151936, tower=DeepTower(24, 64, 96, 49))},
        "mage",
        "mage_flow",
        "te",
        "MageFlowTokenizer",
        {"qwen3vl_4b": {**DECODER_SIZES, "num_hidden_layers": 4, "vocab_size": 151936}},
        texts=(
            *(*_FEW, "", "<|im_start|>user\nof my own"),
            {"text": "make it blue", "images": [[60, 100]], "template": None},
            {"text": "as {both}", "images": [[64, 64], [96, 64]], "template": None},
        ),
        tower={"hidden_size": 64, "intermediate_size": 96, "num_position_embeddings": 49},
        every=5,
    ),
    "longcat_image": TextCase(
        {"qwen_vl_longcat": QwenVlText(2, 32, 48, 2, 1, 128, 151936, tower=QwenVisionTower(9, 80, 96))},
        "longcat_image",
        "longcat_image",
        "te",
        "LongCatImageTokenizer",
        {"qwen25_7b": {**DECODER_SIZES, "num_hidden_layers": 2, "vocab_size": 151936}},
        texts=(
            *("a sign 'Open' and “ä b”, rock'n'roll 'x'", "", "<|im_start|>user\nof my own", "word " * 600),
            {"text": 'write "Hi"', "images": [[60, 100]], "template": None},
        ),
        tower={"hidden_size": 80, "num_layers": 9, "num_heads": 1, "intermediate_size": 96},
        every=11,
    ),
    "hunyuan_video_15": TextCase(
        {
            "qwen_vl_deep": QwenVlText(4, 32, 48, 2, 1, 128, 151936),
            "byt5": ByT5Text(layers=2, width=32, hidden_width=48, heads=6, head_width=64, buckets=32, vocabulary=384),
        },
        "hunyuan_video_15",
        "hunyuan_image",
        "te",
        "HunyuanVideo15Tokenizer",
        {"qwen25_7b": {**DECODER_SIZES, "num_hidden_layers": 4, "vocab_size": 151936}, "": _BYT5},
        texts=(*_FEW, "", 'a sign "Open (late:1.2)" and “schöne Grüße”'),
        tokenizer_module="hunyuan_video",
        every=3,
    ),
}
