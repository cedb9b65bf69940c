"""Work in tiles through the runtime: who gets the engine in between, and what a cancelled node leaves behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.errors import DeviceMemoryError, NodeError
from serve_app.models.families import AutoencoderKL
from serve_app.models.tiling import Tiles
from serve_app.models.vae import Vae
from serve_app.recipe.recipe import Recipe
from serve_app.store.models.catalog import Catalog
from serve_app.values import Tiling
from tests.unit.engine.mixes import MAX_CELLS
from tests.unit.models.sample import cpu_weights, random_tensors

VAE = Recipe("vae", "vae", "a.safetensors")
OTHER = Recipe("vae", "vae", "b.safetensors")


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(MAX_CELLS, HostTimeline())
    yield engine
    engine.close()


@pytest.fixture
def shared(engine: Engine, tmp_path: Path) -> EngineRuntime:
    """A runtime with room for one VAE at a time."""
    tensors = random_tensors(AutoencoderKL((32, 32), 1, 4, 3, True))
    (tmp_path / "vae").mkdir()
    for name in (VAE.name, OTHER.name):
        save_file(tensors, tmp_path / "vae" / name)
    size = sum(tensor.numel() for tensor in tensors.values()) * 4
    return EngineRuntime(engine, cpu_weights(Catalog(tmp_path), budget_bytes=size))


def ignore(done: int, of: int) -> None: ...


def counting(model: Vae, count: int, name: str, order: list[str]) -> Tiles:
    for done in range(1, count + 1):
        order.append(name)
        yield done, count
    return torch.tensor(float(count))


async def test_models_of_texts_and_images_run_on_the_side_stream(
    engine: Engine, shared: EngineRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    call = engine.call

    def noted(work: Any, *, side_stream: bool = False, uses: Any = None) -> Any:
        asked.append(side_stream)
        return call(work, side_stream=side_stream, uses=uses)

    monkeypatch.setattr(engine, "call", noted)
    assert await shared.use(VAE, shared.weights.vae, lambda model: "done") == "done"
    await shared.use_tiled(VAE, shared.weights.vae, partial(counting, count=2, name="a", order=[]), ignore)
    # The work, the tiles and each of these.
    assert asked == [True] * 5


async def test_two_nodes_take_turns_tile_by_tile(engine: Engine, shared: EngineRuntime) -> None:
    order: list[str] = []

    def until_both_have_begun(model: Vae, name: str) -> Tiles:
        for done in range(1, 100_000):
            order.append(name)
            # However busy the machine is, the other's model is loaded before this one ends by itself.
            time.sleep(0.001)
            yield done, done
            if len(set(order)) == 2:
                break
        return torch.tensor(len(order))

    work = [
        shared.use_tiled(VAE, shared.weights.vae, partial(until_both_have_begun, name=name), ignore)
        for name in ("a", "b")
    ]
    await asyncio.gather(*work)
    # The first went on until the other had had a turn, without having to end for it.
    assert set(order) == {"a", "b"}
    assert len(order) < 100_000


async def test_a_call_that_comes_meanwhile_waits_for_one_tile_at_most(engine: Engine, shared: EngineRuntime) -> None:
    order: list[str] = []

    def progress(done: int, of: int) -> None:
        if done == 2:
            engine.call(lambda: order.append("call"))

    await shared.use_tiled(VAE, shared.weights.vae, partial(counting, count=4, name="tile", order=order), progress)
    assert order == ["tile", "tile", "call", "tile", "tile"]


async def test_a_cancelled_node_releases_its_model_after_the_tile_in_progress(shared: EngineRuntime) -> None:
    reached = asyncio.Event()

    def progress(done: int, of: int) -> None:
        reached.set()

    latents = torch.zeros(1, 4, 64, 64)
    node = asyncio.create_task(shared.bind(progress).decode(VAE, latents, Tiling(8, 0)))
    await reached.wait()
    node.cancel()
    with pytest.raises(asyncio.CancelledError):
        await node
    images = await asyncio.wait_for(shared.bind(ignore).decode(OTHER, latents[..., :4, :4]), 30)
    assert images.shape == (1, 8, 8, 3)
    assert shared.resident() == ("vae vae/b.safetensors",)


async def test_an_impossible_tiling_is_the_nodes_error_and_releases_the_model(shared: EngineRuntime) -> None:
    runtime = shared.bind(ignore)
    with pytest.raises(NodeError, match="tiles of 4 overlap by 8"):
        await runtime.encode(VAE, torch.zeros(1, 32, 32, 3), Tiling(8, 8))
    latents = await asyncio.wait_for(runtime.encode(OTHER, torch.zeros(1, 32, 32, 3)), 30)
    assert latents.shape == (1, 4, 16, 16)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")


async def test_work_that_runs_out_of_memory_is_done_again_without_idle_weights(shared: EngineRuntime) -> None:
    shared.weights.residency.budget_bytes *= 2
    await shared.bind(ignore).encode(OTHER, torch.zeros(1, 32, 32, 3))
    tried: list[tuple[str, ...]] = []

    def work(model: Vae) -> str:
        tried.append(shared.resident())
        return "done" if len(shared.resident()) == 1 else str(out_of_memory())

    def together(model: Vae, questions: list[int]) -> list[str]:
        return [work(model) for _ in questions]

    assert await shared.use(VAE, shared.weights.vae, work) == "done"
    assert tried == [("vae vae/b.safetensors", "vae vae/a.safetensors"), ("vae vae/a.safetensors",)]
    await shared.bind(ignore).encode(OTHER, torch.zeros(1, 32, 32, 3))
    assert await shared.use_together(VAE, shared.weights.vae, together, 1, "key", most=1) == "done"
    assert len(tried) == 4


async def test_work_that_does_not_fit_without_idle_weights_fails_with_figures(shared: EngineRuntime) -> None:
    with pytest.raises(DeviceMemoryError, match="this does not fit the device's memory by itself: CUDA out of memory"):
        await shared.use(VAE, shared.weights.vae, lambda model: out_of_memory())
