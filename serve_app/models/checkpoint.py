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
from serve_app.models.families.family import BackboneFamily, Family
from serve_app.models.layout import placed
from serve_app.models.mapping import make_room
from serve_app.models.parts import PART_NAMES, FoundPart, find_part
from serve_app.models.tensors import Shape, Tensors
from serve_app.values import EightBit, Part, Training

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_DTYPES = ("F16", "BF16", "F32", "F8_E4M3", "F8_E5M2")
_SAFELY_UNUSED = ("position_ids", "logit_scale", "text_projection.weight")

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
        self.shapes: dict[str, Shape] = {name: tuple(s.get_shape()) for name, s in slices.items()}
        self._dtypes: dict[str, str] = {name: s.get_dtype() for name, s in slices.items()}

    def tensor(self, name: str) -> Tensor:
        """Return one tensor, mapped from the file. Errors: ModelFileError if it is not a plain float tensor."""
        if (dtype := self._dtypes[name]) not in _DTYPES:
            raise ModelFileError(f"'{self.path.name}': tensor '{name}' is {dtype}; supported are {', '.join(_DTYPES)}")
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def find(self, part: Part, beside: Sequence[Checkpoint] = ()) -> FoundPart:
        """Return what the part is and where its tensors are. beside: further files of it.

        Errors: ModelFileError if the files hold no such part or one of another family.
        """
        return find_part(part, [Tensors(file.shapes, file.where) for file in (self, *beside)])

    def family(self, part: Part, beside: Sequence[Checkpoint] = ()) -> Family:
        """Return what the part is; as `find`."""
        return self.find(part, beside).family

    def elements(self, part: Part, beside: Sequence[Checkpoint] = ()) -> int:
        """Return how many numbers the part has. Errors: ModelFileError as `find`."""
        files = (self, *beside)
        used = {(source.file, source.name) for source in self.find(part, beside).sources.values()}
        return sum(prod(files[file].shapes[name]) for file, name in used)

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
    ) -> tuple[Family, nn.Module]:
        """Return what the part is and its network, the file's tensors in it.

        They stay mapped, on the CPU and in the file's dtype; `packing.move_to` brings them to another. rounded: the
        eight-bit dtype whose numbers they are rounded to. Errors: ModelFileError as `find`.
        """
        files = (self, *beside)
        found = self.find(part, beside)
        module = found.family.empty()
        wanted = module.state_dict()
        state: dict[str, Tensor] = {}
        unused = list(found.unused)
        for ours, source in found.sources.items():
            file = files[source.file]
            if ours not in wanted:
                unused.append(source.name)
                continue
            tensor = placed(file.tensor(source.name), source.place)
            # A VAE's attention is 1×1 convolutions in the file, linear in the network: the same numbers.
            shape = wanted[ours].shape
            if _without_ones(tensor.shape) != _without_ones(shape):
                raise ModelFileError(
                    f"{file.where} has '{source.name}' of shape {file.shapes[source.name]}, expected {tuple(shape)}"
                )
            if rounded is not None:
                tensor = tensor.to(getattr(torch, rounded))
            state[ours] = tensor.reshape(shape)
        if missing := sorted(set(wanted) - set(state)):
            raise ModelFileError(
                f"{self.where} lacks {len(missing)} tensors of its {PART_NAMES[part]}, '{missing[0]}' first"
            )
        if unused := [name for name in unused if not name.endswith(_SAFELY_UNUSED)]:
            _log.warning("%s: %d tensors are not used, '%s' first", self.where, len(unused), unused[0])
        module.load_state_dict(state, assign=True)
        return found.family, module


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape[:2], *shape[2:]) if any(size != 1 for size in shape[2:]) else tuple(shape[:2])
