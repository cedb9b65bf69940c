"""A model file opened: its tensors' names and shapes, and one part of it as a network with weights.

Only safetensors: a pickle can run code when it is opened. The file is mapped, not read: listing costs its header,
loading a part touches that part alone, and no tensor is in memory twice. Source: safetensors' format description.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from serve_app import log
from serve_app.errors import ModelFileError
from serve_app.models.eight_bit import EightBitLinear, EightBitWeight, may_go_to
from serve_app.models.families.family import BackboneFamily, Family
from serve_app.models.layout import placed
from serve_app.models.mapping import make_room
from serve_app.models.parts import PART_NAMES, FoundPart, find_part
from serve_app.models.quantization import encodings, is_beside
from serve_app.models.tensors import Shape, Tensors
from serve_app.values import EightBit, Part, Training

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_DTYPES = ("F16", "BF16", "F32", "F8_E4M3", "F8_E5M2", "U8")
_SAFELY_UNUSED = ("position_ids", "logit_scale", "text_projection.weight", "num_batches_tracked")

_log = log.get("models")


class Checkpoint:
    """An open model file. Errors: ModelFileError if it is no safetensors file or is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = f"'{path.name}'"
        if path.suffix.lower() in _PICKLES:
            raise ModelFileError(
                f"'{path.name}' is a pickle, which can run code when it is opened; only .safetensors files are loaded"
            )
        try:
            make_room(path)
            file: Any = safe_open(str(path), framework="pt", device="cpu")
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"'{path.name}' cannot be read as a safetensors file: {error}") from error
        self._file: Any = file
        self._dtypes: dict[str, str] = {name: s.get_dtype() for name, s in slices.items()}
        self._encodings = encodings(self._dtypes, file.metadata() or {}, file.get_tensor, self.where)
        self.shapes: dict[str, Shape] = {
            name: tuple(s.get_shape()) for name, s in slices.items() if not is_beside(name)
        }

    def tensor(self, name: str) -> Tensor:
        """Return one tensor, mapped from the file, or in float32 if the file has a scale for it.

        Errors: ModelFileError if it is not of floats.
        """
        if name in self._encodings and self._encodings[name].scale is not None:
            return self._eight_bit(name).wide()
        if (dtype := self._dtypes[name]) not in _DTYPES:
            raise ModelFileError(f"'{self.path.name}': tensor '{name}' is {dtype}; supported are {', '.join(_DTYPES)}")
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def raw(self, name: str) -> Tensor:
        """Return one tensor, mapped from the file, whatever it holds."""
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def eight_bit(self, name: str, rounded: EightBit | None = None) -> EightBitWeight | None:
        """Return a weight that is of eight bits in the file, None for another. rounded: what those without a scale are.

        Errors: as `tensor`.
        """
        encoding = self._encodings.get(name)
        if rounded is not None and (encoding is None or encoding.scale is None):
            return EightBitWeight(self.tensor(name).to(getattr(torch, rounded)))
        return None if encoding is None else self._eight_bit(name)

    def _eight_bit(self, name: str) -> EightBitWeight:
        encoding = self._encodings[name]
        scale = None if encoding.scale is None else self._file.get_tensor(encoding.scale).float().reshape(-1, 1)
        return EightBitWeight(self._file.get_tensor(name), scale, encoding.group)

    def find(self, part: Part, beside: Sequence[Checkpoint] = (), loaded_as: str = "") -> FoundPart:
        """Return what the part is and where its tensors are.

        beside: further files of it. loaded_as: what text encoders are loaded for, as `values.LoadedAs`.

        Errors: ModelFileError if the files hold no such part or one of another family.
        """
        return find_part(part, [Tensors(file.shapes, file.where) for file in (self, *beside)], loaded_as)

    def family(self, part: Part, beside: Sequence[Checkpoint] = (), loaded_as: str = "") -> Family:
        """Return what the part is; as `find`."""
        return self.find(part, beside, loaded_as).family

    def nbytes(
        self,
        part: Part,
        beside: Sequence[Checkpoint] = (),
        *,
        dtype: torch.dtype,
        rounded: EightBit | None = None,
        loaded_as: str = "",
    ) -> int:
        """Return how many bytes the part takes in a dtype, as `load` and `packing.move_to` make it.

        Errors: ModelFileError as `find`.
        """
        files = (self, *beside)
        found = self.find(part, beside, loaded_as)
        linear = _linear_weights(found.family.empty())
        total, seen = 0, set()
        for ours, (number, name, place) in found.sources.items():
            if (number, name) in seen:
                continue
            seen.add((number, name))
            kept = ours in linear and may_go_to(place) and (rounded is not None or name in files[number]._encodings)
            total += prod(files[number].shapes[name]) * (1 if kept else dtype.itemsize)
        return total

    def training(self) -> Training:
        """Return what the backbone in the file was trained to predict, and on which noise levels.

        Errors: ModelFileError as `find`.
        """
        found = self.find("backbone")
        assert isinstance(found.family, BackboneFamily)
        return found.family.training(self, {ours: source.name for ours, source in found.sources.items()})

    def load(
        self,
        part: Part,
        beside: Sequence[Checkpoint] = (),
        rounded: EightBit | None = None,
        loaded_as: str = "",
    ) -> tuple[Family, nn.Module]:
        """Return what the part is and its network, the file's tensors in it.

        They stay mapped, on the CPU and in the file's dtype; `packing.move_to` brings them to another. Linear layers
        whose weights are of eight bits keep them so. rounded: the eight-bit dtype whose numbers all are rounded to.
        Errors: ModelFileError as `find`.
        """
        files = (self, *beside)
        found = self.find(part, beside, loaded_as)
        module = found.family.empty()
        wanted, linear = module.state_dict(), _linear_weights(module)
        state: dict[str, Tensor] = {}
        kept: dict[str, EightBitWeight] = {}
        unused = list(found.unused)
        for ours, source in found.sources.items():
            file = files[source.file]
            if ours not in wanted:
                unused.append(source.name)
                continue
            may_stay = ours in linear and may_go_to(source.place)
            eight = file.eight_bit(source.name, rounded) if may_stay else None
            if eight is not None:
                kept[ours] = eight.part(source.place)
            tensor = placed(file.tensor(source.name), source.place) if eight is None else kept[ours].stored
            # A VAE's attention is 1×1 convolutions in the file, linear in the network: the same numbers.
            shape = wanted[ours].shape
            if _without_ones(tensor.shape) != _without_ones(shape):
                raise ModelFileError(
                    f"{file.where} has '{source.name}' of shape {file.shapes[source.name]}, expected {tuple(shape)}"
                )
            if eight is not None:
                continue
            if rounded is not None:
                tensor = tensor.to(getattr(torch, rounded))
            state[ours] = tensor.reshape(shape)
        if missing := sorted(set(wanted) - set(state) - set(kept)):
            raise ModelFileError(
                f"{self.where} lacks {len(missing)} tensors of its {PART_NAMES[part]}, '{missing[0]}' first"
            )
        if unused := [name for name in unused if not name.endswith(_SAFELY_UNUSED)]:
            _log.warning("%s: %d tensors are not used, '%s' first", self.where, len(unused), unused[0])
        module.load_state_dict(state, assign=True, strict=False)
        for ours, weight in kept.items():
            layer: Any = module.get_submodule(ours.removesuffix(".weight"))
            module.set_submodule(ours.removesuffix(".weight"), EightBitLinear(weight, layer.bias))
        return found.family, module


def _linear_weights(network: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, layer in network.named_modules() if type(layer) is nn.Linear}


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape[:2], *shape[2:]) if any(size != 1 for size in shape[2:]) else tuple(shape[:2])
