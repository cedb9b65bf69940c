"""Records network calls as CUDA graphs. One graph runs at a time, so all graphs of a process share one memory pool.

Source: the CUDA C++ Programming Guide, CUDA Graphs; torch.cuda.CUDAGraph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from serve_app.models.forward import ROW_BUCKETS, Replays

KEPT_SHARE = 8
"""Inputs and outputs of recordings take at most an eighth of the process's GPU memory."""


class GraphRecorder:
    """Captures the work of its device's current stream as CUDA graphs. device: with its index."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: Any = None
        self._graphs: WeakSet[CudaGraph] = WeakSet()

    def record(self, call: Callable[[], Sequence[Tensor]]) -> CudaGraph:
        """Capture a call as a graph, without running it."""
        if not self._recorded:
            # A pool ends with its last graph: torch gives its memory back, and asserts that nothing captures into it.
            self._pool = torch.cuda.graph_pool_handle()
        current: Any = torch.cuda.current_stream(self._device)
        if self._stream is None:
            # A replay has the priority of the stream on which it was captured.
            self._stream = torch.cuda.Stream(self._device, priority=current.priority)  # type: ignore[no-untyped-call]
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            try:
                # Other threads go on using the device: functions of node packs, uploads.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                outputs = call()
                graph.capture_end()
            except BaseException:
                self._abandon(graph)
                raise
        current.wait_stream(stream)
        recorded = CudaGraph(graph, outputs)
        self._graphs.add(recorded)
        return recorded

    def _abandon(self, graph: Any) -> None:
        """End a capture that has failed.

        Where CUDA refuses to end it, torch goes on taking the stream's memory from the pool, frees no memory that other
        streams use, and asserts at the next `empty_cache`; so it is made to end by hand.
        """
        with suppress(RuntimeError):
            graph.capture_end()
        with suppress(RuntimeError):  # raised if `capture_end` has done it
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)
            torch._C._cuda_releasePool(self._device.index, self._pool)

    def idle_bytes(self) -> int:
        """Return the pool's bytes of device memory beyond the live tensors in it; 0 once its last graph is reset."""
        if not self._recorded:
            return 0
        segments: Any = torch.cuda.memory_snapshot(self._pool, include_traces=False)  # type: ignore[no-untyped-call]
        return sum(int(segment["total_size"]) - int(segment["allocated_size"]) for segment in segments)

    @property
    def _recorded(self) -> bool:
        """Whether a graph is there that can be replayed."""
        return any(graph.alive for graph in self._graphs)

    def most_bytes(self) -> int:
        total: int = torch.cuda.get_device_properties(self._device).total_memory
        return int(total * torch.cuda.get_per_process_memory_fraction(self._device)) // KEPT_SHARE


class CudaGraph:
    """A captured call. outputs: the tensors that a replay writes. alive: whether it can be replayed."""

    def __init__(self, graph: Any, outputs: Sequence[Tensor]) -> None:
        self._graph = graph
        self.outputs: Sequence[Tensor] = outputs
        self.alive = True

    def replay(self) -> None:
        self._graph.replay()

    def reset(self) -> None:
        self._graph.reset()
        self.outputs = ()
        self.alive = False


@cache
def replays_of(device: torch.device) -> Replays:
    """Return the replays of all networks on a device: CUDA graphs on a GPU; elsewhere none, and no padding.

    Errors: ValueError for a GPU without its index, which would have replays of its own.
    """
    if device.type == "cuda" and device.index is None:
        raise ValueError(f"the device is {device}, and replays are of one with its index, such as cuda:0")
    return Replays(GraphRecorder(device), ROW_BUCKETS) if device.type == "cuda" else Replays()
