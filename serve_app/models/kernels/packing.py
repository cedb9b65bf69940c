"""CPU convolutions and linear layers with weights in oneDNN's packed layout.

With plain weights oneDNN reorders a convolution's weight at every call. A large batch hides that, but it is most of the
time of a small one: about 70 % of the SD 1.5 UNet's forward of two rows at 8×8 latents. A plain linear layer goes to
torch's BLAS instead, which takes two to three times as long as oneDNN on CPUs whose widest instructions it does not
use. A 1×1 convolution is a linear layer over cells, and packed as one: packed as a convolution, one of 640 channels
takes 20 ms over two rows of 8×8 on a CPU with AVX-512, plain 1 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any, TypeAlias, TypeGuard, cast

import torch
from torch import Tensor, nn

from serve_app.models.files.file_tensor import held
from serve_app.models.kernels.upsampling import PackedUpsampling, Upsampling
from serve_app.models.kernels.winograd import PackedWinograd, Winograd
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.weights.upload import Ring, SendTensor, uploading

_ops: Any = torch.ops.mkldnn


class PackedConvolution(nn.Module):
    """A Conv2d for inference with its weight packed. It cannot be trained, moved or saved."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.padding, self.stride, self.dilation = plain.padding, plain.stride, plain.dilation
        self.groups = plain.groups
        self.bias = plain.bias
        self.weight: Tensor = _ops._reorder_convolution_weight(
            plain.weight, list(plain.padding), list(plain.stride), list(plain.dilation), self.groups
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (B,C,H,W) float32."""
        result: Tensor = _ops._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )
        return result

    def plain(self) -> nn.Conv2d:
        """Return the same layer with a plain copy of its weight, bit for bit."""
        out, of_group = self.weight.shape[:2]
        kernel = (self.weight.shape[2], self.weight.shape[3])
        with torch.device("meta"):
            layer = nn.Conv2d(of_group * self.groups, out, kernel, groups=self.groups, bias=False)
        layer.padding, layer.stride, layer.dilation = self.padding, self.stride, self.dilation
        layer.weight, layer.bias = nn.Parameter(self.weight.to_dense(), requires_grad=False), self.bias
        return layer.eval()


class PackedLinear(nn.Module):
    """A Linear for inference with its weight packed. It cannot be trained, moved or saved."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.bias = plain.bias
        # Without a batch size oneDNN chooses a layout that suits any.
        self.weight: Tensor = _ops._reorder_linear_weight(plain.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the linear map of x (...,in) float32: (...,out)."""
        result: Tensor = _ops._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return result

    def plain(self) -> nn.Linear:
        """Return the same layer with a plain copy of its weight, bit for bit."""
        out, inside = self.weight.shape
        with torch.device("meta"):
            layer = nn.Linear(inside, out, bias=False)
        layer.weight, layer.bias = nn.Parameter(self.weight.to_dense(), requires_grad=False), self.bias
        return layer.eval()


class PackedPointwise(nn.Module):
    """A 1×1 Conv2d for inference, packed as a linear layer. It cannot be trained, moved or saved."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.padding, self.stride, self.dilation = plain.padding, plain.stride, plain.dilation
        self.bias = plain.bias
        self.weight: Tensor = _ops._reorder_linear_weight(plain.weight.flatten(1), None)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (B,C,H,W) float32, channels last in memory."""
        cells: Tensor = _ops._linear_pointwise(x.permute(0, 2, 3, 1), self.weight, self.bias, "none", [], "")
        return cells.permute(0, 3, 1, 2)

    def plain(self) -> nn.Conv2d:
        """Return the same layer with a plain copy of its weight, bit for bit."""
        out, inside = self.weight.shape
        with torch.device("meta"):
            layer = nn.Conv2d(inside, out, 1, bias=False)
        weight = self.weight.to_dense().view(out, inside, 1, 1)
        layer.weight, layer.bias = nn.Parameter(weight, requires_grad=False), self.bias
        return layer.eval()


Packed: TypeAlias = PackedConvolution | PackedLinear | PackedPointwise


def move_to(
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    ring: Ring | None = None,
    staying: Sequence[nn.Parameter] = (),
    *,
    packs: bool = True,
) -> None:
    """Move a network's weights to a device and dtype, in place; on a CPU in float32 they are packed, if `packs`.

    Quantized layers keep their weights and compute in the dtype; so do layers whose dtype is in `staying`. ring: the
    device's upload ring.
    """
    stay = {id(parameter) for parameter in staying}
    if ring is not None:
        upload(network.modules(), dtype, ring, stay)
        return
    for layer in network.modules():
        if isinstance(layer, QuantizedLinear):
            layer.move_to(lambda tensor: held(tensor.to(device)), device, dtype)
    if packs and device.type == "cpu" and dtype == torch.float32:
        _pack(network)
    replace_parameters(
        network.modules(),
        lambda parameter: held(parameter.data.to(device, parameter.dtype if id(parameter) in stay else dtype)),
    )


def upload(layers: Iterable[nn.Module], dtype: torch.dtype | None, ring: Ring, stay: Set[int] = frozenset()) -> None:
    """Upload layers' weights to a ring's device. dtype, stay: as `move_weights`."""
    with uploading(ring.device, ring) as send:
        move_weights(layers, send, ring.device, dtype, stay)


def move_weights(
    layers: Iterable[nn.Module],
    send: SendTensor,
    device: torch.device,
    dtype: torch.dtype | None = None,
    stay: Set[int] = frozenset(),
) -> None:
    """Move layers' weights to a device by `send`, in place and in the order of `weights_of`.

    dtype: to compute in; None: unchanged. stay: ids of parameters that keep their dtype.
    """

    def sent(parameter: nn.Parameter) -> Tensor:
        return send(parameter.data, None if id(parameter) in stay else dtype)

    def moved() -> Iterator[nn.Module]:
        for layer in layers:
            if isinstance(layer, QuantizedLinear):
                layer.move_to(send, device, dtype or layer.weight.dtype)
            yield layer

    replace_parameters(moved(), sent)


def replace_parameters(layers: Iterable[nn.Module], made: Callable[[nn.Parameter], Tensor]) -> None:
    """Replace the layers' parameters; one that several layers share stays shared."""
    replaced: dict[int, nn.Parameter] = {}
    for layer in layers:
        for name, parameter in layer._parameters.items():
            if parameter is not None and id(parameter) not in replaced:
                replaced[id(parameter)] = nn.Parameter(made(parameter), requires_grad=False)
            if parameter is not None:
                layer._parameters[name] = replaced[id(parameter)]


def weights_of(layers: Iterable[nn.Module], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return layers' weights, each once, quantized ones as stored.

    dtype: the dtype that the others pretend to have, without their numbers; None: their own.
    """
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    seen: set[int] = set()
    for layer in layers:
        if isinstance(layer, QuantizedLinear):
            layer.quantized.sent(note)
        for parameter in layer._parameters.values():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                data = parameter.data
                found.append(data if dtype is None else torch.empty(data.shape, dtype=dtype, device="meta"))
    return found


def _pack(network: nn.Module) -> None:
    children = ((parent, *child) for parent in network.modules() for child in parent.named_children())
    found = [(parent, name, layer) for parent, name, layer in children if _packs(layer)]
    # Layers are dequantized into the same memory: touching fresh memory takes longer than converting and packing.
    wide = torch.empty(max((layer.weight.numel() for *_, layer in found), default=0))
    for parent, name, layer in found:
        if layer.weight.dtype != torch.float32:
            weight = wide[: layer.weight.numel()].view(layer.weight.shape).copy_(layer.weight)
            layer.weight = nn.Parameter(weight, requires_grad=False)
        setattr(parent, name, packed(layer))


def packed(layer: nn.Module) -> nn.Module:
    """Return the layer packed, or itself if it cannot be packed or that gains nothing."""
    if not _packs(layer) or layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
        return layer
    if isinstance(layer, nn.Linear):
        return PackedLinear(layer)
    if isinstance(layer, Upsampling):
        return PackedUpsampling(layer)
    if isinstance(layer, Winograd):
        return PackedWinograd(layer)
    return PackedPointwise(layer) if _is_pointwise(layer) else PackedConvolution(layer)


def plain(layer: nn.Module) -> nn.Module:
    """Return a packed or eight-bit layer with plain weights, any other unchanged."""
    return layer.plain() if isinstance(layer, Packed | QuantizedLinear) else layer


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's plain weight."""
    shape = tuple(cast(Tensor, layer.weight).shape)
    return (*shape, 1, 1) if isinstance(layer, PackedPointwise) else shape


def parameter_shape(network: nn.Module, name: str) -> tuple[int, ...]:
    """Return the shape of a network's plain weight or bias."""
    path, _, kind = name.rpartition(".")
    layer = network.get_submodule(path)
    return weight_shape(layer) if kind == "weight" else tuple(cast(Tensor, getattr(layer, kind)).shape)


def _packs(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Whether the layer can be packed once its weight is float32 on the CPU."""
    onednn: Any = torch.backends.mkldnn
    if isinstance(layer, nn.Conv2d):
        zeros = layer.padding_mode == "zeros" and isinstance(layer.padding, tuple)
        # A subclass may do more than convolve.
        usual = type(layer).forward in (nn.Conv2d.forward, Upsampling.forward)
        # 1×1 convolutions with strides or groups are too rare to matter.
        packs = layer.kernel_size != (1, 1) or _is_pointwise(layer)
        return zeros and usual and packs and bool(onednn.is_available())
    return isinstance(layer, nn.Linear) and bool(onednn.is_available())


def _is_pointwise(layer: nn.Conv2d) -> bool:
    plain = layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1
    return plain and layer.kernel_size == (1, 1)
