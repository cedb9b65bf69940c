"""A LoRA set on one network: its changes of each layer, in the two forms that a forward can use.

The thin form is a layer of its own, the low-rank pair, whose output is added to the shared layer's. The whole form is a
layer with merged weights, which replaces the shared one; changes that are not low-rank have only this form. The network
itself is never changed. This module knows neither files nor recipes, nor batches.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeAlias, cast
from weakref import ref
from zlib import crc32

import torch
from torch import Tensor, nn

from serve_app import log
from serve_app.models.kernels.packing import Packed, packed, plain, weight_shape
from serve_app.models.lora.adapters import Adapter, merged
from serve_app.models.lora.merging import MergePolicy
from serve_app.models.lora.slots import Pair, Slots, slots_of
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.quantized_linear import QuantizedLinear, QuantizedWeight
from serve_app.models.weights.deallocation import free_network
from serve_app.models.weights.streaming import streams, with_own_weights
from serve_app.models.weights.upload import Ring, SendTensor, uploading

Changes: TypeAlias = Mapping[str, Sequence[tuple[Adapter, float]]]
"""Changes of one layer: "weight" or "bias" -> its adapters with strengths, in order."""

MERGED_AT_ONCE = 16
"""Number of layers merged in one step: merging all of them takes longer than a forward of few rows."""

MERGED_ON_GPU_AFTER = 64
"""Forwards that a set has to itself before it is merged on a GPU: merging and recording forwards anew takes five."""

STEPS_FOR_MERGING, STEPS_FOR_ROUNDING, STEPS_FOR_RECORDING = 10, 20, 50
"""Steps that a run must have left so that merging pays on a GPU, where each then takes a tenth less.

Merging takes up to one forward, and several times as much where merged weights are rounded by chance. Where forwards
with slots are recorded, recording those with merged weights takes four more.
"""

_log = log.get("models")


class LoraSet:
    """A LoRA set on one network. key: equal for equal files in equal order at equal strengths.

    stack: each LoRA's adapters, by parameter of the network, and its strength. A parameter that the network lacks is
    left out. may_take: whether a number of bytes is free for merged weights. stored_as: dtype that merged weights are
    rounded to, if not the network's. bypassing: number of the stack's last LoRAs, which are added after rounding.
    ring: the way onto the network's GPU, if it is on one.
    """

    def __init__(
        self,
        key: Hashable,
        network: nn.Module,
        stack: Sequence[tuple[Mapping[str, Adapter], float]],
        *,
        may_take: Callable[[int], bool] = lambda nbytes: True,
        stored_as: torch.dtype | None = None,
        bypassing: int = 0,
        ring: Ring | None = None,
    ) -> None:
        self.key = key
        self.slots: Slots | None = None
        """Slots of the last GPU forward whose first set this was, unless another first set has taken them over."""
        self.slots_of_network = slots_of(network)
        self._may_take = may_take
        self._ring = ring
        by_layer = _by_layer(stack)
        rounded = _by_layer(stack[: len(stack) - bypassing])
        modules = dict(network.named_modules())
        self.layers: dict[str, LoraLayer] = {}
        for name, changes in by_layer.items():
            base = modules.get(name)
            known = {kind: of for kind, of in changes.items() if getattr(base, kind, None) is not None}
            if base is not None and known:
                self.layers[name] = LoraLayer(base, known, stored_as, rounded.get(name, {}), ring)
        # Whether some optional merged weights may be there.
        self._merges = False
        self.on_gpu = any(layer.on_gpu for layer in self.layers.values())
        self._policy = MergePolicy(MERGED_ON_GPU_AFTER) if self.on_gpu else MergePolicy()

    @property
    def nbytes(self) -> int:
        """Bytes of the set beyond the network."""
        merged = (layer.whole_bytes for layer in self.layers.values() if layer.can_unmerge)
        return self.needed_bytes + sum(merged) + (0 if (slots := self.slots) is None else slots.nbytes)

    @property
    def needed_bytes(self) -> int:
        """Bytes without optional merged weights."""
        return sum(layer.needed_bytes for layer in self.layers.values())

    @property
    def merged_bytes(self) -> int:
        """Bytes of all merged layers, made or not."""
        return sum(layer.whole_bytes for layer in self.layers.values())

    def prepared(self) -> Iterator[None]:
        """Make the required form of each layer, which the first forward would otherwise wait for; yield in between."""
        left = [layer for layer in self.layers.values() if not layer.is_ready]
        _make([layer for layer in left if layer.has_thin], LoraLayer.thin_form, self._ring)
        whole = [layer for layer in left if not layer.has_thin]
        for first in range(0, len(whole), MERGED_AT_ONCE):
            _make(whole[first : first + MERGED_AT_ONCE], LoraLayer.whole_form, self._ring)
            if first + MERGED_AT_ONCE < len(whole):
                yield

    def merge(self, alone: bool, steps_left: int = 0) -> None:
        """Record a forward with this set alone or not; merge layers once that is worth it, or unmerge all.

        On a CPU a few are merged; on a GPU all, of what is there, unless some weights stream.
        steps_left: of the longest run among the forward's.
        """
        enough = STEPS_FOR_ROUNDING if any(layer.rounds for layer in self.layers.values()) else STEPS_FOR_MERGING
        if self.slots_of_network:
            enough = STEPS_FOR_RECORDING
        if not self._policy.forward(alone, self.on_gpu and steps_left >= enough):
            if self._merges:
                self._unmerge_layers()
            return
        left = [layer for layer in self.layers.values() if not layer.is_merged]
        if not alone or not left or not self._may_take(sum(layer.whole_bytes for layer in left)):
            return
        self._merges = True
        if not self.on_gpu:
            _make(left[:MERGED_AT_ONCE], LoraLayer.whole_form, self._ring)
        elif all(layer.may_merge_on_gpu for layer in left):
            for name, layer in self.layers.items():
                if not layer.is_merged:
                    layer.merge_pair(crc32(name.encode()))

    def merged_layers(self) -> dict[str, nn.Module] | None:
        """Return the layers with merged weights, if all layers that the set changes are merged."""
        if not self._merges and any(layer.has_thin for layer in self.layers.values()):
            return None
        found = {name: layer.merged for name, layer in self.layers.items()}
        whole = {name: layer for name, layer in found.items() if layer is not None}
        return whole if len(whole) == len(found) else None

    def merged_weight(self, merged: Mapping[str, nn.Module]) -> Tensor:
        """Return one of the weights of `merged_layers`, which is freed as soon as any of them."""
        name = next((name for name, layer in self.layers.items() if layer.has_thin), next(iter(merged)))
        return self.layers[name].changed_weight(merged[name])

    def read_in_place(self) -> list[Tensor]:
        """Return tensors by which recordings of forwards with this set are known: merged weights, and slots."""
        merged = self.merged_layers()
        weights = [self.merged_weight(merged)] if merged else []
        return weights if self.slots is None else [*weights, self.slots.first]

    def merge_all(self) -> None:
        """Merge all layers."""
        layers = [*self.layers.values()]
        for first in range(0, len(layers), MERGED_AT_ONCE):
            _make(layers[first : first + MERGED_AT_ONCE], LoraLayer.whole_form, self._ring)

    def keep(self, slots: Slots) -> None:
        """Take over slots from their previous owner, in place of its own."""
        slots.let_go()
        self.slots, slots.keeper = slots, ref(self)

    def unmerge(self) -> None:
        """Free merged weights and slots that are optional."""
        self.slots = None
        self._unmerge_layers()

    def _unmerge_layers(self) -> None:
        self._merges = False
        for layer in self.layers.values():
            layer.unmerge()

    def close(self) -> None:
        """Free the memory of the set, whoever still has references to it; that of the network stays."""
        if self.slots is not None:
            self.slots.close()
        for name, layer in self.layers.items():
            layer.close(name)


class LoraLayer:
    """One layer of a network with the changes of a set; its forms are made on first use.

    rounded: the first of the changes, with which merged weights are rounded. ring: as `LoraSet`.
    """

    def __init__(
        self,
        base: nn.Module,
        changes: Changes,
        stored_as: torch.dtype | None,
        rounded: Changes,
        ring: Ring | None = None,
    ) -> None:
        self.base = base
        self._ring = ring
        self._changes = changes
        self._stored_as = stored_as
        self._rounded = {kind: len(first) for kind, first in rounded.items()}
        self._pairs = _pairs(base, changes)
        self._thin: nn.Module | None = None
        self._whole: nn.Module | None = None

    @property
    def needed_bytes(self) -> int:
        """Bytes of the thin form, or of the whole one if there is no other; made or not."""
        if self._pairs is None:
            return self.whole_bytes
        itemsize = _parameter(self.base, "weight").dtype.itemsize
        return sum(down.numel() + up.numel() for down, up, _ in self._pairs) * itemsize

    @property
    def device(self) -> torch.device:
        """The device of the layer's weights."""
        return _parameter(self.base, "weight").device

    @property
    def on_gpu(self) -> bool:
        """Whether the layer's weights are on a GPU."""
        return self.device.type == "cuda"

    @property
    def has_thin(self) -> bool:
        """Whether the changes are low-rank."""
        return self._pairs is not None

    @property
    def is_ready(self) -> bool:
        """Whether the required form is made."""
        return (self._whole if self._pairs is None else self._thin) is not None

    @property
    def is_merged(self) -> bool:
        """Whether the whole form is made, or is the only one."""
        return self._whole is not None or self._pairs is None

    @property
    def merged(self) -> nn.Module | None:
        """The layer with merged weights, if it is made."""
        return self._whole

    def changed_weight(self, merged: nn.Module) -> Tensor:
        """Return a weight that the set changes. merged: this layer with merged weights."""
        if isinstance(merged, QuantizedLinear):
            return merged.quantized.stored
        return _parameter(merged, next(iter(self._changes)))

    @property
    def may_merge_on_gpu(self) -> bool:
        """Whether merged weights replace the layer's at no cost: no weights stream."""
        return self.has_thin and not streams(self.base)

    @property
    def rounds(self) -> bool:
        """Whether merged weights are rounded to eight bits, in which the device multiplies them."""
        return self.on_gpu and self.has_thin and isinstance(self.base, QuantizedLinear) and self.base.multiplies

    @property
    def can_unmerge(self) -> bool:
        """Whether the layer has optional merged weights."""
        return self._whole is not None and self._pairs is not None

    @property
    def whole_bytes(self) -> int:
        """Bytes of the merged weights, made or not."""
        if self.rounds:
            return _parameter(self.base, "weight").numel()
        return sum(p.numel() * p.dtype.itemsize for p in (_parameter(self.base, kind) for kind in self._changes))

    def thin(self) -> nn.Module | None:
        """Return the low-rank layer whose output is added to the shared one's, or None if there is none."""
        if self._thin is None and self.has_thin:
            _make([self], LoraLayer.thin_form, self._ring)
        return self._thin

    def thin_form(self, send: SendTensor) -> Callable[[], None]:
        """Send the low-rank layer's weights; return what makes the layer once they have arrived."""
        assert self._pairs is not None, "only low-rank changes have a thin form"
        thin = _thin(self.base, self._pairs, send)

        def make() -> None:
            self._thin = thin

        return make

    def whole_form(self, send: SendTensor) -> Callable[[], None]:
        """Send the changes; return what merges them once they have arrived."""
        there = {kind: [(a.sent(send), strength) for a, strength in own] for kind, own in self._changes.items()}

        def make() -> None:
            self._whole = _whole(self.base, there, self._stored_as, self._rounded)

        return make

    def pair(self) -> Pair:
        """Return the matrices of the thin form, for a layer that has one and is not packed."""
        thin: Any = self.thin()
        return Pair(thin[0].weight, thin[1].weight)

    def whole(self) -> nn.Module:
        """Return the layer with merged weights. Another thread may unmerge it meanwhile."""
        while (whole := self._whole) is None:
            _make([self], LoraLayer.whole_form, self._ring)
        return whole

    def merge_pair(self, seed: int) -> None:
        """Merge the low-rank layer's weights as they are on the device, where products add up in single precision.

        seed: of rounding by chance.
        """
        down, up = (matrix.flatten(1) for matrix in self.pair())
        if isinstance(self.base, QuantizedLinear) and not self.rounds:
            plain_layer = self.base.plain()
            plain_layer.weight.addmm_(up, down)
            self._whole = plain_layer
            return
        layer = _copied(self.base)
        if isinstance(layer, QuantizedLinear):
            generator = torch.Generator(self.device).manual_seed(seed)
            layer.quantized = cast(EightBitWeight, layer.quantized).with_low_rank(down, up, generator)
        else:
            own = _parameter(self.base, "weight")
            weight = torch.addmm(own.flatten(1), up, down).view(own.shape)
            layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        self._whole = layer

    def unmerge(self) -> None:
        """Free the merged weights."""
        if self.can_unmerge:
            self._whole = None

    def close(self, name: str) -> None:
        """Free the memory of both forms."""
        for form in (self._thin, self._whole):
            if form is not None:
                free_network(form, f"a LoRA of {name}", self.base)


def parameters(network: nn.Module) -> list[str]:
    """Return the names of a network's weights and biases, packed ones included."""
    layers = ((name, layer, kind) for name, layer in network.named_modules() for kind in ("weight", "bias"))
    return [f"{name}.{kind}" for name, layer, kind in layers if isinstance(getattr(layer, kind, None), Tensor)]


def with_merged(network: nn.Module, loras: LoraSet) -> nn.Module:
    """Return the network with merged layers where the set changes it; all other tensors are shared."""
    members = (member for module in network.modules() for member in _members(module))
    shared = (member for member in members if isinstance(member, Tensor | QuantizedWeight))
    changed = copy.deepcopy(network, {id(member): member for member in shared})
    for name, layer in loras.layers.items():
        changed.set_submodule(name, layer.whole())
    return changed


def _pairs(base: nn.Module, changes: Changes) -> list[tuple[Tensor, Tensor, float]] | None:
    """Return the (down (r,n), up (out,r), factor) whose sum is the change of a layer, or None if it is not low-rank."""
    plainly = isinstance(base, nn.Linear | Packed | QuantizedLinear) or (
        isinstance(base, nn.Conv2d) and base.padding_mode == "zeros" and isinstance(base.padding, tuple)
    )
    if not plainly or getattr(base, "groups", 1) != 1 or set(changes) != {"weight"}:
        return None
    out, *inside = weight_shape(base)
    pairs: list[tuple[Tensor, Tensor, float]] = []
    for adapter, strength in changes["weight"]:
        if (found := adapter.low_rank()) is None:
            return None
        down, up, scale = found
        if down.shape[1] != prod(inside) or up.shape != (out, down.shape[0]):
            shapes = f"{tuple(up.shape)}·{tuple(down.shape)}"
            _log.warning("a LoRA of %s does not fit a weight of %s", shapes, (out, *inside))
            continue
        pairs.append((down, up, scale * strength))
    return pairs or None


def _make(
    layers: Sequence[LoraLayer], form: Callable[[LoraLayer, SendTensor], Callable[[], None]], ring: Ring | None
) -> None:
    """Make a form of layers, by its method, of changes that all go to the layers' device at once."""
    if layers:
        with uploading(layers[0].device, ring) as send:
            made = [form(layer, send) for layer in layers]
        for make in made:
            make()


def _thin(base: nn.Module, pairs: Sequence[tuple[Tensor, Tensor, float]], send: SendTensor) -> nn.Module:
    """Return the low-rank layer of pairs, which are computed here and sent in the dtype of the base's weight."""
    dtype = _parameter(base, "weight").dtype
    # One alone is read where it is sent from.
    down = pairs[0][0] if len(pairs) == 1 else torch.cat([down.float() for down, _, _ in pairs])
    up = torch.cat([up.float() * factor for _, up, factor in pairs], dim=1)
    rank, (out, *inside) = len(down), weight_shape(base)
    with torch.device("meta"):
        if inside[1:]:
            like: Any = base
            where = {"stride": like.stride, "padding": like.padding, "dilation": like.dilation}
            first: nn.Module = nn.Conv2d(inside[0], rank, (inside[1], inside[2]), bias=False, **where)
            second: nn.Module = nn.Conv2d(rank, out, 1, bias=False)
        else:
            first, second = nn.Linear(inside[0], rank, bias=False), nn.Linear(rank, out, bias=False)
    first.weight = nn.Parameter(send(down.reshape(rank, *inside), dtype), requires_grad=False)
    second.weight = nn.Parameter(send(up.reshape(out, rank, *[1] * len(inside[1:])), dtype), requires_grad=False)
    return nn.Sequential(packed(first), packed(second)).eval()


def _by_layer(
    stack: Sequence[tuple[Mapping[str, Adapter], float]],
) -> dict[str, dict[str, list[tuple[Adapter, float]]]]:
    """Return the changes of each layer, by its name."""
    found: dict[str, dict[str, list[tuple[Adapter, float]]]] = {}
    for adapters, strength in stack:
        for parameter, adapter in adapters.items():
            name, _, kind = parameter.rpartition(".")
            found.setdefault(name, {}).setdefault(kind, []).append((adapter, strength))
    return found


def _whole(base: nn.Module, changes: Changes, stored_as: torch.dtype | None, rounded: Mapping[str, int]) -> nn.Module:
    """Return the layer with merged weights. rounded: by parameter, how many of its first changes are rounded."""
    layer = _copied(plain(with_own_weights(base)))
    for kind, adapters in changes.items():
        own = _parameter(layer, kind)
        first = adapters[: rounded.get(kind, 0)]
        weight = merged(own, first)
        if stored_as is not None and first:
            weight = weight.to(stored_as).to(own.dtype)
        weight = merged(weight, adapters[len(first) :])
        layer._parameters[kind] = nn.Parameter(weight, requires_grad=False)
    return packed(layer) if isinstance(base, Packed) else layer


def _copied(layer: nn.Module) -> nn.Module:
    """Return a layer of the same weights, which others may replace."""
    made = copy.copy(layer)
    made._parameters = dict(layer._parameters)
    # Hooks are the layer's: what is done to one layer's is not to happen to the other's.
    made._forward_pre_hooks, made._forward_hooks = OrderedDict(), OrderedDict()
    return made


def _parameter(layer: nn.Module, kind: str) -> Tensor:
    return cast(Tensor, getattr(layer, kind))


def _members(module: nn.Module) -> list[Any]:
    return [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]
