"""What a server takes that nobody asks: processor time and memory of all its processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import psutil

from bench.series import Ratio, Series, ratio
from bench.servers import Contender, Server, running
from bench.workflows import noop, txt2img

NAME = "idle"
SETTLE_S = 10.0
"""From the last job until it is measured."""
IDLE_S = 60.0
MEMORY = {"mini15": "<= 1.4", "sd15": "<= 1.15"}
"""What is aimed at for the memory of all processes over ComfyUI's one, by checkpoint."""
PICTURES = 2
SIDE = 64


def measure(contenders: Sequence[Contender], rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Let every contender run one job and then nothing, in turn."""
    shares: dict[str, list[float]] = {c.kind: [] for c in contenders}
    memory: dict[str, list[float]] = {c.kind: [] for c in contenders}
    for _ in range(rounds):
        for contender in contenders:
            with running(contender) as server:
                server.client.run([noop()])
                time.sleep(SETTLE_S)
                before = _processor_s(server)
                time.sleep(IDLE_S)
                shares[contender.kind].append(100 * (_processor_s(server) - before) / IDLE_S)
                memory[contender.kind].append(server.memory_mb()[1])
    series = [Series(NAME, "processor time", kind, "% of a core", values) for kind, values in shares.items()]
    aims = [Ratio(NAME, "percent of a core", series[0].values, "<= 3")]
    return series + [Series(NAME, "memory", kind, "MB", values) for kind, values in memory.items()], aims


def measure_memory(contenders: Sequence[Contender], checkpoint: str, rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Let every contender draw a few pictures, in turn, and measure what all of its processes take then."""
    memory: dict[str, list[float]] = {c.kind: [] for c in contenders}
    for _ in range(rounds):
        for contender in contenders:
            with running(contender) as server:
                for _ in range(PICTURES):
                    server.client.run([txt2img(checkpoint, SIDE)])
                time.sleep(SETTLE_S)
                memory[contender.kind].append(server.memory_mb()[1])
    series = [Series(NAME, f"memory with {checkpoint}", kind, "MB", values) for kind, values in memory.items()]
    what = f"{checkpoint}: memory of all processes, over ComfyUI"
    return series, [ratio(NAME, what, series[0], theirs, MEMORY[checkpoint]) for theirs in series[1:]]


def _processor_s(server: Server) -> float:
    """Return the processor time of all processes, seconds, since each started."""
    used = 0.0
    for process in server.processes():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            used += times.user + times.system
    return used
