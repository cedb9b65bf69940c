"""Weights made ready beside the engine: forwards go on meanwhile, and nobody is given another's room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Event, current_thread
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serve_app.engine import loads
from serve_app.engine.engine import Engine
from serve_app.engine.loads import Loads
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.errors import ModelFileError, UnavailableError
from serve_app.models.weights.recipes import Need
from serve_app.models.weights.residency import Hold, ResidentWeights
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Lora
from serve_app.sampling.request import SamplingRequest
from serve_app.store.models.catalog import Catalog
from tests.unit.engine.test_runtime import ONE, TEXT, UNET, VAE, ignore, recipe, request
from tests.unit.models.sample import cpu_weights, random_tensors

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root: Path = tmp_path_factory.mktemp("models")
    (root / "checkpoints").mkdir()
    for name in NAMES:
        tensors = random_tensors(UNET) | random_tensors(VAE) | random_tensors(TEXT)
        save_file(tensors, root / "checkpoints" / f"{name}.safetensors")
    (root / "loras").mkdir()
    query = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    style = {f"{query}.lora_up.weight": torch.ones(32, 4), f"{query}.lora_down.weight": torch.ones(4, 32) / 100}
    save_file(style, root / "loras" / "style.safetensors")
    return Catalog(root)


class Slow(Weights):
    """Weights whose loads wait until they may go on. under_way: set in each; threads: where each was."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.go, self.under_way = Event(), Event()
        self.go.set()
        self.threads: list[str] = []
        loader: Any = self.loader
        load, lora_set = loader.load, loader.lora_set

        def slow(*args: Any) -> Any:
            self.threads.append(current_thread().name)
            self.under_way.set()
            assert self.go.wait(30)
            return load(*args)

        def of_set(*args: Any) -> Any:
            self.threads.append(current_thread().name)
            return lora_set(*args)

        loader.load, loader.lora_set = slow, of_set


def slow(catalog: Catalog, budget_bytes: int = 10**9) -> Slow:
    weights = cpu_weights(catalog, budget_bytes=budget_bytes, kind=Slow)
    assert isinstance(weights, Slow)
    return weights


def sampled(name: str, **changes: Any) -> SamplingRequest:
    made: SamplingRequest = request([(torch.zeros(1, 77, 64), {})], name, **changes)
    return made


async def reached(event: Event) -> None:
    assert await asyncio.to_thread(event.wait, 30)


@asynccontextmanager
async def stepping(shared: EngineRuntime, weights: Slow) -> AsyncIterator[asyncio.Semaphore]:
    """Sample with "a" meanwhile, and have all other loads wait; give what is released at each step."""
    steps = asyncio.Semaphore(0)
    endless = asyncio.create_task(shared.bind(lambda done, of: steps.release()).sample(sampled("a", steps=100_000)))
    await steps.acquire()
    weights.go.clear()
    weights.under_way.clear()
    yield steps
    endless.cancel()


async def test_while_a_model_loads_forwards_of_others_go_on_and_so_does_work_that_begins(
    engine: Engine, catalog: Catalog
) -> None:
    weights = slow(catalog)
    shared = EngineRuntime(engine, weights)
    async with stepping(shared, weights) as steps:
        waiting = asyncio.create_task(shared.bind(ignore).sample(sampled("b")))
        await reached(weights.under_way)
        for _ in range(20):
            await asyncio.wait_for(steps.acquire(), 30)
        # A job of what is there is not only begun but done meanwhile.
        assert (await asyncio.wait_for(shared.bind(ignore).sample(sampled("a")), 30)).latents.shape == (1, 4, 4, 4)
        assert not waiting.done()
        weights.go.set()
        assert (await asyncio.wait_for(waiting, 30)).latents.shape == (1, 4, 4, 4)


async def test_nothing_is_loaded_in_the_engines_thread_and_what_loads_keeps_no_team(
    engine: Engine, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(loads, "end_team", lambda: ended.append(current_thread().name))
    weights = slow(catalog)
    runtime = EngineRuntime(engine, weights).bind(ignore)
    conditioning = await runtime.encode_text(recipe("clip"), "a fox")
    images = await runtime.decode(recipe("vae"), (await runtime.sample(request(conditioning))).latents)
    await runtime.encode(recipe("vae", "b"), images)
    styled = recipe("backbone").with_patch(Lora("style.safetensors", 0.8))
    await runtime.sample(request(conditioning, backbone=styled))
    assert weights.threads == ["loads"] * 5
    assert ended.count("loads") >= 4, "after each load but maybe the last, whose end is told first"


async def test_what_is_granted_room_is_not_displaced_while_it_waits_to_be_loaded(
    engine: Engine, catalog: Catalog
) -> None:
    """Three models with room for two: the third gets its room once one of the others has been used."""
    weights = slow(catalog, 2 * ONE)
    shared = EngineRuntime(engine, weights)
    weights.go.clear()
    jobs = [asyncio.create_task(shared.bind(ignore).sample(sampled(name))) for name in NAMES]
    await reached(weights.under_way)
    weights.go.set()
    assert len(await asyncio.wait_for(asyncio.gather(*jobs), 60)) == 3
    assert weights.counters.loads == 3
    assert weights.resident_bytes <= 2 * ONE


async def test_a_clock_stands_still_for_who_waits_for_a_load_and_for_nobody_else(
    engine: Engine, catalog: Catalog
) -> None:
    waits: list[str] = []

    def clock(name: str) -> Callable[[], Any]:
        @contextmanager
        def loading() -> Iterator[None]:
            waits.append(name)
            yield

        return loading

    shared = EngineRuntime(engine, slow(catalog))
    for name in ("first", "second"):
        await shared.bind(ignore, loading=clock(name)).sample(sampled("a"))
    assert waits == ["first"]


async def test_a_load_that_is_no_longer_wanted_gives_its_room_back(engine: Engine, catalog: Catalog) -> None:
    weights = slow(catalog, ONE)
    shared = EngineRuntime(engine, weights)
    weights.go.clear()
    first, second = (asyncio.create_task(shared.bind(ignore).sample(sampled(name))) for name in "ab")
    await reached(weights.under_way)
    first.cancel()
    weights.go.set()
    assert (await asyncio.wait_for(second, 30)).latents.shape == (1, 4, 4, 4)
    assert weights.resident() == ("backbone checkpoints/b.safetensors",)


async def test_after_an_error_of_cuda_in_a_load_the_engine_closes(catalog: Catalog) -> None:
    class Broken(Weights):
        def _load(self, *args: Any) -> ResidentWeights:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine = Engine(1024, HostTimeline())
    shared = EngineRuntime(engine, cpu_weights(catalog, kind=Broken))
    with pytest.raises((RuntimeError, UnavailableError)):
        await shared.bind(ignore).sample(sampled("a"))
    async with asyncio.timeout(30):
        while engine.alive:
            await asyncio.sleep(0.001)


def test_room_is_given_in_order_of_arrival_and_who_leaves_lets_the_others_through(catalog: Catalog) -> None:
    weights = cpu_weights(catalog, budget_bytes=ONE)
    loads = Loads(weights, lambda error: None, HostTimeline())
    asked: list[str] = []

    def room(name: str) -> Future[Hold]:
        def need() -> Need:
            asked.append(name)
            return weights.needs.of(recipe("backbone", name))

        return loads.room(need)

    first = room("a").result(30)
    weights.load(first)
    second, third = room("b"), room("a")
    # What is resident would fit at once, and does not go before what has waited for longer.
    with pytest.raises(TimeoutError):
        third.result(0.2)
    # What waits is asked once what it needs, however often it is seen whether there is room.
    assert asked == ["a", "b"]
    assert second.cancel()
    assert weights.is_loaded(third.result(30))


def test_what_is_loaded_is_kept_by_who_asked_for_it_alone_once_that_is_told(catalog: Catalog) -> None:
    weights = cpu_weights(catalog)
    loads = Loads(weights, lambda error: None, HostTimeline())
    hold = loads.room(lambda: weights.needs.of(recipe("backbone", "a"))).result(30)
    freed: Future[int] = Future()

    def told(loaded: Future[None]) -> None:
        hold.close()
        freed.set_result(weights.release())

    loads.load(hold).add_done_callback(told)
    assert freed.result(30) > 0


def test_the_threads_of_loads_end_with_them(catalog: Catalog) -> None:
    before = set(enumerate_threads())
    loads = Loads(cpu_weights(catalog), lambda error: None, HostTimeline())
    own = set(enumerate_threads()) - before
    assert {thread.name for thread in own} == {"rooms", "loads", "prefetches"}
    del loads
    for thread in own:
        thread.join(30)
    assert not any(thread.is_alive() for thread in own)


def test_an_invalid_request_for_memory_fails_alone(catalog: Catalog) -> None:
    weights = cpu_weights(catalog)
    loads = Loads(weights, lambda error: None, HostTimeline())

    def missing() -> Need:
        return weights.needs.of(Recipe("backbone", "checkpoints", "missing.safetensors"))

    first, second = loads.room(missing), loads.room(lambda: weights.needs.of(recipe("backbone")))
    with pytest.raises(ModelFileError, match="missing"):
        first.result(30)
    assert second.result(30).need.nbytes


def nothing(name: str) -> bool:
    return False


async def test_what_is_loaded_ahead_is_there_as_its_job_begins_and_forwards_go_on_meanwhile(
    engine: Engine, catalog: Catalog
) -> None:
    weights = slow(catalog)
    shared = EngineRuntime(engine, weights)
    async with stepping(shared, weights) as steps:
        ahead = asyncio.create_task(shared.prefetch(recipe("backbone", "b"), nothing))
        await reached(weights.under_way)
        for _ in range(20):
            await asyncio.wait_for(steps.acquire(), 30)
        assert not ahead.done()
        weights.go.set()
        assert await ahead
        loads = weights.counters.loads
        waits: list[str] = []

        @contextmanager
        def loading() -> Iterator[None]:
            waits.append("b")
            yield

        await asyncio.wait_for(shared.bind(ignore, loading=loading).sample(sampled("b")), 30)
        assert (weights.counters.loads, waits) == (loads, [])
        assert (shared.prefetched.begun, shared.prefetched.used, shared.prefetched.dropped) == (1, 1, 0)
        await shared.bind(ignore).sample(sampled("b"))
        assert shared.prefetched.used == 1


async def test_what_is_loaded_ahead_takes_no_room_from_what_is_in_use_or_spared(
    engine: Engine, catalog: Catalog
) -> None:
    weights = slow(catalog, 2 * ONE)
    shared = EngineRuntime(engine, weights)
    a, b = (f"backbone checkpoints/{name}.safetensors" for name in "ab")
    for name in "ab":
        await shared.warm([recipe("backbone", name)])
    in_use = weights.hold(weights.needs.of(recipe("backbone", "a")))
    assert not await shared.prefetch(recipe("backbone", "c"), lambda name: name == b)
    assert set(weights.resident()) == {a, b}
    assert (shared.prefetched.begun, shared.prefetched.dropped) == (0, 1)
    assert in_use is not None
    in_use.close()
    # The least recently used would go first, but that is spared.
    assert weights.resident() == (a, b)
    assert await shared.prefetch(recipe("backbone", "c"), lambda name: name == a)
    assert set(weights.resident()) == {a, "backbone checkpoints/c.safetensors"}
    assert weights.resident_bytes <= 2 * ONE
    # And what nobody has used by now makes way for what somebody does ask for.
    await shared.bind(ignore).sample(sampled("b"))
    assert weights.resident_bytes <= 2 * ONE


async def test_nothing_is_prefetched_while_a_job_waits_for_a_load(engine: Engine, catalog: Catalog) -> None:
    weights = slow(catalog)
    shared = EngineRuntime(engine, weights)
    weights.go.clear()
    asked = asyncio.create_task(shared.warm([recipe("backbone", "a")]))
    await reached(weights.under_way)
    ahead = [asyncio.create_task(shared.prefetch(recipe("backbone", name), nothing)) for name in "bc"]
    await asyncio.sleep(0.2)
    ahead[0].cancel()
    weights.go.set()
    await asked
    assert await ahead[1]
    assert weights.resident() == tuple(f"backbone checkpoints/{name}.safetensors" for name in "ac")
    assert weights.threads == ["loads", "prefetches"]
    assert shared.prefetched.dropped == 1
