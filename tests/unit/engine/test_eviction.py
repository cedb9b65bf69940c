"""Weights are freed by whoever closes the holds on them, whoever keeps references: models, errors, frames."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from serve_app.engine.engine import Engine
from serve_app.engine.node_runtime import NodeRuntime
from serve_app.engine.runtime import EngineRuntime
from serve_app.models.network import LoadedNetwork
from serve_app.models.weights.deallocation import tensors_of
from serve_app.models.weights.weights import Weights
from serve_app.store.models.catalog import Catalog
from serve_app.values import Tiling
from tests.unit.engine.test_runtime import catalog, ignore, recipe, request
from tests.unit.models.sample import cpu_weights

__all__ = ["catalog"]

CONDITIONING = [(torch.zeros(1, 77, 64), {})]


def suspended(*kept: Any) -> Iterator[None]:
    """Return a generator whose frame keeps something."""

    def frame() -> Iterator[None]:
        yield
        assert kept

    generator = frame()
    next(generator)
    return generator


def storages(tensors: list[torch.Tensor]) -> list[StorageWeakRef]:
    return [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors if not tensor.is_mkldnn]


@pytest.mark.parametrize("fails", [True, False])
async def test_eviction_frees_weights_though_references_to_models_errors_and_frames_remain(
    engine: Engine, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    weights = cpu_weights(catalog)
    runtime, kept = EngineRuntime(engine, weights), list[Any]()
    answer = LoadedNetwork.answer

    def watched(network: LoadedNetwork, rows: Any) -> Any:
        tensors = tensors_of(network.module.modules())
        kept.extend([network, network.module, rows, tensors, suspended(network, tensors), sys._getframe()])
        if fails:
            raise ZeroDivisionError
        return answer(network, rows)

    monkeypatch.setattr(LoadedNetwork, "answer", watched)
    run = runtime.bind(ignore).sample(request(CONDITIONING, steps=1))
    [outcome] = await asyncio.gather(run, return_exceptions=True)
    assert isinstance(outcome, ZeroDivisionError) == fails
    tensors = kept[3]
    places = storages(tensors)
    assert places
    assert weights.resident_bytes > 0
    await runtime.release()
    assert (weights.resident(), weights.resident_bytes) == ((), 0)
    assert not any(tensor.numel() for tensor in tensors)
    assert all(place.expired() for place in places)


async def test_weights_that_a_run_uses_are_not_evicted_before_its_end(engine: Engine, catalog: Catalog) -> None:
    weights = cpu_weights(catalog)
    runtime, steps = EngineRuntime(engine, weights), asyncio.Semaphore(0)
    endless = asyncio.create_task(
        runtime.bind(lambda done, of: steps.release()).sample(request(CONDITIONING, steps=100_000))
    )
    await steps.acquire()
    await runtime.release()
    assert len(weights.resident()) == 1
    await asyncio.wait_for(steps.acquire(), 30)
    endless.cancel()
    await asyncio.gather(endless, return_exceptions=True)
    await nothing_is_in_use(runtime)


def sampled(runtime: NodeRuntime) -> Awaitable[object]:
    return runtime.sample(request(CONDITIONING, steps=20))


def encoded(runtime: NodeRuntime) -> Awaitable[object]:
    return runtime.encode_text(recipe("clip"), "a fox")


def decoded(runtime: NodeRuntime) -> Awaitable[object]:
    return runtime.decode(recipe("vae"), torch.zeros(1, 4, 4, 4))


def tiled(runtime: NodeRuntime) -> Awaitable[object]:
    return runtime.decode(recipe("vae"), torch.zeros(1, 4, 24, 24), Tiling(64, 16))


@pytest.mark.parametrize("work", [sampled, encoded, decoded, tiled])
@pytest.mark.parametrize("strict", [False, True])
async def test_work_that_is_cancelled_in_any_state_leaves_no_hold_open(
    engine: Engine, catalog: Catalog, work: Callable[[NodeRuntime], Awaitable[object]], strict: bool
) -> None:
    weights = cpu_weights(catalog)
    runtime = EngineRuntime(engine, weights)
    for delay_s in (0.0, 0.001, 0.003, 0.01, 0.02, 0.04, 0.08):
        tasks = [asyncio.ensure_future(work(runtime.bind(ignore, strict=strict))) for _ in range(2)]
        await asyncio.sleep(delay_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await nothing_is_in_use(runtime)


async def nothing_is_in_use(runtime: EngineRuntime) -> None:
    """Wait until no weights are in use, nor room for any."""
    weights: Weights = runtime.weights
    async with asyncio.timeout(30):
        while weights.resident() or weights.reserved_bytes:
            await runtime.release()
            await asyncio.sleep(0.01)
