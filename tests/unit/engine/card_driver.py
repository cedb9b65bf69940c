"""A CUDA driver for the honest card, in place of torch's bindings alone: torch's own Python runs as it does on a GPU.

So it refuses here what it refuses there, such as a device without an index. Streams and events order work as
`card_order` does, memory is counted and bounded as torch's allocator does, and a graph does again what it has captured.
Only a torch that was built without CUDA has bases that can be replaced.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import _lru_cache_wrapper
from inspect import signature
from itertools import count
from threading import RLock, Thread
from types import SimpleNamespace
from typing import Any, TypeAlias
from weakref import WeakSet

import pytest
import torch
import torch._dynamo  # It takes bindings over as it is imported, of which a driver has a few.
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from serve_app.sampling import draws
from tests.unit.engine.card_order import Memory, Order

MB, GB = 2**20, 2**30
DEFAULT = "default"
"""The stream of a thread that has chosen none."""
STREAMS = 32
"""Torch has as many streams of each priority, and then hands out the first again."""
CONTEXT_BYTES = 500 * MB
Memories: TypeAlias = Sequence[Memory]
ENDING = ("engine", "loads", "rooms", "prefetches")
"""The threads that choose a stream of the card for as long as they live."""
ENDED_S = 20.0
"""How long they may take to end, on a busy machine."""
_CUDA = 1
"""The type of a device, as torch numbers them."""
_NOT_CAPTURED = "CUDA error: operation not permitted when stream is capturing"
_REFUSED = 2
"""The mode in which torch refuses what makes the host wait, as it numbers them."""


@dataclass
class Pool:
    """Memory of graphs. users: graphs that have not been reset; kept: the most that was taken at once."""

    users: int = 0
    taken: int = 0
    kept: int = 0


@dataclass(eq=False)
class Capture:
    """Work that one stream is asked for, to be done by replays. broken: something in it cannot be captured."""

    stream: str
    pool: tuple[int, int]
    works: list[Callable[[], object]] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)
    read: WeakSet[Memory] = field(default_factory=WeakSet)
    written: WeakSet[Memory] = field(default_factory=WeakSet)
    broken: bool = False

    def add(
        self, work: Callable[[], Sequence[Tensor]], made: Sequence[Tensor | None], read: Memories, written: Memories
    ) -> None:
        """Add an operation. work: does it again; made: by what it returns, where that goes, if it is not there yet."""

        def again() -> None:
            for place, value in zip(made, work(), strict=True):
                if place is not None:
                    place.copy_(value)

        self.works.append(again)
        self.made += [place for place in made if place is not None]
        self.read.update(read)
        self.written.update(written)


class _Use:
    """A graph's use of its pool, until it goes."""

    def __init__(self, driver: Driver, pool: tuple[int, int]) -> None:
        self.pool = pool
        self._driver = driver

    def __del__(self) -> None:
        self._driver.release(0, self.pool)


class Driver:
    """The bindings, and what they are asked for.

    capability, total_bytes: of the card; taken_bytes: of it, by other processes; kernels: what torch was built for.
    ledger: what each process takes that shares the card, where it is shared, without a lock of its own: a tensor that
    goes while that is held would wait for this driver's, and its holder for that. number: the place of this one in it.
    refusal: what CUDA says instead of finding a card, as a warning; fault: what each call raises, as after a fault.
    fails_at: the number of the allocation that fails for want of memory; allocations: how many there were.
    """

    def __init__(
        self,
        order: Order,
        *,
        capability: tuple[int, int] = (8, 9),
        total_bytes: int = 24 * GB,
        taken_bytes: int = 0,
        cards: int = 1,
        kernels: str = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120",
        ledger: MutableSequence[int] | None = None,
        number: int = 0,
    ) -> None:
        self.order = order
        self.capability, self.total_bytes, self.taken_bytes, self.cards = capability, total_bytes, taken_bytes, cards
        self.kernels, self.ledger, self.number = kernels, [0] if ledger is None else ledger, number
        self.refusal: str | None = None
        self.fault: BaseException | None = None
        self.fails_at: int | None = None
        self.allocations = 0
        self.fraction = 1.0
        self.sync_debug_mode = 0
        self.asked: Counter[str] = Counter()
        self.captures: dict[str, Capture] = {}
        self.pools: dict[tuple[int, int], Pool] = {}
        self._taken = self._peak = self._kept = 0
        self.streams: Counter[int] = Counter()
        self.numbers = count(1)
        self._lock = RLock()
        order.default = DEFAULT

    # What the card is asked for by way of tensors.

    def ask(self) -> None:
        """Take in a call. Errors: the fault."""
        if self.fault is not None:
            raise self.fault

    @property
    def capture(self) -> Capture | None:
        """What the stream that this thread asks captures."""
        return self.captures.get(self.order.stream)

    def refuse_wait(self) -> None:
        """Take in what makes the host wait for an operation. Errors: as torch's, where it is to refuse that."""
        self.refuse_capture()
        if self.sync_debug_mode == _REFUSED:
            raise RuntimeError("called a synchronizing CUDA operation")

    def refuse_capture(self) -> None:
        """Take in what waits for the card. Errors: as CUDA's, where this thread's stream captures."""
        if (capture := self.capture) is not None:
            capture.broken = True
            raise torch.AcceleratorError(_NOT_CAPTURED)

    def allocate(self, memory: Memory, nbytes: int) -> None:
        """Take memory for a tensor. Errors: torch.OutOfMemoryError."""
        nbytes = -(-nbytes // 512) * 512
        with self._lock:
            self.ask()
            self.allocations += 1
            if self.room_bytes < nbytes and not self.captures:
                self._empty()
            if self.allocations == self.fails_at or self.room_bytes < nbytes:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {nbytes / MB:.2f} MiB. GPU 0 has a total capacity of "
                    f"{self.total_bytes / GB:.2f} GiB of which {self.room_bytes / MB:.2f} MiB is free."
                )
            memory.nbytes, memory.freed = nbytes, self._freed(memory.freed)
            if (capture := self.capture) is not None:
                pool = self.pools[capture.pool]
                memory.pool = capture.pool
                pool.taken += nbytes
                pool.kept = max(pool.kept, pool.taken)
            else:
                self._taken += nbytes
                self._peak, self._kept = max(self._peak, self._taken), max(self._kept, self._taken)
            self.ledger[self.number] = self.own_bytes

    @property
    def own_bytes(self) -> int:
        """What this process takes of the card."""
        return CONTEXT_BYTES + self._kept + sum(pool.kept for pool in self.pools.values())

    @property
    def others_bytes(self) -> int:
        """What other processes take of it."""
        return self.taken_bytes + sum(self.ledger) - self.ledger[self.number]

    @property
    def room_bytes(self) -> int:
        """What tensors may take, beside those that are there."""
        most = min(int(self.fraction * self.total_bytes), self.total_bytes - self.others_bytes - CONTEXT_BYTES)
        return most - self._taken - sum(pool.kept for pool in self.pools.values())

    def _freed(self, freed: Callable[[Memory], None]) -> Callable[[Memory], None]:
        def both(memory: Memory) -> None:
            with self._lock:
                if memory.pool is None:
                    self._taken -= memory.nbytes
                elif (pool := self.pools.get(memory.pool)) is not None:
                    pool.taken -= memory.nbytes
            freed(memory)

        return both

    # What torch's Python asks for.

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Stand in for torch's bindings until the patches are undone."""
        for name, binding in self._bindings().items():
            patch.setattr(torch._C, name, binding, raising=False)
        for base, methods in self._bases().items():
            for name, method in methods.items():
                patch.setattr(base, name, method, raising=False)
        # Names that torch's modules took over from the bindings as they were imported.
        taken_over: dict[Any, dict[str, Any]] = {
            torch.cuda: {
                "_exchange_device": lambda index: 0,
                "_maybe_exchange_device": lambda index: 0,
                "_cudart": SimpleNamespace(cudaMemGetInfo=self._memory_info),
                "_get_device_properties": self._properties,
                "default_generators": (torch.Generator(),),
                # Torch starts CUDA anew.
                "_initialized": False,
                "_cached_device_count": None,
                "_queued_calls": [*torch.cuda._queued_calls],
            },
            torch.cuda.graphs: {"_graph_pool_handle": self._new_pool, "_cuda_isCurrentStreamCapturing": self._captures},
            torch.cuda.memory: {"_cuda_endAllocateToPool": self._end_allocating, "_cuda_releasePool": self.release},
            torch.version: {"cuda": "13.0"},
            torch: {"Generator": _generators(torch.Generator)},
        }
        for module, names in taken_over.items():
            for name, value in names.items():
                patch.setattr(module, name, value, raising=False)

    def _bindings(self) -> dict[str, Any]:
        return {
            "_has_cuda": True,
            "_cuda_init": self.ask,
            "_cuda_isInBadFork": lambda: False,
            "_cuda_getDeviceCount": self._device_count,
            "_cuda_getArchFlags": lambda: self.kernels,
            "_cuda_getDevice": lambda: self._counted("getDevice", 0),
            "_cuda_setDevice": lambda index: None,
            "_cuda_synchronize": self._synchronize,
            "_cuda_set_sync_debug_mode": lambda mode: setattr(self, "sync_debug_mode", mode),
            "_cuda_get_sync_debug_mode": lambda: self.sync_debug_mode,
            "_cuda_getCurrentStream": lambda index: (_number(self.order.stream), index, _CUDA),
            "_cuda_getDefaultStream": lambda index: (0, index, _CUDA),
            "_cuda_setStream": self._set_stream,
            "_cuda_setMemoryFraction": self._set_fraction,
            "_cuda_getMemoryFraction": lambda index: self.fraction,
            "_cuda_emptyCache": self._empty,
            "_cuda_memoryStats": self._stats,
            "_cuda_resetPeakMemoryStats": self._reset_peak,
            "_cuda_memorySnapshot": self._snapshot,
            "_cuda_endAllocateToPool": self._end_allocating,
            "_cuda_releasePool": self.release,
        }

    def _counted(self, name: str, value: Any) -> Any:
        self.ask()
        self.asked[name] += 1
        return value

    def _device_count(self) -> int:
        if self.refusal is not None:
            warnings.warn(f"CUDA initialization: {self.refusal}", stacklevel=2)
            return 0
        return self.cards

    def _properties(self, index: int) -> Any:
        major, minor = self.capability
        return SimpleNamespace(
            name="Honest Card", major=major, minor=minor, total_memory=self.total_bytes, multi_processor_count=128
        )

    def _memory_info(self, index: int) -> tuple[int, int]:
        self.ask()
        self.ledger[self.number] = self.own_bytes
        return max(0, self.total_bytes - self.others_bytes - self.own_bytes), self.total_bytes

    def _synchronize(self) -> None:
        self.ask()
        self.refuse_capture()
        self.order.wait_for_all()

    def _set_stream(self, stream_id: int, device_index: int, device_type: int) -> None:
        self.order.ask_from_now_on(name_of(stream_id))

    def _set_fraction(self, fraction: float, index: int) -> None:
        self.fraction = fraction

    def _empty(self) -> None:
        with self._lock:
            self.ask()
            assert not self.captures, "INTERNAL ASSERT FAILED: captures_underway.empty()"
            self._kept = self._taken
            for handle, pool in [*self.pools.items()]:
                if not pool.users:
                    pool.kept = pool.taken
                    if not pool.taken:
                        del self.pools[handle]

    def _stats(self, index: int) -> dict[str, Any]:
        pools = self.pools.values()
        taken, kept = sum(pool.taken for pool in pools), sum(pool.kept for pool in pools)
        return {
            "allocated_bytes": {"all": {"current": self._taken + taken, "peak": self._peak + taken}},
            "reserved_bytes": {"all": {"current": self._kept + kept, "peak": self._kept + kept}},
        }

    def _reset_peak(self, index: int) -> None:
        self.ask()
        self._peak = self._taken

    def _snapshot(self, given: tuple[int, int, bool]) -> dict[str, Any]:
        pool = self.pools.get(given[:2], Pool())
        return {"segments": [{"total_size": pool.kept, "allocated_size": pool.taken}] if pool.kept else []}

    # Graphs.

    def _new_pool(self) -> tuple[int, int]:
        return 0, next(self.numbers)

    def _captures(self) -> bool:
        return self.capture is not None

    def begin_capture(self, handle: tuple[int, int] | None) -> Capture:
        """Have the stream that is asked capture. Errors: as torch's."""
        self.ask()
        stream = self.order.stream
        if stream == DEFAULT:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        handle = self._new_pool() if handle is None else tuple(handle)  # type: ignore[assignment]
        assert handle is not None
        with self._lock:
            pool = self.pools.get(handle)
            if pool is not None and not pool.users:
                raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
            pool = self.pools.setdefault(handle, Pool())
            pool.users += 1
            self.captures[stream] = capture = Capture(stream, handle)
        return capture

    def end_capture(self, capture: Capture) -> None:
        """End it. Errors: as CUDA's, where it is broken; then its stream is taken for one that captures."""
        if capture.broken:
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture")
        del self.captures[capture.stream]
        for tensor in capture.made:
            # Nothing has run yet.
            with torch.inference_mode():
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)

    def _end_allocating(self, index: int, handle: tuple[int, int]) -> None:
        for stream, capture in self.captures.items():
            if capture.pool == tuple(handle):
                del self.captures[stream]
                return
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    def release(self, index: int, handle: tuple[int, int]) -> None:
        """Take in that a graph uses a pool no more."""
        with self._lock:
            pool = self.pools[handle[0], handle[1]]
            pool.users -= 1
            assert pool.users >= 0, "INTERNAL ASSERT FAILED: use_count"

    # Bases of torch's classes.

    def _bases(self) -> dict[Any, dict[str, Any]]:
        return {
            torch._C._CudaStreamBase: self._stream_methods(),
            torch._C._CudaEventBase: self._event_methods(),
            torch._C._CUDAGraph: self._graph_methods(),  # type: ignore[attr-defined]
        }

    def _stream_methods(self) -> dict[str, Any]:
        driver = self

        def new(cls: Any, priority: int = 0, stream_id: int = 0, device_index: int = 0, device_type: int = 0) -> Any:
            driver.ask()
            made = object.__new__(cls)
            if not device_type:
                first = STREAMS * (1 + (min(0, priority) < 0))
                stream_id = first + driver.streams[first] % STREAMS
                driver.streams[first] += 1
            made.stream_id = made.cuda_stream = stream_id
            made.device_index, made.device_type, made.device = device_index, _CUDA, torch.device("cuda", device_index)
            # Torch has two priorities: this one, and that of all others.
            made.priority = -1 if stream_id >= 2 * STREAMS else 0
            return made

        def synchronize(stream: Any) -> None:
            driver.ask()
            driver.refuse_capture()
            driver.order.wait(driver.order.place(name_of(stream.stream_id)))

        return {
            "__new__": staticmethod(new),
            "__init__": lambda stream, *args, **kwargs: None,
            "__eq__": lambda stream, other: stream.stream_id == other.stream_id,
            "__hash__": lambda stream: hash(stream.stream_id),
            "synchronize": synchronize,
            "query": lambda stream: driver.order.seen(driver.order.place(name_of(stream.stream_id))),
        }

    def _event_methods(self) -> dict[str, Any]:
        driver = self

        def new(cls: Any, enable_timing: bool, blocking: bool, interprocess: bool, external: bool) -> Any:
            made = object.__new__(cls)
            made.timed, made.place, made.at_s = enable_timing, None, 0.0
            return made

        def record(event: Any, stream: Any) -> None:
            driver.ask()
            event.place = driver.order.place(name_of(stream.stream_id))
            event.at_s = next(driver.numbers) / 1e6

        def wait(event: Any, stream: Any) -> None:
            driver.ask()
            if event.place is not None:
                with driver.order.on(name_of(stream.stream_id)):
                    driver.order.follow(event.place)

        def query(event: Any) -> bool:
            driver.ask()
            return event.place is None or driver.order.seen(event.place)

        def synchronize(event: Any) -> None:
            driver.ask()
            driver.refuse_capture()
            if event.place is not None:
                driver.order.wait(event.place)

        def elapsed_time(event: Any, end: Any) -> float:
            if not (event.timed and end.timed):
                raise ValueError("Both events must be created with argument 'enable_timing=True'.")
            if event.place is None or end.place is None:
                raise ValueError("Both events must be recorded before calculating elapsed time.")
            return float(end.at_s - event.at_s) * 1000

        return {
            "__new__": staticmethod(new),
            "__init__": lambda event, *args, **kwargs: None,
            "record": record,
            "wait": wait,
            "query": query,
            "synchronize": synchronize,
            "elapsed_time": elapsed_time,
        }

    def _graph_methods(self) -> dict[str, Any]:
        driver = self

        def new(cls: Any, keep_graph: bool = False) -> Any:
            driver.ask()
            made = object.__new__(cls)
            made.capture = made.use = None
            return made

        def capture_begin(graph: Any, pool: Any = None, capture_error_mode: str = "global") -> None:
            graph.capture = driver.begin_capture(pool)

        def capture_end(graph: Any) -> None:
            driver.end_capture(graph.capture)
            graph.use = _Use(driver, graph.capture.pool)

        def replay(graph: Any) -> None:
            driver.ask()
            if graph.use is None:
                raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
            driver.asked["replay"] += 1
            driver.order.asked("a replay", [*graph.capture.read], [*graph.capture.written])
            with torch.inference_mode(), _disable_current_modes():
                for work in graph.capture.works:
                    work()

        def reset(graph: Any) -> None:
            graph.capture = graph.use = None

        return {
            "__new__": staticmethod(new),
            "__init__": lambda graph, *args, **kwargs: None,
            "capture_begin": capture_begin,
            "capture_end": capture_end,
            "replay": replay,
            "reset": reset,
            "pool": lambda graph: graph.use.pool,
        }


def name_of(stream_id: int) -> str:
    """Return a stream's name in the order of work."""
    return f"stream {stream_id}" if stream_id else DEFAULT


def _number(stream: str) -> int:
    return 0 if stream == DEFAULT else int(stream.removeprefix("stream "))


def _generators(real: Any) -> Any:
    """Return torch's generators, of which those of the card draw a CPU's numbers."""

    class OfCard(real):  # type: ignore[misc]
        device = torch.device("cuda", 0)

    class Kind(type):
        def __call__(cls, device: Any = "cpu") -> Any:
            return OfCard() if torch.device(device).type == "cuda" else real(device)

        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, real)

    class Generator(metaclass=Kind):
        pass

    return Generator


@contextmanager
def driven(driver: Driver) -> Iterator[None]:
    """Stand in for torch's bindings in this process, and keep nothing that production keeps of a device."""
    _forget_devices()
    with pytest.MonkeyPatch.context() as patch:
        driver.install(patch)
        try:
            yield
        finally:
            _forget_devices()


def _forget_devices() -> None:
    """Clear what production caches by device: tensors, streams and graphs. Threads that draw noise begin anew."""
    draws.drawing_threads.cache_clear()
    for name, module in [*sys.modules.items()]:
        for value in [*vars(module).values()] if name.startswith("serve_app.") else ():
            if isinstance(value, _lru_cache_wrapper) and "device" in signature(value).parameters:
                value.cache_clear()


@contextmanager
def threads_on(used: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Have this thread and all that are started use a card. Those of closed engines are waited for at the end."""
    run, started = Thread.run, list[Thread]()

    def on_card(thread: Thread) -> None:
        started.append(thread)
        with used():
            run(thread)

    with pytest.MonkeyPatch.context() as patch, used():
        patch.setattr(Thread, "run", on_card)
        try:
            yield
        finally:
            for thread in started:
                if thread.name in ENDING:
                    thread.join(ENDED_S)
                    assert not thread.is_alive(), f"{thread.name} goes on"
