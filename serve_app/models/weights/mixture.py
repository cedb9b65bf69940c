"""Computes a recipe's weights tensor by tensor: those of its files, changed by LoRAs and merged with other recipes.

Only files are open, so a mixture of many models takes no more memory than its result. The arithmetic is ComfyUI's: in
single precision, in the order of the changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from serve_app import log
from serve_app.errors import ModelFileError
from serve_app.models.families.family import BackboneFamily, Family
from serve_app.models.files.layout import origins
from serve_app.models.lora.adapters import Adapter, merged
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.weights.upload import SendTensor
from serve_app.recipe.weights import Share

_log = log.get("models")


class TensorChange(Protocol):
    """A change of some of a network's tensors."""

    def applied(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor changed, in float32, or unchanged if this does not apply to it."""
        ...


class Mixture:
    """The weights of one recipe. name: for errors. module: the network, with the file's tensors.

    remarks: warnings about the changes for users.
    """

    def __init__(self, name: str, family: Family, module: nn.Module) -> None:
        self.name = name
        self.family = family
        self.module = module
        self.remarks: list[str] = []
        self._changes: list[TensorChange] = []
        self._stored: dict[str, Tensor | QuantizedLinear] = dict(module.state_dict())
        layers = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, QuantizedLinear))
        self._stored |= {f"{name}.weight": layer for name, layer in layers}

    @property
    def names(self) -> tuple[str, ...]:
        """The network's names of all tensors."""
        return tuple(self._stored)

    @cached_property
    def published(self) -> Mapping[str, str]:
        """The network's names -> those in the published single file."""
        found = origins(self._stored, self.family.table())
        return {ours: theirs for theirs, places in found.items() for ours in (place.name for place in places)}

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a tensor."""
        stored = self._stored[name]
        return stored.weight.shape if isinstance(stored, QuantizedLinear) else stored.shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor when saved."""
        stored = self._stored[name]
        return stored.dtype if isinstance(stored, Tensor) else stored.quantized.saved_as

    def is_mixed(self, name: str) -> bool:
        """Whether a tensor is numeric and can be mixed, unlike the bytes of a tokeniser's file."""
        stored = self._stored[name]
        return isinstance(stored, QuantizedLinear) or stored.is_floating_point()

    def tensor(self, name: str) -> Tensor:
        """Return a tensor with the changes applied, in float32; one that is not numeric unchanged."""
        stored = self._stored[name]
        if isinstance(stored, QuantizedLinear):
            tensor = stored.quantized.wide()
        elif not self.is_mixed(name):
            return stored
        else:
            tensor = stored.float()
        for change in self._changes:
            tensor = change.applied(name, tensor)
        return tensor

    def add(self, change: TensorChange) -> None:
        """Append a change of the weights."""
        self._changes.append(change)

    def build(self, send: SendTensor, dtype: torch.dtype) -> nn.Module:
        """Return the network with mixed tensors in place of the file's, sent in a dtype.

        Layers with quantized weights quantize the mixed ones too.
        """
        for name, stored in self._stored.items():
            if not self.is_mixed(name):
                continue
            owner, _, leaf = name.rpartition(".")
            tensor = self.tensor(name)
            if isinstance(stored, QuantizedLinear):
                self.module.set_submodule(owner, stored.holding(tensor))
                continue
            tensor = send(tensor, dtype)
            layer = self.module.get_submodule(owner)
            if leaf in layer._parameters:
                layer._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
            else:
                layer._buffers[leaf] = tensor
        return self.module


@dataclass(frozen=True, slots=True, eq=False)
class Adapted:
    """A LoRA at a strength, or a scaling. adapters: by the tensor that they change."""

    adapters: Mapping[str, Adapter]
    strength: float

    def applied(self, name: str, tensor: Tensor) -> Tensor:
        adapter = self.adapters.get(name)
        return tensor if adapter is None else merged(tensor, [(adapter, self.strength)])


@dataclass(frozen=True, slots=True, eq=False)
class Added:
    """Another mixture's tensors, each at its share. A tensor of another shape is left out, except for the own share."""

    other: Mixture
    shares: Mapping[str, Share]
    fits: frozenset[str] = field(default_factory=frozenset)

    def applied(self, name: str, tensor: Tensor) -> Tensor:
        share = self.shares.get(name)
        if share is None:
            return tensor
        tensor = tensor * share.own
        return tensor + share.other * self.other.tensor(name) if share.other and name in self.fits else tensor


def added(own: Mixture, other: Mixture, shares: Sequence[Share]) -> Added:
    """Return the change that adds another recipe's weights to these, and record remarks on what does not fit.

    Errors: ModelFileError if they are of different families, or share no tensor of equal shape.
    """
    kinds = [mixture.family.title if isinstance(mixture.family, BackboneFamily) else "" for mixture in (own, other)]
    common = [name for name in own.names if name in set(other.names) and own.is_mixed(name) and other.is_mixed(name)]
    fits = frozenset(name for name in common if own.shape(name) == other.shape(name))
    if kinds[0] != kinds[1] or not fits:
        of = [
            f"{mixture.name}{f' ({kind})' if kind else ''}" for mixture, kind in zip((own, other), kinds, strict=True)
        ]
        raise ModelFileError(
            f"{of[0]} and {of[1]} cannot be merged: that takes two models of one family, and "
            f"{len(fits)} of {len(own.names)} tensors are alike"
        )
    if differing := sorted(set(common) - fits):
        own.remarks.append(
            f"merging {own.name} with {other.name} leaves out {len(differing)} tensors whose shapes differ, "
            f"'{differing[0]}' first: {tuple(own.shape(differing[0]))} and {tuple(other.shape(differing[0]))}"
        )
        _log.warning("%s", own.remarks[-1])
    prefixed = sorted(shares, key=lambda share: len(share.prefix), reverse=True)
    found: dict[str, Share] = {}
    for name in common:
        theirs = own.published.get(name, name) if prefixed[0].prefix else ""
        share = next((share for share in prefixed if theirs.startswith(share.prefix)), None)
        if share is not None:
            found[name] = share
    return Added(other, found, fits)
