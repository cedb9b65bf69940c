"""How model files say that weights are of eight bits: scales beside them, in the layouts that ComfyUI reads.

Names of layers are those of the file. Facts: ComfyUI 0.33.0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from serve_app.errors import ModelFileError

_SCALES = (".weight_scale", ".scale_weight")
_BESIDE = (
    *_SCALES,
    *(".comfy_quant", ".input_scale", ".scale_input", ".pre_quant_scale", ".weight_scale_2"),
    *(".weight_s_rel", ".weight_s_channel", ".weight_codebook"),
)
"""Names of what goes with a layer's weight and is none of the network's tensors."""

_MARK = "scaled_fp8"
_METADATA = "_quantization_metadata"
_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
_STORED = {"F8_E4M3": _FORMATS[0], "F8_E5M2": _FORMATS[1], "I8": _FORMATS[2]}
"""Safetensors' names of dtypes, and the format of weights in them that say no more."""
_GROUP = 256


class Encoding(NamedTuple):
    """How a weight is stored. scale: the name of what it is multiplied by; group: how many inputs rotate together."""

    scale: str | None
    group: int = 0


def is_beside(name: str) -> bool:
    """Whether a tensor says how another is stored."""
    return name.endswith(_BESIDE) or name == _MARK or name.endswith(f".{_MARK}")


def encodings(
    dtypes: Mapping[str, str], metadata: Mapping[str, str], tensor: Callable[[str], Tensor], where: str
) -> dict[str, Encoding]:
    """Return how each weight of eight bits is stored. dtypes: safetensors', by name. tensor: reads one.

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
        if kind not in _FORMATS or dtype not in _STORED or (scale is None and dtype == "I8"):
            known = f"read are {', '.join(_FORMATS)}"
            lacking = " without a scale" if kind in _FORMATS else ""
            raise ModelFileError(f"{where} has weights in {kind}{lacking} ('{name}'); {known}")
        found[name] = Encoding(scale, _group(settings, name, where))
    return found


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
