"""A network that enlarges images: ESRGAN and its many successors, recognised by spandrel from the tensors' names.

Files are .safetensors, or pickles of nothing but tensors (`tensor_pickle`). spandrel gets tensors, never a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.files.tensor_pickle import load_tensors
from serve_app.models.kernels.packing import replace_parameters
from serve_app.models.tiling import Tiles, in_passes
from serve_app.models.weights.upload import Ring, SendTensor, uploading
from serve_app.sampling.transfer import to_device

TILE = 512
OVERLAP = 32
SMALLEST_TILE = 128
"""Minimum sides and overlap of tiles in input pixels, as in ComfyUI."""


class Upscaler:
    """An upscaling network on its device. descriptor: spandrel's, which holds the network."""

    def __init__(self, descriptor: Any) -> None:
        self.network = descriptor

    @property
    def scale(self) -> int:
        """Factor by which each side grows."""
        return int(self.network.scale)

    def upscale(self, images: Tensor) -> Tiles:
        """Return images (B,H·scale,W·scale,3) in 0…1 from images (B,H,W,C), float32 on the CPU, tile by tile.

        On out of memory tiles are halved, down to SMALLEST_TILE. Errors: NodeError for an unsupported number of
        channels.
        """
        if images.shape[-1] != self.network.input_channels:
            raise NodeError(
                f"the images have {images.shape[-1]} channels; this upscale model takes {self.network.input_channels}"
            )
        tile = TILE
        while True:
            try:
                pixels = yield from in_passes(images.movedim(-1, 1), self._work, [(tile, tile)], OVERLAP, self.scale)
                return pixels.clamp(0, 1).movedim(1, -1)
            except torch.OutOfMemoryError:
                if tile // 2 < SMALLEST_TILE:
                    raise
            tile //= 2
            torch.cuda.empty_cache()

    def _work(self, tile: Tensor) -> Tensor:
        output: Tensor = self.network(to_device(tile, self.network.device).to(self.network.dtype))
        return output


class UpscalerFile:
    """An upscaling model's file, opened as `Checkpoint` opens others."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def elements(self) -> int:
        """Return about how many numbers the file has: its tensors are read only on loading."""
        return self.path.stat().st_size // torch.float32.itemsize

    def load(self, device: torch.device, dtype: torch.dtype, ring: Ring | None = None) -> Any:
        """Return the file's network on the device, as spandrel's descriptor. ring: of a GPU.

        Errors: ModelFileError for a file that holds more than tensors, is damaged, or is no upscaler of a known layout.
        """
        # Imported here: it takes a third of a second, of every replica's start.
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError, canonicalize_state_dict

        try:
            descriptor = ModelLoader().load_from_state_dict(canonicalize_state_dict(_tensors(self.path)))
        except UnsupportedModelError as error:
            raise ModelFileError(f"'{self.path.name}' is no upscale model of a known layout") from error
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelFileError(f"'{self.path.name}' cannot be loaded as an upscale model: {error}") from error
        if not isinstance(descriptor, ImageModelDescriptor):
            raise ModelFileError(
                f"'{self.path.name}' does not map one image to one image; other upscale models are not supported"
            )
        descriptor.eval()
        with uploading(device, ring) as send:
            _move(descriptor.model, send, dtype)
        return descriptor


def _move(network: nn.Module, send: SendTensor, dtype: torch.dtype) -> None:
    """Send a network's weights and buffers, floats in a dtype."""
    replace_parameters(network.modules(), lambda parameter: send(parameter.data, dtype))
    for layer in network.modules():
        for name, buffer in layer._buffers.items():
            if buffer is not None:
                layer._buffers[name] = send(buffer, dtype if buffer.is_floating_point() else None)


def _tensors(path: Path) -> dict[str, Any]:
    try:
        if path.suffix.lower() in (".safetensors", ".sft"):
            tensors: dict[str, Any] = load_file(path)
            return tensors
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"'{path.name}' cannot be read: {error}") from error
    state: dict[str, Any] = load_tensors(path)
    return state
