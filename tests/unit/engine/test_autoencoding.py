"""VAEs on a device that runs out of memory: smaller slices, then without idle weights, then tiles; and what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.engine import autoencoding
from serve_app.engine.autoencoding import PIXEL_BYTES, Autoencoding
from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.errors import DeviceMemoryError
from serve_app.models.vae import Vae, Work
from serve_app.recipe.recipe import Recipe
from serve_app.store.models.catalog import Catalog
from serve_app.values import Tiling
from tests.unit.engine.allocator import Allocator, IdleWeights
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import SAMPLE, cpu_weights, random_tensors

VAE = Recipe("vae", "vae", "a.safetensors")
SHIPPED = dict(autoencoding.TILES)
SIDE = 64
PIXELS = SIDE * SIDE
"""Of an image here."""
LARGE, SMALL = Tiling(32, 8), Tiling(16, 0)
"""The tiles here, which take at most a quarter and a sixteenth of an image's pixels in every pass."""
LATENTS = torch.randn(4, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(1))
IMAGES = torch.rand(4, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoding, "TILES", {"decode": (LARGE, SMALL), "encode": (LARGE, SMALL)})


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root: Path = tmp_path_factory.mktemp("models")
    (root / "vae").mkdir()
    save_file(random_tensors(SAMPLE[1]), root / "vae" / VAE.name)
    return Catalog(root)


@pytest.fixture(scope="module")
def vae(catalog: Catalog) -> Vae:
    """A VAE on a device with room for everything."""
    return cpu_weights(catalog).vae(VAE)


class OnAllocator(Vae):
    """A VAE that takes a byte of an allocator for every pixel."""

    def __init__(self, vae: Vae, allocator: Allocator) -> None:
        super().__init__(vae.family, vae.network)
        self.allocator = allocator

    def _decoded(self, latents: Tensor) -> Tensor:
        with self.allocator.using(latents[:, 0].numel() * 64):
            return super()._decoded(latents)

    def _encoded(self, pixels: Tensor) -> Tensor:
        with self.allocator.using(pixels[:, 0].numel()):
            return super()._encoded(pixels)


def given(work: Work) -> Tensor:
    return LATENTS if work == "decode" else IMAGES


def one_by_one(vae: Vae, work: Work) -> Tensor:
    return torch.cat([getattr(vae, work)(one) for one in torch.split(given(work), 1)])


def in_tiles(vae: Vae, work: Work, tiling: Tiling) -> Tensor:
    tiles = getattr(vae, f"{work}_tiled")(given(work)[:1], tiling)
    while True:
        try:
            next(tiles)
        except StopIteration as end:
            made: Tensor = end.value
            return made


def test_the_tiles_are_comfyuis_where_it_runs_out_of_memory_and_smaller_ones_after_them() -> None:
    """Source: 0.33's comfy/sd.py, decode_tiled_ and encode_tiled_; tiles of the first are of 64 latents, 16 shared."""
    tiles = {work: found[0] for work, found in SHIPPED.items()}
    assert tiles == {"decode": Tiling(64 * 8, 16 * 8), "encode": Tiling(512, 64)}
    for found in SHIPPED.values():
        assert [tiling.size for tiling in found] == sorted({tiling.size for tiling in found}, reverse=True)


@pytest.mark.parametrize("work", ["decode", "encode"])
@pytest.mark.parametrize(("room", "failures"), [(1, 2), (2, 1), (3, 1), (4, 0)])
def test_slices_of_a_batch_become_smaller_once_and_give_the_same_bits(
    vae: Vae, work: Work, room: int, failures: int
) -> None:
    allocator = Allocator(room * PIXELS)
    model, made = OnAllocator(vae, allocator), Autoencoding(IdleWeights(allocator, []))
    expected = one_by_one(vae, work)
    for _ in range(3):
        assert torch.allclose(made.whole(VAE, model, work, given(work)), expected, atol=1e-5)
    assert made.failures == len(allocator.failures) == failures
    if room == 1:
        assert torch.equal(made.whole(VAE, model, work, given(work)), expected)


@pytest.mark.parametrize("work", ["decode", "encode"])
@pytest.mark.parametrize("room", range(1, 5))
def test_a_device_that_reports_free_memory_never_fails_for_a_batch(vae: Vae, work: Work, room: int) -> None:
    allocator = Allocator(room * PIXELS * PIXEL_BYTES)
    model, made = OnAllocator(vae, allocator), Autoencoding(IdleWeights(allocator, []), allocator)
    assert torch.allclose(made.whole(VAE, model, work, given(work)), one_by_one(vae, work), atol=1e-5)
    assert made.failures == 0
    assert allocator.taken[0] == room * PIXELS


@pytest.mark.parametrize("work", ["decode", "encode"])
def test_idle_weights_go_before_an_image_is_cut_in_tiles(vae: Vae, work: Work) -> None:
    allocator = Allocator(PIXELS)
    idle = IdleWeights(allocator, [1])
    model, made = OnAllocator(vae, allocator), Autoencoding(idle)
    assert torch.equal(made.whole(VAE, model, work, given(work)[:1]), one_by_one(vae, work)[:1])
    assert (idle.asked, made.failures) == ([None], 1)


async def decoded(shared: EngineRuntime, work: Work, count: int = 1) -> list[Tensor]:
    """Return what as many nodes at once get, of an image each."""
    runtime = shared.bind(lambda done, of: None)
    one = given(work)[:1]
    return await asyncio.gather(*(getattr(runtime, work)(VAE, one) for _ in range(count)))


@pytest.fixture
def small(catalog: Catalog, vae: Vae, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[EngineRuntime, Allocator]]:
    """A runtime whose VAEs run on an allocator of a byte a pixel, with room for half an image."""
    allocator = Allocator(PIXELS // 2)
    weights = cpu_weights(catalog)
    model = OnAllocator(vae, allocator)
    monkeypatch.setattr(weights, "vae", lambda recipe, hold: model)
    engine = Engine(MAX_CELLS, HostTimeline())
    yield EngineRuntime(engine, weights), allocator
    engine.close()


@pytest.mark.parametrize("work", ["decode", "encode"])
async def test_an_image_that_does_not_fit_is_cut_in_tiles_and_the_next_ones_at_once(
    small: tuple[EngineRuntime, Allocator], vae: Vae, work: Work
) -> None:
    shared, allocator = small
    expected = in_tiles(vae, work, LARGE)
    for count in (1, 1, 3):
        for made in await decoded(shared, work, count):
            assert torch.equal(made, expected)
    assert allocator.failures == [PIXELS]
    assert (shared.autoencoding.failures, shared.autoencoding.in_tiles) == (1, 1 + 1 + 3)


async def test_tiles_that_do_not_fit_become_smaller_once(small: tuple[EngineRuntime, Allocator], vae: Vae) -> None:
    shared, allocator = small
    allocator.planned_bytes = PIXELS // 8
    expected = in_tiles(vae, "decode", SMALL)
    for _ in range(3):
        assert torch.equal((await decoded(shared, "decode"))[0], expected)
    assert allocator.failures == [PIXELS, PIXELS // 4]


async def test_what_does_not_fit_in_the_smallest_tiles_fails_with_what_it_needed(
    small: tuple[EngineRuntime, Allocator],
) -> None:
    shared, allocator = small
    allocator.planned_bytes = 16
    with pytest.raises(
        DeviceMemoryError, match=r"tiles of 16×16 do not fit .* Tried to allocate 256 bytes, of which 16"
    ):
        await decoded(shared, "decode")


async def test_an_image_is_tried_as_one_again_after_many_in_tiles(
    small: tuple[EngineRuntime, Allocator], vae: Vae, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoding, "TRIED_AGAIN", 5)
    shared, allocator = small
    for _ in range(5):
        await decoded(shared, "decode")
    assert allocator.failures == [PIXELS]
    allocator.planned_bytes = PIXELS
    assert torch.equal((await decoded(shared, "decode"))[0], one_by_one(vae, "decode")[:1])
    assert allocator.failures == [PIXELS]


async def test_the_client_hears_that_an_image_was_cut_in_tiles(small: tuple[EngineRuntime, Allocator]) -> None:
    shared, _ = small
    heard: list[str] = []
    await shared.bind(lambda done, of: None, remark=heard.append).decode(VAE, LATENTS[:1])
    assert heard == ["'a.safetensors' decodes in tiles here: the device has not the memory for a whole image"]
