"""An open GGUF file: its tensors by the names that families know, kept in ggml's blocks until they are wanted wide.

Backbones are named in it as their authors' files name them; text encoders as llama.cpp does, by blocks and leaves. The
file is mapped. Sources: ggml's GGUF specification; llama.cpp's `gguf-py/gguf/tensor_mapping.py`. It is read by the
package `gguf`, which is optional.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from serve_app.errors import ModelFileError
from serve_app.models.ggml_blocks import TYPES, BlockWeight, widened
from serve_app.models.kept import KeptWeight
from serve_app.models.mapping import make_room
from serve_app.models.tensors import Shape

SUFFIX = ".gguf"
PLAIN: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}
"""ggml's types that are not in blocks."""

_SHAPE = "comfy.gguf.orig_shape."
"""What a tensor that was reshaped to fit blocks has its shape under."""

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

_INTERLEAVED = "llama"
"""The architecture whose queries and keys llama.cpp has in another order of rows: pairs that turn together lie so."""
_NUMBER = re.compile(r"\bblk\.(\d+)\.")


class _Stored(NamedTuple):
    """Where a tensor lies in a file. kind: ggml's name of its type; whole: it was not reshaped to fit blocks."""

    kind: str
    shape: Shape
    whole: bool
    offset: int
    nbytes: int


class GgufFile:
    """As `tensor_file.TensorFile`. Errors: ModelFileError for a file that is none, or in types that are not read."""

    def __init__(self, path: Path) -> None:
        self.where = f"'{path.name}'"
        reader = _reader(path)
        self.architecture: str = _field(reader, "general.architecture") or ""
        self._heads = [_field(reader, f"{_INTERLEAVED}.attention.head_count{of}") for of in ("", "_kv")]
        names = TEXT_ENCODERS.get(self.architecture, {})
        self._tensors = {_renamed(tensor.name, names): _stored(reader, tensor) for tensor in reader.tensors}
        for name, stored in self._tensors.items():
            if stored.kind not in TYPES and stored.kind not in PLAIN:
                known = ", ".join((*PLAIN, *TYPES))
                raise ModelFileError(f"{self.where}: tensor '{name}' is {stored.kind}; supported are {known}")
        self.shapes: dict[str, Shape] = {name: stored.shape for name, stored in self._tensors.items()}
        # A mapping of its own: the package's may not be written to, of which torch would warn.
        self._bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def raw(self, name: str) -> Tensor:
        """Return a tensor as `tensor` does."""
        return self.tensor(name)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, one in blocks widened to float32."""
        stored = self._tensors[name]
        own = self._own(stored)
        wide = widened(own, stored.kind) if stored.kind in TYPES else own.view(PLAIN[stored.kind])
        return self._in_order(name, wide.view(stored.shape))

    def kept(self, name: str) -> KeptWeight | None:
        """Return a weight in blocks, None for one that is not, or that was reshaped to fit them."""
        stored = self._tensors[name]
        if stored.kind not in TYPES or len(stored.shape) != 2 or not stored.whole:
            return None
        return BlockWeight(self._in_order(name, self._own(stored).view(stored.shape[0], -1)), stored.kind)

    def _own(self, stored: _Stored) -> Tensor:
        return self._bytes[stored.offset : stored.offset + stored.nbytes]

    def _in_order(self, name: str, rows: Tensor) -> Tensor:
        """Return a weight (out,…) with its rows in the network's order. Errors: ModelFileError."""
        if self.architecture != _INTERLEAVED or not name.endswith(("q_proj.weight", "k_proj.weight")):
            return rows
        heads = self._heads[name.endswith("k_proj.weight")]
        if not heads:
            raise ModelFileError(f"{self.where} does not say how many heads its attention has")
        return rows[torch.arange(len(rows)).view(int(heads), -1, 2).transpose(1, 2).flatten()]


def _stored(reader: Any, tensor: Any) -> _Stored:
    said = _field(reader, _SHAPE + tensor.name)
    # ggml counts dimensions from the one whose numbers lie side by side.
    shape = tuple(map(int, tensor.shape.tolist()[::-1] if said is None else said))
    return _Stored(tensor.tensor_type.name, shape, said is None, int(tensor.data_offset), int(tensor.n_bytes))


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _reader(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ModelFileError(
            f"'{path.name}' is a GGUF file; reading it takes the package gguf: pip install 'serve-app[gguf]'"
        ) from error
    try:
        make_room(path)
        return gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ModelFileError(f"'{path.name}' cannot be read as a GGUF file: {error}") from error


def _renamed(name: str, names: Mapping[str, str]) -> str:
    layer, _, leaf = name.rpartition(".")
    number = _NUMBER.search(f"{layer}.")
    known = names.get(_NUMBER.sub("blk.", f"{layer}.").rstrip("."))
    return name if known is None else f"{known.format(number[1] if number else '')}.{leaf}"
