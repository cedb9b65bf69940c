"""Frees the memory of weights whoever still has references to them, so that no forgotten reference keeps a GPU full.

A tensor is freed in place: it is the same object with no elements. A freed layer that is run raises
`WeightsFreedError`. Buffers and other tensors that are no weights stay as they are: several networks may share them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import torch
from torch import Tensor, nn

from serve_app.errors import WeightsFreedError
from serve_app.models.files.file_tensor import FileTensor
from serve_app.models.kernels.packing import Packed
from serve_app.models.kernels.upsampling import PackedUpsampling
from serve_app.models.kernels.winograd import PackedWinograd
from serve_app.models.quantization.quantized_linear import QuantizedLinear

_PACKED = (*get_args(Packed), PackedUpsampling, PackedWinograd)


def free_network(network: nn.Module, name: str, shared: nn.Module | None = None) -> None:
    """Free the weights of a network, but those it shares with another. name: of the weights, for the error."""
    spared = set() if shared is None else {id(tensor) for tensor in tensors_of(shared.modules())}

    def refuse(layer: nn.Module, args: Any) -> None:
        raise WeightsFreedError(f"{name} was evicted: its memory is free. Work keeps a Hold open while it uses weights")

    for layer in network.modules():
        layer.register_forward_pre_hook(refuse, prepend=True)
    free_tensors(tensor for tensor in tensors_of(network.modules()) if id(tensor) not in spared)


def free_tensors(tensors: Iterable[Tensor]) -> None:
    """Free the memory of tensors, which have no elements after that. Those that are read from a file have none."""
    for tensor in list(tensors):
        # A view keeps what it is a view of.
        for one in (tensor, tensor._base):
            if one is not None and not isinstance(one, FileTensor):
                # Assigned, it takes the place of what is behind the object, for everybody who has that. A packed tensor
                # takes only one that was made in the same mode of inference.
                with torch.inference_mode(one.is_inference()):
                    one.data = torch.empty(0).to_mkldnn() if one.is_mkldnn else one.new_empty(0)


def tensors_of(layers: Iterable[nn.Module]) -> list[Tensor]:
    """Return the tensor objects that layers have their weights in, packed ones among them; some more than once."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    for layer in layers:
        found += [parameter for parameter in layer._parameters.values() if parameter is not None]
        if isinstance(layer, _PACKED):
            found += [tensor for tensor in vars(layer).values() if isinstance(tensor, Tensor)]
        if isinstance(layer, QuantizedLinear):
            layer.quantized.sent(note)
    return found
