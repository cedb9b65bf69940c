"""Records network calls as CUDA graphs. One graph runs at a time, so all graphs of a process share one memory pool.

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
"""Inputs and outputs of recordings take at most an eighth of the process's GPU memory."""


class GraphRecorder:
    """Captures the work of its device's current stream as CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: Any = None

    def record(self, call: Callable[[], Sequence[Tensor]]) -> CudaGraph:
        """Capture a call as a graph, without running it."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        current: Any = torch.cuda.current_stream(self._device)
        if self._stream is None:
            # A replay has the priority of the stream on which it was captured.
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
        """Return the pool's bytes of device memory beyond the live tensors in it."""
        if self._pool is None:
            return 0
        segments: Any = torch.cuda.memory_snapshot(self._pool, include_traces=False)  # type: ignore[no-untyped-call]
        return sum(int(segment["total_size"]) - int(segment["allocated_size"]) for segment in segments)

    def most_bytes(self) -> int:
        total: int = torch.cuda.get_device_properties(self._device).total_memory
        return int(total * torch.cuda.get_per_process_memory_fraction(self._device)) // KEPT_SHARE


class CudaGraph:
    """A captured call. outputs: the tensors that a replay writes."""

    def __init__(self, graph: Any, outputs: Sequence[Tensor]) -> None:
        self._graph = graph
        self.outputs: Sequence[Tensor] = outputs

    def replay(self) -> None:
        self._graph.replay()

    def reset(self) -> None:
        self._graph.reset()
        self.outputs = ()


@cache
def replays_of(device: torch.device) -> Replays:
    """Return the replays of all networks on a device: CUDA graphs on a GPU; elsewhere none, and no padding."""
    return Replays(GraphRecorder(device), ROW_BUCKETS) if device.type == "cuda" else Replays()
