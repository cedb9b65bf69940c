"""An open model file: names and shapes of its tensors, and any part of it as a network with weights.

Opening reads the header only. The tensors of a loaded part are still in the file: each is read when it is moved to its
device (`file_tensor`), so no tensor is in memory twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from serve_app import log
from serve_app.errors import ModelFileError
from serve_app.models.families.family import BackboneFamily, Family
from serve_app.models.files.file_tensor import held
from serve_app.models.files.layout import placed
from serve_app.models.files.parts import PART_NAMES, FoundPart, find_part
from serve_app.models.files.tensor_file import TensorFile, open_tensors
from serve_app.models.files.tensors import Shape, Tensors
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.half_precision_text import ITEMSIZE, names
from serve_app.models.quantization.quantized_linear import WIDE, QuantizedLinear, QuantizedWeight, may_go_to
from serve_app.recipe.recipe import Part
from serve_app.recipe.training import Training
from serve_app.recipe.weights import EightBit

_SAFELY_UNUSED = ("position_ids", "logit_scale", "text_projection.weight", "num_batches_tracked")

_log = log.get("models")


class Checkpoint:
    """An open model file. Errors: ModelFileError for an unsupported format or a damaged file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = f"'{path.name}'"
        self._file: TensorFile = open_tensors(path)
        self.shapes: Mapping[str, Shape] = self._file.shapes

    def tensor(self, name: str) -> Tensor:
        """Return one tensor, dequantized to float32 if it is stored with scales.

        Errors: ModelFileError if it is not of floats, or the file was changed.
        """
        return self._file.tensor(name)

    def unread(self, name: str) -> Tensor:
        """As `tensor`, but it is read each time something is computed with it."""
        return self._file.unread(name)

    def raw(self, name: str) -> Tensor:
        """Return one tensor of any dtype. Errors: ModelFileError if the file was changed."""
        return self._file.raw(name)

    def quantized(self, name: str, rounded: EightBit | None = None) -> QuantizedWeight | None:
        """Return a weight in its quantized form, None if it is not quantized.

        rounded: the dtype that weights without scales are quantized to. Errors: as `tensor`.
        """
        quantized = self._file.quantized(name)
        if rounded is None or (quantized is not None and quantized.saved_as == WIDE):
            return quantized
        return EightBitWeight(self._file.unread(name).to(getattr(torch, rounded)))

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's metadata."""
        return self._file.metadata

    def find(self, part: Part, others: Sequence[Checkpoint] = (), loaded_as: str = "") -> FoundPart:
        """Return a part's family and where its tensors are.

        others: further files of the part. loaded_as: type of text encoders, as `recipe.LoadedAs`.

        Errors: ModelFileError if the files have no such part or one of another family.
        """
        return find_part(part, [Tensors(file.shapes, file.where, file.metadata) for file in (self, *others)], loaded_as)

    def family(self, part: Part, others: Sequence[Checkpoint] = (), loaded_as: str = "") -> Family:
        """Return a part's family; as `find`."""
        return self.find(part, others, loaded_as).family

    def nbytes(
        self,
        part: Part,
        others: Sequence[Checkpoint] = (),
        *,
        dtype: torch.dtype,
        rounded: EightBit | None = None,
        loaded_as: str = "",
        mixed: bool = False,
        sixteen_bits: bool = False,
    ) -> int:
        """Return how many bytes the part takes in a dtype, as loaded by `load` and `packing.move_to`.

        mixed: weights will be merged, and quantized again where the file's are. sixteen_bits: as
        `half_precision_text.keep`. Errors: ModelFileError as `find`.
        """
        files = (self, *others)
        found = self.find(part, others, loaded_as)
        empty = found.family.empty()
        linear, narrow = _linear_weights(empty), names(empty) if sixteen_bits else set()
        total, seen = 0, set()
        for ours, (number, name, place) in found.sources.items():
            if (number, name) in seen:
                continue
            seen.add((number, name))
            elements = prod(files[number].shapes[name])
            quantized = files[number]._file.quantized(name) if ours in linear and may_go_to(place) else None
            if quantized is not None and not mixed:
                total += quantized.nbytes
            else:
                wide = ITEMSIZE if ours in narrow else dtype.itemsize
                total += elements * (wide if quantized is None and not (rounded and ours in linear) else 1)
        return total

    def training(self) -> Training:
        """Return what the file's backbone predicts, and on which noise levels.

        Errors: ModelFileError as `find`.
        """
        found = self.find("backbone")
        assert isinstance(found.family, BackboneFamily)
        return found.family.training(self, {ours: source.name for ours, source in found.sources.items()})

    def load(
        self,
        part: Part,
        others: Sequence[Checkpoint] = (),
        rounded: EightBit | None = None,
        loaded_as: str = "",
    ) -> tuple[Family, nn.Module]:
        """Return a part's family and its network with the file's tensors.

        They are unread, on the CPU and in the file's dtype; `packing.move_to` reads and moves them. Linear layers keep
        quantized weights. rounded: an eight-bit dtype to quantize all others to. Errors: ModelFileError as `find`.
        """
        files = (self, *others)
        found = self.find(part, others, loaded_as)
        module = found.family.empty()
        wanted, linear = module.state_dict(), _linear_weights(module)
        parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        state: dict[str, Tensor] = {}
        quantized: dict[str, QuantizedWeight] = {}
        unused = list(found.unused)
        for ours, source in found.sources.items():
            file = files[source.file]
            if ours not in wanted:
                unused.append(source.name)
                continue
            may_stay = ours in linear and may_go_to(source.place)
            weight = file.quantized(source.name, rounded) if may_stay else None
            if weight is not None:
                quantized[ours] = weight.part(source.place)
            tensor = None if weight is not None else placed(file._file.unread(source.name), source.place)
            # A VAE's attention is 1×1 convolutions in the file, linear in the network: the same numbers.
            shape = wanted[ours].shape
            if _without_ones(quantized[ours].shape if tensor is None else tensor.shape) != _without_ones(shape):
                raise ModelFileError(
                    f"{file.where} has '{source.name}' of shape {file.shapes[source.name]}, expected {tuple(shape)}"
                )
            if tensor is None:
                continue
            if rounded is not None:
                tensor = tensor.to(getattr(torch, rounded))
            # Buffers, such as the bytes of a tokeniser's file, are not moved.
            state[ours] = tensor.reshape(shape) if ours in parameters else held(tensor.reshape(shape))
        if missing := sorted(set(wanted) - set(state) - set(quantized)):
            raise ModelFileError(
                f"{self.where} lacks {len(missing)} tensors of its {PART_NAMES[part]}, '{missing[0]}' first"
            )
        if unused := [name for name in unused if not name.endswith(_SAFELY_UNUSED)]:
            _log.warning("%s: %d tensors are not used, '%s' first", self.where, len(unused), unused[0])
        module.load_state_dict(state, assign=True, strict=False)
        for ours, weight in quantized.items():
            layer: Any = module.get_submodule(ours.removesuffix(".weight"))
            module.set_submodule(ours.removesuffix(".weight"), QuantizedLinear(weight, layer.bias))
        return found.family, module


def _linear_weights(network: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, layer in network.named_modules() if type(layer) is nn.Linear}


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape[:2], *shape[2:]) if any(size != 1 for size in shape[2:]) else tuple(shape[:2])
