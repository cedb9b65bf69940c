"""How a GPU is measured: times from its own marks, memory from its allocator, kernels from a profile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter

import torch

from serve_app.engine.timeline import Timeline, timeline_of
from tests.gpu.models import FULL, SMALL, Model
from tests.parity.comfyui import ComfyUI

REPEATS = 10


@dataclass(frozen=True)
class Bench:
    """What is measured, and where. small: with small networks, to show that measuring works.

    comfyui: one to run beside. python: the command of another process that uses the device, but for its program.
    """

    device: torch.device
    small: bool
    comfyui: ComfyUI | None = None
    python: Sequence[str] = (sys.executable, "-c")

    @cached_property
    def timeline(self) -> Timeline:
        """The stream that work is measured on, and what it uses is made; marks of another would say nothing of it."""
        return timeline_of(self.device)

    @property
    def models(self) -> Sequence[Model]:
        return SMALL if self.small else FULL

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.device.type == "cuda" else torch.float32

    @property
    def repeats(self) -> int:
        return 1 if self.small else REPEATS

    def seconds(self, work: Callable[[], object]) -> tuple[float, float]:
        """Return what work takes the device, and the host to ask for it, in seconds; after a first time."""
        with self.timeline.enqueueing():
            work()
            began = self.timeline.mark()
            for _ in range(self.repeats):
                work()
            asked = perf_counter()
            ended = self.timeline.mark()
        ended.wait()
        return ended.since(began) / self.repeats, (asked - began.enqueued_s) / self.repeats

    def peak_bytes(self, work: Callable[[], object]) -> float:
        """Return how much more memory work needs than is held, 0 on a CPU."""
        if self.device.type != "cuda":
            work()
            return 0.0
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with self.timeline.enqueueing():
            work()
        return float(torch.cuda.max_memory_allocated() - held)

    def kernels(self, work: Callable[[], object]) -> float:
        """Return how many kernels work launches; on a CPU, operations."""
        # All that this torch can see: events of the CPU too, which are left out.
        seen = torch.profiler.supported_activities()
        with torch.profiler.profile(activities=seen) as profiled, self.timeline.enqueueing():
            work()
            self.timeline.mark().wait()
        kind = "CUDA" if self.device.type == "cuda" else "CPU"
        return float(sum(event.device_type.name == kind for event in profiled.events()))
