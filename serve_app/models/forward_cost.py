"""What one forward of a network costs, counted without running it: activations, arithmetic and memory traffic.

The family's own forward runs on the meta device, where tensors have shapes and no numbers. So a count follows the code
as it is, whatever the sizes, and takes about a second of a CPU for a full-size network.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from serve_app.models.backbone import RecipeBackbone
from serve_app.models.families.family import BackboneFamily
from serve_app.models.forward import Replays
from serve_app.models.network import LoadedNetwork
from serve_app.nested_tensor import Samples
from serve_app.recipe.context import ContextWindows
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas, Piece, denoise
from serve_app.sampling.guidance.windows import FRAMES, needed_windows
from serve_app.sampling.latents.layout import LatentLayout
from serve_app.sampling.samplers.evaluation import Evaluation

META = torch.device("meta")

FUSED = frozenset(
    {"linear", "conv1d", "conv2d", "conv3d", "scaled_dot_product_attention", "layer_norm", "group_norm", "rms_norm"}
    | {"softmax", "silu", "gelu", "embedding"}
)
"""Operations that are one kernel on a GPU, though torch could take them apart."""


class Kernel(NamedTuple):
    """One kernel: its floating-point operations, two of eight bits counted as one, and the bytes it reads and writes.

    Cards that multiply in eight bits do so at twice the rate of sixteen, by their data sheets.
    """

    flops: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """The cost of one forward. peak_bytes: activations, the most that live at once. kernels: how many of each."""

    peak_bytes: int
    kernels: Mapping[Kernel, int]

    @property
    def flops(self) -> int:
        """Floating-point operations of all kernels."""
        return sum(kernel.flops * count for kernel, count in self.kernels.items())

    @property
    def nbytes(self) -> int:
        """Bytes that all kernels read and write."""
        return sum(kernel.nbytes * count for kernel, count in self.kernels.items())


def forward_cost(
    family: BackboneFamily,
    network: nn.Module,
    samples: Samples,
    cond: Tensor,
    options: Mapping[str, Any],
    windows: ContextWindows | None = None,
) -> ForwardCost:
    """Return the cost of a forward of a conditioning entry.

    network: on the meta device, in its dtypes. samples: as of a LATENT; cond: (N,T,D); options: as of a
    conditioning. windows: in which a long video is evaluated; the cost is of the longest. Only shapes are read.
    Errors: NodeError as `BackboneFamily.inputs`.
    """
    backbone = RecipeBackbone(LoadedNetwork("counted", family, network, Discrete(), Replays()))
    with torch.inference_mode(), Counting() as counting:
        layout = LatentLayout.of(samples)
        x, cond = layout.pack(samples.to(META)), cond.to(META)
        canvas = Canvas(x, x, layout=layout)
        inputs = backbone.inputs(cond, tree_map_only(Tensor, _without_numbers, {**options}), "positive", canvas)
        piece = Piece(backbone, x, 0.5, inputs)
        if windows is not None and (cut := needed_windows(windows, x)) is not None:
            piece = max(cut(Evaluation(x, 0.5, 0)).cut(piece), key=lambda part: part.x.shape[FRAMES])
        denoise([piece])
    return ForwardCost(counting.peak_bytes, dict(counting.kernels))


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what operations on one device allocate and compute. device: tensors elsewhere are not counted."""

    def __init__(self, device: torch.device = META) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self.kernels: Counter[Kernel] = Counter()
        self._device = device
        self._live: dict[int, int] = {}
        self._live_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket._qualified_op_name.rpartition("::")[2]
        if name == "dropout":
            # Networks run in inference mode, where it returns its input. Taken apart it is a copy.
            return args[0]
        if name not in FUSED and func._can_decompose():
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        if name == "scaled_dot_product_attention" and self._device == META:
            # Torch's own takes it apart, with logits for every pair of tokens, which no GPU's kernel has.
            made = args[0].new_empty(*args[0].shape[:-1], args[2].shape[-1])
        else:
            made = func(*args, **kwargs)
        written, read = [*self._tensors(made)], [*self._tensors(args)]
        given = {tensor.untyped_storage()._cdata for tensor in read}
        for tensor in written:
            # Views, of weights too, and what is changed in place are no allocations.
            if tensor.untyped_storage()._cdata not in given:
                self._allocated(tensor)
        if written and not func.is_view:
            nbytes = sum(tensor.numel() * tensor.dtype.itemsize for tensor in (*read, *written))
            self.kernels[Kernel(_flops(name, read, written[0]), nbytes)] += 1
        return made

    def _tensors(self, value: Any) -> Iterator[Tensor]:
        for leaf in tree_iter(value):
            if isinstance(leaf, Tensor) and leaf.device.type == self._device.type:
                yield leaf

    def _allocated(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in self._live:
            self._live[key] = storage.nbytes()
            self._live_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self._live_bytes)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self._live_bytes -= self._live.pop(key)


def _flops(name: str, read: list[Tensor], made: Tensor) -> int:
    """Return the floating-point operations of an operation; of those that are bound by memory: one a number."""
    match name:
        case "linear" | "mm" | "bmm" | "matmul":
            return 2 * made.numel() * read[0].shape[-1]
        case "_scaled_mm":
            return made.numel() * read[0].shape[-1]
        case "addmm" | "baddbmm":
            return 2 * made.numel() * read[1].shape[-1]
        case "conv1d" | "conv2d" | "conv3d" | "convolution":
            return 2 * made.numel() * read[1][0].numel()
        case "scaled_dot_product_attention":
            query, key, value = read[:3]
            return 2 * (query.numel() // query.shape[-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    return made.numel()


def _without_numbers(tensor: Tensor) -> Tensor:
    return tensor.to(META)
