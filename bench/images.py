"""Images per second over HTTP, of so many mixed jobs at once, until the images are saved; and the memory it takes.

Jobs differ in text, seed, sampler, schedule, steps and cfg where they are several; one alone is plain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from bench.series import Ratio, Series, ratio
from bench.servers import Contender, Server, running
from bench.workflows import txt2img

NAME = "images"
ALONE = 3
"""How many single jobs are timed one after another; their median counts."""

TARGETS = {(8, 64): ">= 3", (8, 128): ">= 2"}
"""Of sd15 over ComfyUI, by jobs at once and side in pixels."""

MEMORY = (("peak memory of the largest process", "<= 1"), ("memory of all processes at the end", ""))
"""What `Server.memory_mb` returns, and what is aimed at over ComfyUI."""


@dataclass(frozen=True, slots=True)
class Load:
    """So many jobs at once, of pictures of this side in pixels. beside: the other contenders are measured as well."""

    at_once: int
    side: int
    beside: bool


LOADS = (
    Load(1, 64, True),
    Load(2, 64, False),
    Load(4, 64, False),
    Load(8, 64, True),
    Load(16, 64, False),
    Load(1, 128, True),
    Load(8, 128, True),
)


def measure(contenders: Sequence[Contender], checkpoint: str, rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Start every contender in turn, rounds times, and measure each once it is warm. The first contender is ours."""
    seconds: dict[tuple[Load, str], list[float]] = {}
    memory: dict[str, list[tuple[float, float]]] = {contender.kind: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            with running(contender) as server:
                for side in sorted({load.side for load in LOADS}):
                    server.client.run([txt2img(checkpoint, side), txt2img(checkpoint, side)])
                for load in LOADS:
                    if load.beside or contender is contenders[0]:
                        taken = seconds.setdefault((load, contender.kind), [])
                        taken.append(_time(server, checkpoint, load, min(taken, default=0.0)))
                memory[contender.kind].append(server.memory_mb())
    series = {
        (load, kind): Series(NAME, f"{checkpoint}, {load.side} px, {load.at_once} at once", kind, "images/s", per_s)
        for (load, kind), taken in seconds.items()
        for per_s in [[load.at_once / s for s in taken]]
    }
    ours = contenders[0].kind
    measured, ratios = list(series.values()), list(_ratios(series, checkpoint, ours))
    for i, (what, target) in enumerate(MEMORY):
        found = {
            kind: Series(NAME, f"{checkpoint}, {what}", kind, "MB", [figures[i] for figures in taken_mb])
            for kind, taken_mb in memory.items()
        }
        measured += found.values()
        if "ComfyUI" in found:
            ratios.append(ratio(NAME, f"{checkpoint}: {what}, over ComfyUI", found[ours], found["ComfyUI"], target))
    return measured, ratios


def _time(server: Server, checkpoint: str, load: Load, expected_s: float) -> float:
    """Return the seconds of the load's jobs at once."""
    times: list[float] = []
    for _ in range(ALONE if load.at_once == 1 else 1):
        jobs = [txt2img(checkpoint, load.side, mixed=load.at_once > 1) for _ in range(load.at_once)]
        times.append(server.client.run(jobs, min(times, default=expected_s)))
    return median(times)


def _ratios(series: dict[tuple[Load, str], Series], checkpoint: str, ours: str) -> Iterator[Ratio]:
    for (load, kind), measured in series.items():
        what = f"{checkpoint}, {load.side} px: {load.at_once} at once"
        if kind != ours:
            target = ""
            if kind == "ComfyUI":
                target = TARGETS.get((load.at_once, load.side), ">= 1") if checkpoint == "sd15" else ">= 1"
            yield ratio(NAME, f"{what} over {kind}", series[load, ours], measured, target)
        elif load.at_once > 1:
            alone = series[Load(1, load.side, True), ours]
            yield ratio(NAME, f"{what} over one at a time", measured, alone)
