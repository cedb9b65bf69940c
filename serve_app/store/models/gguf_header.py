"""Reads the tensors' names and shapes from the header of a GGUF file, with the names that families know.

Backbones are named in such files as their authors' files name them; text encoders as llama.cpp does, by blocks and
leaves. Knows no torch. Sources: ggml's GGUF specification; llama.cpp's `gguf-py/gguf/tensor_mapping.py`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

from serve_app.errors import ModelFileError
from serve_app.store.models.kinds import Shapes

SUFFIX = ".gguf"
SHAPE = "comfy.gguf.orig_shape."
"""The metadata key prefix of the original shape of a reshaped tensor."""
ARCHITECTURE = "general.architecture"

HEADER_BYTES = 100_000_000
"""The longest header that is read, as it may contain a tokenizer."""

_T5_ATTENTION, _T5_DENSE = "layer.0.SelfAttention", "layer.1.DenseReluDense"
_T5: Mapping[str, str] = {
    "token_embd": "shared",
    "enc.output_norm": "encoder.final_layer_norm",
    "enc.blk.attn_q": f"encoder.block.{{}}.{_T5_ATTENTION}.q",
    "enc.blk.attn_k": f"encoder.block.{{}}.{_T5_ATTENTION}.k",
    "enc.blk.attn_v": f"encoder.block.{{}}.{_T5_ATTENTION}.v",
    "enc.blk.attn_o": f"encoder.block.{{}}.{_T5_ATTENTION}.o",
    "enc.blk.attn_rel_b": f"encoder.block.{{}}.{_T5_ATTENTION}.relative_attention_bias",
    "enc.blk.attn_norm": "encoder.block.{}.layer.0.layer_norm",
    "enc.blk.ffn_gate": f"encoder.block.{{}}.{_T5_DENSE}.wi_0",
    "enc.blk.ffn_up": f"encoder.block.{{}}.{_T5_DENSE}.wi_1",
    "enc.blk.ffn_down": f"encoder.block.{{}}.{_T5_DENSE}.wo",
    "enc.blk.ffn_norm": "encoder.block.{}.layer.1.layer_norm",
}
_LLAMA: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.attn_norm": "model.layers.{}.input_layernorm",
    "blk.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.ffn_down": "model.layers.{}.mlp.down_proj",
    "blk.ffn_norm": "model.layers.{}.post_attention_layernorm",
}
TEXT_ENCODERS: Mapping[str, Mapping[str, str]] = {
    "t5": _T5,
    "t5encoder": _T5,
    "llama": _LLAMA,
    "qwen2vl": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3vl": _LLAMA,
}
"""llama.cpp's architectures that are read, and the names of their layers, of a block's without its number."""

_NUMBER = re.compile(r"\bblk\.(\d+)\.")
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_TEXT, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The specification's types of values that are numbers, as `struct` has them."""


def renamed(name: str, architecture: str) -> str:
    """Return the name by which families know a tensor of an architecture."""
    names = TEXT_ENCODERS.get(architecture, {})
    layer, _, leaf = name.rpartition(".")
    number = _NUMBER.search(f"{layer}.")
    known = names.get(_NUMBER.sub("blk.", f"{layer}.").rstrip("."))
    return name if known is None else f"{known.format(number[1] if number else '')}.{leaf}"


def shapes(file: BinaryIO) -> Shapes:
    """Return the tensors of a GGUF file. Errors: ModelFileError if it is none, or is cut off in its header."""
    reader = _Reader(file)
    if reader.take(len(_MAGIC)) != _MAGIC or reader.number("I") not in _VERSIONS:
        versions = " or ".join(map(str, _VERSIONS))
        raise ModelFileError(f"is no GGUF file of version {versions}, with its lowest bytes first")
    tensors, fields = reader.number("Q"), reader.number("Q")
    kept: dict[str, Any] = {}
    for _ in range(fields):
        name, value = reader.text(), reader.value(reader.number("I"))
        if name == ARCHITECTURE or name.startswith(SHAPE):
            kept[name] = value
    found: dict[str, tuple[int, ...]] = {}
    for _ in range(tensors):
        name = reader.text()
        shape = tuple(reader.number("Q") for _ in range(reader.number("I")))
        reader.take(struct.calcsize("<IQ"))
        # Dimensions are counted from the one whose numbers lie side by side.
        found[renamed(name, str(kept.get(ARCHITECTURE, "")))] = tuple(kept.get(SHAPE + name) or shape[::-1])
    return found


class _Reader:
    """Reads a header from its beginning. Errors of all: ModelFileError if it ends too early."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = HEADER_BYTES

    def take(self, count: int) -> bytes:
        self._left -= count
        taken = self._file.read(count) if self._left >= 0 else b""
        if len(taken) < count:
            raise ModelFileError("is no GGUF file: its header cannot be read, or is cut off")
        return taken

    def number(self, kind: str) -> Any:
        [number] = struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))
        return number

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """Return a value of a type; arrays of strings, as of tokenizers, are skipped."""
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            of, count = self.number("I"), self.number("Q")
            if of in _NUMBERS:
                form = f"<{count}{_NUMBERS[of]}"
                return struct.unpack(form, self.take(count * struct.calcsize(f"<{_NUMBERS[of]}")))
            for _ in range(count):
                self.value(of)
            return None
        if kind not in _NUMBERS:
            raise ModelFileError(f"is no GGUF file: its header has a value of type {kind}, which is none")
        return self.number(_NUMBERS[kind])
