"""A model file opened: its tensors' names and shapes, and one part of it as a network with weights.

Only safetensors: a pickle can run code when it is opened. The file is mapped, not read: listing costs its header,
loading a part touches that part alone, and no tensor is in memory twice. Source: safetensors' format description.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from serve_app import log
from serve_app.errors import ModelFileError
from serve_app.models.families import (
    Architecture,
    Shape,
    Tensors,
    TextArchitecture,
    UNetArchitecture,
    VaeArchitecture,
)
from serve_app.models.layout import table, translate
from serve_app.models.networks import network
from serve_app.values import Part

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_DTYPES = ("F16", "BF16", "F32")
_PREFIXES: dict[Part, tuple[str, ...]] = {
    "backbone": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", ""),
    "clip": ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
}
_MARKS: dict[Part, str] = {
    "backbone": "input_blocks.0.0.weight",
    "vae": "decoder.conv_in.weight",
    "clip": "embeddings.token_embedding.weight",
}
_PROBES: dict[Part, Callable[[Tensors], Architecture]] = {
    "backbone": UNetArchitecture.probe,
    "vae": VaeArchitecture.probe,
    "clip": TextArchitecture.probe,
}
_NAMES: dict[Part, str] = {"backbone": "diffusion network", "vae": "VAE", "clip": "text encoder"}

Loaded: TypeAlias = tuple[Architecture, nn.Module]

_log = log.get("models")


class Checkpoint:
    """An open model file. Errors: ModelFileError if it is no safetensors file or is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix.lower() in _PICKLES:
            raise ModelFileError(
                f"'{path.name}' is a pickle, which can run code when it is opened; only .safetensors files are loaded"
            )
        try:
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

    def architecture(self, part: Part) -> Architecture:
        """Return what the part is. Errors: ModelFileError if the file has no such part or one of another family."""
        return _PROBES[part](self._part(part)[1])

    def elements(self, part: Part) -> int:
        """Return how many numbers the part has. Errors: ModelFileError if the file has no such part."""
        return sum(prod(shape) for shape in self._part(part)[1].shapes.values())

    def load(self, part: Part, device: torch.device, dtype: torch.dtype) -> Loaded:
        """Return the part's architecture and its network on the device. Errors: ModelFileError as `architecture`.

        Where device and dtype are the file's own, the weights stay mapped and are shared with every process that
        maps the same file.
        """
        prefix, tensors = self._part(part)
        architecture = _PROBES[part](tensors)
        prefixes = table(architecture, diffusers=tensors.has("encoder.down_blocks."))
        module = network(architecture)
        wanted = module.state_dict()
        state: dict[str, Tensor] = {}
        unknown: list[str] = []
        for name in tensors.shapes:
            ours = translate(name, prefixes)
            if ours is None or ours not in wanted:
                unknown.append(name)
                continue
            # A VAE's attention is 1×1 convolutions in the file, linear in the network: the same numbers.
            shape = wanted[ours].shape
            if tensors.shapes[name] != shape and tensors.shapes[name] != (*shape, 1, 1):
                raise tensors.unsupported(f"has '{name}' of shape {tensors.shapes[name]}, expected {tuple(shape)}")
            state[ours] = self.tensor(prefix + name).reshape(shape).to(device, dtype)
        if missing := sorted(set(wanted) - set(state)):
            raise tensors.unsupported(f"lacks {len(missing)} tensors of its {_NAMES[part]}, '{missing[0]}' first")
        if unknown := [name for name in unknown if not name.endswith("position_ids")]:
            _log.warning("%s: %d tensors are not used, '%s' first", tensors.where, len(unknown), unknown[0])
        module.load_state_dict(state, assign=True)
        return architecture, module

    def _part(self, part: Part) -> tuple[str, Tensors]:
        where = f"'{self.path.name}'"
        for prefix in _PREFIXES[part]:
            if prefix + _MARKS[part] in self.shapes:
                inside = {name[len(prefix) :]: s for name, s in self.shapes.items() if name.startswith(prefix)}
                return prefix, Tensors(inside, where)
        whole = Tensors(self.shapes, where)
        raise whole.unsupported(f"holds no {_NAMES[part]} of a known layout{whole.family()}")
