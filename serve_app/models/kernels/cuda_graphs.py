"""Recordings as CUDA graphs. One runs at a time, so all of a process share one pool of memory: that of the largest.

Source: the CUDA C++ Programming Guide, CUDA Graphs; torch.cuda.CUDAGraph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from serve_app.models.forward import ROW_BUCKETS, Replays

KEPT_SHARE = 8
"""Inputs and outputs of recordings take one part in so many of what this process may take of a card, at most."""


class GraphRecorder:
    """Records what a device is asked for on its current stream, as graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: Any = None

    def record(self, call: Callable[[], Sequence[Tensor]]) -> CudaGraph:
        """Return a call recorded, which the device does not do yet."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        current: Any = torch.cuda.current_stream(self._device)
        if self._stream is None:
            # What is replayed has the priority of the stream on which it was recorded.
            self._stream = torch.cuda.Stream(self._device, priority=current.priority)  # type: ignore[no-untyped-call]
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            # Other threads go on using the device: functions of node packs, uploads.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                outputs = call()
            except BaseException:
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(stream)
        return CudaGraph(graph, outputs)

    def idle_bytes(self) -> int:
        """Return what the pool has of the device's memory beside the tensors that are alive in it."""
        if self._pool is None:
            return 0
        segments: Any = torch.cuda.memory_snapshot(self._pool, include_traces=False)  # type: ignore[no-untyped-call]
        return sum(int(segment["total_size"]) - int(segment["allocated_size"]) for segment in segments)

    def most_bytes(self) -> int:
        total: int = torch.cuda.get_device_properties(self._device).total_memory
        return int(total * torch.cuda.get_per_process_memory_fraction(self._device)) // KEPT_SHARE


class CudaGraph:
    """A call as a graph. outputs: where a replay leaves what it gives."""

    def __init__(self, graph: Any, outputs: Sequence[Tensor]) -> None:
        self._graph = graph
        self.outputs = outputs

    def replay(self) -> None:
        self._graph.replay()


@cache
def replays_of(device: torch.device) -> Replays:
    """Return the replays of all networks on a device: of graphs on a GPU, of none elsewhere, where filling up costs."""
    return Replays(GraphRecorder(device), ROW_BUCKETS) if device.type == "cuda" else Replays()
