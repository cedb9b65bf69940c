"""How model files say that weights are of eight bits or four: scales beside them, in the layouts that ComfyUI reads.

Names of layers are those of the file. Facts: ComfyUI 0.33.0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from serve_app.errors import ModelFileError
from serve_app.models.files.tensors import Shape
from serve_app.models.quantization.block_scales import MXFP8_BLOCK, NVFP4_BLOCK, Mxfp8Weight, Nvfp4Weight, untiled
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.quantized_linear import QuantizedWeight

_SCALES = (".weight_scale", ".scale_weight")
_SECOND, _INPUTS = ".weight_scale_2", ".pre_quant_scale"
_BESIDE = (
    *_SCALES,
    *(".comfy_quant", ".input_scale", ".scale_input", _INPUTS, _SECOND),
    *(".weight_s_rel", ".weight_s_channel", ".weight_codebook"),
)
"""Names of what goes with a layer's weight and is none of the network's tensors."""

_MARK = "scaled_fp8"
_METADATA = "_quantization_metadata"
_INT8, _NVFP4, _MXFP8 = "int8_tensorwise", "nvfp4", "mxfp8"
_FORMATS = ("float8_e4m3fn", "float8_e5m2", _INT8, _NVFP4, _MXFP8)
_STORED = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": _INT8}
"""Safetensors' names of dtypes, and the format of weights in them that say no more."""
_DTYPES = {_NVFP4: ("U8",), _MXFP8: ("F8_E4M3", "U8")}
"""In which dtypes the formats are stored that no dtype stands for."""
_GROUP = 256


class Encoding(NamedTuple):
    """How a weight is stored. scale: the name of what it is multiplied by; group: how many inputs rotate together.

    second: of NVFP4, the scale of all scales; inputs: what inputs are multiplied by first, None for nothing.
    """

    format: str
    scale: str | None = None
    group: int = 0
    second: str | None = None
    inputs: str | None = None

    def shape(self, stored: Shape) -> Shape:
        """Return the shape of the weight from that of what is stored."""
        return (stored[0], stored[1] * 2) if self.format == _NVFP4 else stored


def is_scale(name: str) -> bool:
    """Whether a tensor says how another is stored."""
    return name.endswith(_BESIDE) or name == _MARK or name.endswith(f".{_MARK}")


def encodings(
    dtypes: Mapping[str, str], metadata: Mapping[str, str], tensor: Callable[[str], Tensor], where: str
) -> dict[str, Encoding]:
    """Return how each weight of few bits is stored. dtypes: safetensors', by name. tensor: reads one.

    Errors: ModelFileError for a format that is not read.
    """
    said = dict(_said(dtypes, metadata, tensor))
    found: dict[str, Encoding] = {}
    for name, dtype in dtypes.items():
        layer = name.removesuffix(".weight")
        if layer == name or (dtype not in _STORED and layer not in said):
            continue
        settings = said.get(layer, {})
        scale = next((layer + end for end in _SCALES if layer + end in dtypes), None)
        if dtype == "I8" and not settings and scale is None:
            continue  # Not a weight of eight bits: numbers of another kind.
        kind = settings.get("format", _STORED.get(dtype))
        second, inputs = (layer + end if layer + end in dtypes else None for end in (_SECOND, _INPUTS))
        lacking = _lacking(kind, scale, second)
        if kind not in _FORMATS or dtype not in _DTYPES.get(kind, tuple(_STORED)) or lacking:
            known = f"read are {', '.join(_FORMATS)}"
            raise ModelFileError(f"{where} has weights in {kind}{lacking} ('{name}'); {known}")
        found[name] = Encoding(kind, scale, _group(settings, name, where), second, inputs)
    return found


def weight_of(name: str, encoding: Encoding, read: Callable[[str], Tensor], where: str) -> QuantizedWeight:
    """Return a weight as it is stored. read: reads a tensor of the file. Errors: ModelFileError for scales too few."""
    stored = read(name)
    scale = None if encoding.scale is None else read(encoding.scale)
    if encoding.format not in (_NVFP4, _MXFP8) or scale is None:
        return EightBitWeight(stored, None if scale is None else scale.float().reshape(-1, 1), encoding.group)
    rows, columns = encoding.shape(tuple(stored.shape))
    block = NVFP4_BLOCK if encoding.format == _NVFP4 else MXFP8_BLOCK
    tiles = -(-rows // 128) * 128 * -(-(columns // block) // 4) * 4
    if columns % block or scale.numel() != tiles:
        raise ModelFileError(
            f"{where} has '{name}' of shape {(rows, columns)} in {encoding.format} with {scale.numel()} scales; that "
            f"takes {tiles}, one for {block} inputs, in whole tiles of 128×4"
        )
    scales = untiled(scale.view(torch.uint8), rows, columns // block)
    if encoding.format == _MXFP8:
        return Mxfp8Weight(stored.view(torch.float8_e4m3fn), scales)
    assert encoding.second is not None
    inputs = None if encoding.inputs is None else read(encoding.inputs)
    return Nvfp4Weight(stored, scales, read(encoding.second).float().reshape(()), inputs)


def _lacking(kind: str | None, scale: str | None, second: str | None) -> str:
    """Return what a format takes that is not there, as the end of what errors call it; "" if all is."""
    if scale is None and kind in (_INT8, _NVFP4, _MXFP8):
        return " without a scale"
    return " without a scale of its scales" if kind == _NVFP4 and second is None else ""


def _said(
    dtypes: Mapping[str, str], metadata: Mapping[str, str], tensor: Callable[[str], Tensor]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what a file says of its layers: in its metadata, or in a tensor beside each that holds JSON."""
    if _METADATA in metadata:
        yield from json.loads(metadata[_METADATA])["layers"].items()
    for name in dtypes:
        if name.endswith(".comfy_quant"):
            yield name.removesuffix(".comfy_quant"), json.loads(bytes(tensor(name).tolist()))


def _group(settings: Mapping[str, Any], name: str, where: str) -> int:
    """Return how many inputs rotate together. Errors: ModelFileError for a number that no rotation is of."""
    settings = {**(settings.get("params") or {}), **settings}
    if not settings.get("convrot"):
        return 0
    group = int(settings.get("convrot_groupsize", _GROUP))
    if group < 4 or group & (group - 1) or group.bit_length() % 2 == 0:
        raise ModelFileError(f"{where} rotates groups of {group} inputs of '{name}'; that is done by powers of 4")
    return group
