"""Opens files of ControlNets and model patches, and finds their family."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from serve_app import log
from serve_app.models.control.anima_lllite import AnimaLLLite
from serve_app.models.control.controlnet_file import ControlFile
from serve_app.models.control.dit_control import DitControlFamily, SideFamily
from serve_app.models.control.flux_controlnet import FluxControlFamily
from serve_app.models.control.minimax_h3_control import MiniMaxH3Control
from serve_app.models.control.qwen_controlnet import QwenControlFamily, QwenFunControlFamily
from serve_app.models.control.qwen_diffsynth import QwenDiffSynth
from serve_app.models.control.sd3_controlnet import Sd3ControlFamily, Sd35ControlFamily
from serve_app.models.control.uso import Uso
from serve_app.models.control.zimage_control import ZImageControl
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import placed, places
from serve_app.models.files.tensors import Tensors
from serve_app.models.unet_patches.gligen import Gligen
from serve_app.models.weights.upload import Ring, uploading

FAMILIES: Sequence[type[DitControlFamily]] = (
    *(Sd35ControlFamily, Sd3ControlFamily, FluxControlFamily),
    *(QwenControlFamily, QwenFunControlFamily),
)
"""All known families of ControlNets."""
MODEL_PATCHES: Sequence[type[SideFamily]] = (
    *(QwenDiffSynth, ZImageControl, Uso, AnimaLLLite, Gligen),
    MiniMaxH3Control,
)
"""All model patches."""

_log = log.get("models")


class SideFile:
    """An open file of a network that runs alongside a diffusion transformer."""

    def __init__(self, file: Checkpoint, family: SideFamily) -> None:
        self._file = file
        self._family = family

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return self._family.dtypes

    def elements(self) -> int:
        """Return how many numbers the network has."""
        return sum(map(prod, self._file.shapes.values()))

    def load(self, device: torch.device, dtype: torch.dtype, ring: Ring | None = None) -> Any:
        """Return the network on the device. ring: of a GPU.

        Errors: ModelFileError for tensors missing or of another shape.
        """
        with torch.device("meta"):
            network = self._family.build()
        network.eval().requires_grad_(False)
        table, wanted = self._family.table(), network.state_dict()
        state, unused = {}, []
        tensors = Tensors(self._file.shapes, self._file.where)
        for name in self._file.shapes:
            for place in places(name, table):
                if place.name not in wanted:
                    unused.append(name)
                    continue
                tensor = placed(self._file.unread(name), place)
                if tensor.shape != wanted[place.name].shape:
                    raise tensors.unsupported(
                        f"has '{name}' of shape {self._file.shapes[name]}, expected {tuple(wanted[place.name].shape)}"
                    )
                state[place.name] = tensor
        if missing := sorted(set(wanted) - set(state)):
            raise tensors.unsupported(f"lacks {len(missing)} tensors of its network, '{missing[0]}' first")
        if unused:
            _log.warning("%s: %d tensors are not used, '%s' first", self._file.where, len(unused), unused[0])
        with uploading(device, ring) as send:
            of = {name: torch.float32 if self._family.single(name) else dtype for name in state}
            state = {name: send(tensor, of[name]) for name, tensor in state.items()}
        network.load_state_dict(state, assign=True)
        return network


class DitControlFile(SideFile):
    """An open file of a diffusion transformer's ControlNet."""

    needs_base = has_differences = False

    def __init__(self, file: Checkpoint, family: DitControlFamily) -> None:
        super().__init__(file, family)
        self.reads_latents = family.reads_latents


def open_model_patch(file: Checkpoint) -> SideFile:
    """Open a file as a model patch. Errors: ModelFileError for an unknown one."""
    for family in MODEL_PATCHES:
        if (found := family.find(file)) is not None:
            return SideFile(file, found)
    tensors = Tensors(file.shapes, file.where)
    raise tensors.unsupported(
        f"holds no model patch of a known layout{tensors.family()}; supported are DiffSynth's of Qwen-Image, the Fun "
        "union ControlNets of Z-Image and MiniMax H3, USO's of Flux.1, Anima's LLLite, and GLIGEN's"
    )


def open_control(file: Checkpoint, others: Sequence[Checkpoint] = ()) -> ControlFile | DitControlFile:
    """Open a ControlNet file. others: files of the backbone whose weights it changes. Errors: ModelFileError."""
    for family in FAMILIES:
        if (control := family.find(file)) is not None:
            return DitControlFile(file, control)
    return ControlFile(file, others)
