"""Reads LoRA files of every layout that ComfyUI reads into adapters by parameter.

kohya, LyCORIS, diffusers, PEFT and OneTrainer differ in layers' names, which families know, and in names of an
adapter's tensors. Facts: ComfyUI 0.3.64, whose order of preference applies where a file is ambiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from serve_app import log
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.parts import PART_NAMES
from serve_app.models.lora.adapters import (
    Adapter,
    Butterfly,
    Generalized,
    Hadamard,
    Kronecker,
    LowRank,
    Rotation,
    WeightDelta,
    WeightReplacement,
)
from serve_app.recipe.recipe import Part

_TEXT_MARKS = ("lora_te", "text_encoder", "lora_prior_te")
_UP_AND_DOWN = (
    (".lora_up.weight", ".lora_down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    (".lora_B", ".lora_A"),
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
)
_SUFFIXES = sorted(
    (
        *(suffix for pair in _UP_AND_DOWN for suffix in pair),
        *(".lora_mid.weight", ".alpha", ".dora_scale", ".reshape_weight"),
        *(".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".hada_t1", ".hada_t2"),
        *(".lokr_w1", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2"),
        *(".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight", ".oft_blocks", ".rescale"),
        *(".w_norm", ".b_norm", ".diff", ".diff_b", ".set_weight"),
    ),
    key=len,
    reverse=True,
)

_log = log.get("models")


class Read(NamedTuple):
    """A LoRA file's adapters for a part of a model, by the parameter of the network that they change.

    remark: a sentence on tensors that match nothing in the network; "" if all do.
    """

    adapters: dict[str, Adapter]
    remark: str = ""


def read(file: Checkpoint, names: Table, part: Part, *, shapes_alone: bool = False) -> Read:
    """Read a file's adapters for a part. names: layers' names in LoRA files -> the parameters they change.

    names are as from `Family.lora_names`. shapes_alone: the tensors stay in the file, for computing sizes.
    Errors: ModelFileError for a tensor that is not a plain float tensor.
    """
    layers: dict[str, dict[str, str]] = {}
    meant = {key for key in file.shapes if key.startswith(_TEXT_MARKS) == (part == "clip")}
    left = set(meant)
    for key in file.shapes:
        if suffix := next((suffix for suffix in _SUFFIXES if key.endswith(suffix)), None):
            layers.setdefault(key.removesuffix(suffix), {})[suffix] = key
    adapters: dict[str, Adapter] = {}
    for layer, changed in names.items():
        if layer in layers:
            found = _Layer(file.unread if shapes_alone else file.tensor, layers[layer])
            adapters.update(_adapters(found, changed))
            left -= found.used
    if not left:
        return Read(adapters)
    changes = "only in part changes" if adapters else "changes nothing of"
    rest = f"{len(left)} of its {len(meant)} tensors have no use in it, '{min(left)}' first"
    remark = f"LoRA {file.where} {changes} this {PART_NAMES[part]}: {rest}"
    _log.warning("%s", remark)
    return Read(adapters, remark)


class _Layer:
    """One layer's tensors in a file, by suffix; records which were read."""

    def __init__(self, tensor: Callable[[str], Tensor], keys: Mapping[str, str]) -> None:
        self._tensor, self._keys = tensor, keys
        self.used: set[str] = set()

    def __contains__(self, suffix: str) -> bool:
        return suffix in self._keys

    def __getitem__(self, suffix: str) -> Tensor:
        key = self._keys[suffix]
        self.used.add(key)
        return self._tensor(key)

    def get(self, suffix: str) -> Tensor | None:
        return self[suffix] if suffix in self._keys else None

    def use(self, suffix: str) -> None:
        if suffix in self._keys:
            self.used.add(self._keys[suffix])

    def has_all(self, *suffixes: str) -> bool:
        return all(suffix in self for suffix in suffixes)


def _adapters(layer: _Layer, changed: str | tuple[Place, ...]) -> Iterator[tuple[str, Adapter]]:
    """Yield (parameter, adapter); of several for one parameter the last applies, which is ComfyUI's order."""
    alpha = float(layer[".alpha"]) if ".alpha" in layer else None
    magnitude = layer.get(".dora_scale")
    for kind in _KINDS:
        if (adapter := kind(layer, alpha, magnitude)) is not None:
            yield from _placed(adapter, changed)
    for suffix, leaf in ((".w_norm", "weight"), (".b_norm", "bias"), (".diff", "weight"), (".diff_b", "bias")):
        if suffix in layer and (suffix != ".b_norm" or ".w_norm" in layer):
            yield from _placed(WeightDelta(layer[suffix]), changed, leaf)
    if ".set_weight" in layer:
        yield from _placed(WeightReplacement(layer[".set_weight"]), changed)


def _placed(adapter: Adapter, changed: str | tuple[Place, ...], leaf: str = "weight") -> Iterator[tuple[str, Adapter]]:
    """Yield the parameters that an adapter of a layer's weight or bias changes, each with its part of the adapter."""
    if isinstance(changed, str):
        yield _sibling(changed, leaf), adapter
        return
    rows = max((place.rows[1] for place in changed if place.rows is not None), default=0)
    for place in changed:
        yield _sibling(place.name, leaf), adapter.part(place, rows)


def _sibling(parameter: str, leaf: str) -> str:
    return parameter if leaf == "weight" else f"{parameter.removesuffix('.weight')}.{leaf}"


def _low_rank(layer: _Layer, alpha: float | None, magnitude: Tensor | None) -> Adapter | None:
    pair = next((pair for pair in _UP_AND_DOWN if layer.has_all(*pair)), None)
    if pair is None:
        return None
    up, down = layer[pair[0]], layer[pair[1]]
    layer.use(".reshape_weight")
    if pair[0] == ".lora_up.weight" and (core := layer.get(".lora_mid.weight")) is not None:
        # A core (r,r,k,k) between them makes one wider `down` (r,in,k,k).
        thin = down.flatten(1).float()
        down = (core.float().movedim(1, -1) @ thin).movedim(-1, 1)
    return LowRank(up, down, _scale(alpha, down.shape[0]), magnitude)


def _hadamard(layer: _Layer, alpha: float | None, magnitude: Tensor | None) -> Adapter | None:
    if not layer.has_all(".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"):
        return None
    first = (layer[".hada_w1_a"], layer[".hada_w1_b"], layer.get(".hada_t1"))
    second = (layer[".hada_w2_a"], layer[".hada_w2_b"], layer.get(".hada_t2"))
    return Hadamard(first, second, _scale(alpha, first[1].shape[0]), magnitude)


def _kronecker(layer: _Layer, alpha: float | None, magnitude: Tensor | None) -> Adapter | None:
    factors: list[Any] = []
    scale = 1.0
    for whole, a, b, core in (
        (".lokr_w1", ".lokr_w1_a", ".lokr_w1_b", ""),
        (".lokr_w2", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2"),
    ):
        if whole in layer:
            factors.append(layer[whole])
        elif layer.has_all(a, b):
            factors.append((layer[a], layer[b], layer.get(core)))
            # Of two low-rank factors the second one's rank counts.
            scale = _scale(alpha, layer[b].shape[0])
        else:
            return None
    return Kronecker(factors[0], factors[1], scale, magnitude)


def _generalized(layer: _Layer, alpha: float | None, magnitude: Tensor | None) -> Adapter | None:
    suffixes = (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight")
    if not layer.has_all(*suffixes):
        return None
    a1, a2, b1, b2 = (layer[suffix] for suffix in suffixes)
    return Generalized(a1, a2, b1, b2, alpha, magnitude)


def _rotation(layer: _Layer, alpha: float | None, magnitude: Tensor | None) -> Adapter | None:
    blocks, rescale = layer.get(".oft_blocks"), layer.get(".rescale")
    if blocks is None:
        return None
    if blocks.dim() == 3:
        # ComfyUI reads a rescale here too, and ignores it.
        return Rotation(blocks, alpha or 0.0, magnitude)
    # ComfyUI cannot apply one without its limit and leaves the layer unchanged.
    return Butterfly(blocks, alpha, rescale, magnitude) if blocks.dim() == 4 and alpha is not None else None


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None else alpha / rank


_KINDS: tuple[Callable[[_Layer, float | None, Tensor | None], Adapter | None], ...] = (
    _low_rank,
    _hadamard,
    _kronecker,
    _generalized,
    _rotation,
)
