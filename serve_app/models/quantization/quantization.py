"""How model files mark weights of eight or four bits: by scales next to them, in the layouts that ComfyUI reads.

Names of layers are the file's. Facts: ComfyUI 0.33.0.
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
from serve_app.models.quantization.four_bit_codes import CODES, CodedWeight
from serve_app.models.quantization.quantized_linear import QuantizedWeight

_SCALES = (".weight_scale", ".scale_weight")
_SECOND, _INPUTS = ".weight_scale_2", ".pre_quant_scale"
_INPUT_SCALES = (".input_scale", ".scale_input")
_GROUP_SCALES, _OUTPUT_SCALES, _TABLE = ".weight_s_rel", ".weight_s_channel", ".weight_codebook"
_BESIDE = (
    *_SCALES,
    *_INPUT_SCALES,
    *(".comfy_quant", _INPUTS, _SECOND),
    *(_GROUP_SCALES, _OUTPUT_SCALES, _TABLE),
)
"""Names of the tensors that belong to a quantized weight."""

_MARK = "scaled_fp8"
_METADATA = "_quantization_metadata"
_INT8, _NVFP4, _MXFP8, _W4A8 = "int8_tensorwise", "nvfp4", "mxfp8", "asym_w4a8_int8"
_FORMATS = ("float8_e4m3fn", "float8_e5m2", _INT8, _NVFP4, _MXFP8, _W4A8)
_STORED = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": _INT8}
"""Safetensors' names of dtypes, and the formats of weights in them without further marks."""
_DTYPES = {_NVFP4: ("U8",), _MXFP8: ("F8_E4M3", "U8"), _W4A8: ("I8", "U8")}
"""The dtypes in which formats without a dtype of their own are stored."""
_GROUP = 256
_EXACT = 2
"""Numbers in the older mark of a file whose weights are not to be multiplied in eight bits."""


class Encoding(NamedTuple):
    """How a weight is stored. scale: the name of its scale; group: number of inputs rotated together.

    second: NVFP4's scale of all scales, or W4A8's of outputs; inputs: factors of the inputs, or None. input_scale: the
    inputs' scale in products of eight bits, or None; may_multiply: whether the file allows such products; None: it does
    not say. table: the numbers of W4A8's codes.
    """

    format: str
    scale: str | None = None
    group: int = 0
    second: str | None = None
    inputs: str | None = None
    input_scale: str | None = None
    may_multiply: bool | None = None
    table: str | None = None

    def shape(self, stored: Shape) -> Shape:
        """Return the weight's shape from that of the stored tensor."""
        return (stored[0], stored[1] * 2) if self.format in (_NVFP4, _W4A8) else stored


def is_scale(name: str) -> bool:
    """Whether a tensor describes how another is stored."""
    return name.endswith(_BESIDE) or name == _MARK or name.endswith(f".{_MARK}")


def encodings(
    dtypes: Mapping[str, str], metadata: Mapping[str, str], tensor: Callable[[str], Tensor], where: str
) -> dict[str, Encoding]:
    """Return how each quantized weight is stored. dtypes: safetensors', by name. tensor: reads one.

    Errors: ModelFileError for an unsupported format.
    """
    said = dict(_said(dtypes, metadata, tensor))
    marked = _marked(dtypes, tensor)
    found: dict[str, Encoding] = {}
    for name, dtype in dtypes.items():
        layer = name.removesuffix(".weight")
        if layer == name or (dtype not in _STORED and layer not in said):
            continue
        settings = said.get(layer, {})
        scale, input_scale = (
            next((layer + end for end in ends if layer + end in dtypes), None) for ends in (_SCALES, _INPUT_SCALES)
        )
        if dtype == "I8" and not settings and scale is None:
            continue  # Not a quantized weight: other numbers in eight bits.
        kind = settings.get("format", _STORED.get(dtype))
        second, inputs, table = (layer + end if layer + end in dtypes else None for end in (_SECOND, _INPUTS, _TABLE))
        if kind == _W4A8:
            scale, second = (layer + end if layer + end in dtypes else None for end in (_GROUP_SCALES, _OUTPUT_SCALES))
        lacking = _lacking(kind, scale, second)
        if kind not in _FORMATS or dtype not in _DTYPES.get(kind, tuple(_STORED)) or lacking:
            known = f"read are {', '.join(_FORMATS)}"
            raise ModelFileError(f"{where} has weights in {kind}{lacking} ('{name}'); {known}")
        may_multiply = marked if layer not in said else not settings.get("full_precision_matrix_mult")
        group = _group(settings, name, where, always=kind == _W4A8)
        found[name] = Encoding(kind, scale, group, second, inputs, input_scale, may_multiply, table)
    return found


def weight_of(name: str, encoding: Encoding, read: Callable[[str], Tensor], where: str) -> QuantizedWeight:
    """Return a quantized weight. read: reads a tensor of the file. Errors: ModelFileError for missing scales."""
    stored = read(name)
    if encoding.format == _W4A8:
        return _coded(name, encoding, stored, read, where)
    scale = None if encoding.scale is None else read(encoding.scale)
    if encoding.format not in (_NVFP4, _MXFP8) or scale is None:
        inputs = torch.ones(()) if encoding.may_multiply else None
        if encoding.input_scale is not None:
            inputs = read(encoding.input_scale).float().reshape(())
        return EightBitWeight(
            stored,
            None if scale is None else scale.float().reshape(-1, 1),
            encoding.group,
            inputs,
            encoding.may_multiply,
        )
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


def _coded(name: str, encoding: Encoding, stored: Tensor, read: Callable[[str], Tensor], where: str) -> CodedWeight:
    """Return a weight in W4A8. Errors: ModelFileError for tensors that do not fit it."""
    assert encoding.scale is not None
    assert encoding.second is not None
    scales, scale = read(encoding.scale), read(encoding.second).float()
    table = None if encoding.table is None else read(encoding.table).float()
    rows, columns = encoding.shape(tuple(stored.shape))
    fits = len(scales) == rows == scale.numel() and columns % scales.shape[-1] == 0 == columns % encoding.group
    if not fits or (table is not None and table.numel() != CODES):
        raise ModelFileError(
            f"{where} has '{name}' of shape {(rows, columns)} in {_W4A8} with scales {tuple(scales.shape)} of groups "
            f"and {scale.numel()} of outputs, rotated by {encoding.group} inputs; groups and rotations divide the "
            "inputs, each output has a scale, and there are 16 codes"
        )
    scales = scales.view(torch.float8_e4m3fn) if scales.dtype == torch.uint8 else scales
    return CodedWeight(stored.view(torch.uint8), scales, scale.reshape(-1, 1), encoding.group, table)


def _lacking(kind: str | None, scale: str | None, second: str | None) -> str:
    """Return the tensors that a format needs and the file lacks, as the end of an error; "" if none."""
    if scale is None and kind in (_INT8, _NVFP4, _MXFP8, _W4A8):
        return " without a scale"
    if kind == _W4A8:
        return " without scales of its outputs" if second is None else ""
    return " without a scale of its scales" if kind == _NVFP4 and second is None else ""


def _marked(dtypes: Mapping[str, str], tensor: Callable[[str], Tensor]) -> bool | None:
    """Return whether a file with the older mark allows products of eight bits, by its size; None: it has none."""
    mark = next((name for name in dtypes if name == _MARK or name.endswith(f".{_MARK}")), None)
    return None if mark is None else tensor(mark).numel() != _EXACT


def _said(
    dtypes: Mapping[str, str], metadata: Mapping[str, str], tensor: Callable[[str], Tensor]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the file's settings of its layers: from its metadata, or from JSON tensors next to layers."""
    if _METADATA in metadata:
        yield from json.loads(metadata[_METADATA])["layers"].items()
    for name in dtypes:
        if name.endswith(".comfy_quant"):
            yield name.removesuffix(".comfy_quant"), json.loads(bytes(tensor(name).tolist()))


def _group(settings: Mapping[str, Any], name: str, where: str, *, always: bool) -> int:
    """Return the number of inputs rotated together. always: the format rotates them, said or not.

    Errors: ModelFileError for an impossible number.
    """
    settings = {**(settings.get("params") or {}), **settings}
    if not (always or settings.get("convrot")):
        return 0
    group = int(settings.get("convrot_groupsize", _GROUP))
    if group < 4 or group & (group - 1) or group.bit_length() % 2 == 0:
        raise ModelFileError(f"{where} rotates groups of {group} inputs of '{name}'; that is done by powers of 4")
    return group
