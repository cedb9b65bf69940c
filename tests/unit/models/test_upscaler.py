"""Upscale models: which files are opened, what is refused, and what happens on a device that is too small."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.upscaler import Upscaler, UpscalerFile
from serve_app.recipe.recipe import Recipe
from serve_app.store.models.catalog import Catalog
from tests.parity.tiled_cases import esrgan
from tests.unit.models.sample import cpu_weights


def loaded(path: Path) -> Upscaler:
    descriptor = UpscalerFile(path).load(torch.device("cpu"), torch.float32)
    return Upscaler(descriptor)


def finished(tiles: Any) -> Tensor:
    while True:
        try:
            next(tiles)
        except StopIteration as end:
            return end.value


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    torch.save({"params": esrgan(), "more": Bomb(tmp_path / "ran")}, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=r"'a\.pth' holds more than tensors"):
        loaded(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=name):
        loaded(tmp_path / name)


def test_tensors_of_no_known_upscaler_are_an_error(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match="no upscale model of a known layout"):
        loaded(tmp_path / "a.safetensors")


def test_a_model_trained_in_a_wrapper_is_the_same_model(tmp_path: Path) -> None:
    save_file(esrgan(), tmp_path / "a.safetensors")
    torch.save({f"module.{name}": tensor for name, tensor in esrgan().items()}, tmp_path / "b.pth")
    image = torch.rand(1, 6, 5, 3)
    plain, wrapped = (finished(loaded(tmp_path / name).upscale(image)) for name in ("a.safetensors", "b.pth"))
    assert plain.shape == (1, 12, 10, 3)
    assert torch.equal(plain, wrapped)


def test_weights_hold_an_upscaler_as_any_other_model(tmp_path: Path) -> None:
    (tmp_path / "upscale_models").mkdir()
    save_file(esrgan(), tmp_path / "upscale_models" / "a.safetensors")
    weights = cpu_weights(Catalog(tmp_path))
    recipe = Recipe("upscaler", "upscale_models", "a.safetensors")
    assert weights.fits(weights.needs.of(recipe))
    assert weights.upscaler(recipe) is not None
    assert weights.resident() == ("upscaler upscale_models/a.safetensors",)


class Network:
    """What spandrel gives, made of nearest neighbours: twice as large, on a device that holds `limit` pixels."""

    scale, input_channels, device, dtype = 2, 3, torch.device("cpu"), torch.float32

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.largest = 0

    def __call__(self, tile: Tensor) -> Tensor:
        if tile.shape[-1] * tile.shape[-2] > self.limit:
            raise torch.OutOfMemoryError("the device is too small")
        self.largest = max(self.largest, *tile.shape[-2:])
        return torch.nn.functional.interpolate(tile, scale_factor=2.0)


def test_tiles_are_halved_until_they_fit_the_device() -> None:
    network = Network(300 * 40)
    image = torch.rand(1, 40, 600, 3)
    upscaled = finished(Upscaler(network).upscale(image))
    torch.testing.assert_close(upscaled, image.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert network.largest == 256


def test_a_device_that_holds_no_small_tile_either_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        finished(Upscaler(Network(100 * 100)).upscale(torch.rand(1, 200, 200, 3)))


def test_images_of_other_channels_than_the_model_takes_are_an_error() -> None:
    with pytest.raises(NodeError, match="the images have 4 channels; this upscale model takes 3"):
        finished(Upscaler(Network(10**9)).upscale(torch.rand(1, 8, 8, 4)))
