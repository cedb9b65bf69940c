"""Files of ControlNets: of which kind one is, and what a file of a diffusion transformer's has in it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from serve_app import log
from serve_app.models.checkpoint import Checkpoint
from serve_app.models.controlnet_file import ControlFile
from serve_app.models.dit_control import DitControlFamily, DitControlNetwork
from serve_app.models.flux_controlnet import FluxControlFamily
from serve_app.models.layout import placed, places
from serve_app.models.sd3_controlnet import Sd3ControlFamily, Sd35ControlFamily
from serve_app.models.tensors import Tensors

FAMILIES: Sequence[type[DitControlFamily]] = (Sd35ControlFamily, Sd3ControlFamily, FluxControlFamily)
"""All that are known."""

_log = log.get("models")


class DitControlFile:
    """An open file of a diffusion transformer's ControlNet."""

    needs_base = has_differences = False

    def __init__(self, file: Checkpoint, control: DitControlFamily) -> None:
        self._file = file
        self.control = control

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return self.control.dtypes

    @property
    def reads_latents(self) -> bool:
        return self.control.reads_latents

    def elements(self) -> int:
        """Return how many numbers the network has."""
        return sum(map(prod, self._file.shapes.values()))

    def load(self, device: torch.device, dtype: torch.dtype) -> DitControlNetwork:
        """Return the network on the device. Errors: ModelFileError for tensors missing or of another shape."""
        with torch.device("meta"):
            network = self.control.build()
        network.eval().requires_grad_(False)
        table, wanted = self.control.table(), network.state_dict()
        state, unused = {}, []
        tensors = Tensors(self._file.shapes, self._file.where)
        for name in self._file.shapes:
            for place in places(name, table):
                if place.name not in wanted:
                    unused.append(name)
                    continue
                tensor = placed(self._file.tensor(name), place)
                if tensor.shape != wanted[place.name].shape:
                    raise tensors.unsupported(
                        f"has '{name}' of shape {self._file.shapes[name]}, expected {tuple(wanted[place.name].shape)}"
                    )
                state[place.name] = tensor.to(device, dtype)
        if missing := sorted(set(wanted) - set(state)):
            raise tensors.unsupported(f"lacks {len(missing)} tensors of its network, '{missing[0]}' first")
        if unused:
            _log.warning("%s: %d tensors are not used, '%s' first", self._file.where, len(unused), unused[0])
        network.load_state_dict(state, assign=True)
        return network


def open_control(file: Checkpoint, beside: Sequence[Checkpoint] = ()) -> ControlFile | DitControlFile:
    """Return a file as what it is. beside: of the backbone whose weights it changes. Errors: ModelFileError."""
    for family in FAMILIES:
        if (control := family.find(file)) is not None:
            return DitControlFile(file, control)
    return ControlFile(file, beside)
