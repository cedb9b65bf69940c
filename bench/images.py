"""Images per second over HTTP, of one job at a time and of eight at once, until the images are saved."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench.series import Ratio, Series, ratio
from bench.servers import Contender, Server, running
from bench.workflows import txt2img

NAME = "images"
AT_ONCE = 8
ALONE = 3
"""How many jobs are timed one after another; their median counts."""


def measure(contenders: Sequence[Contender], checkpoint: str, rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Start every contender in turn, rounds times, and measure each once it is warm."""
    seconds: dict[tuple[str, int], list[float]] = {(c.kind, n): [] for n in (1, AT_ONCE) for c in contenders}
    for _ in range(rounds):
        for contender in contenders:
            with running(contender) as server:
                server.client.run([txt2img(checkpoint), txt2img(checkpoint)])
                server.client.run([txt2img(checkpoint)])
                for at_once, repeats in ((1, ALONE), (AT_ONCE, 1)):
                    taken = seconds[contender.kind, at_once]
                    taken.append(median(_times(server, checkpoint, at_once, repeats, min(taken, default=0.0))))
    series = {
        (kind, n): Series(NAME, f"{checkpoint}, {n} at once", kind, "images/s", [n / s for s in taken])
        for (kind, n), taken in seconds.items()
    }
    return list(series.values()), _ratios(series, checkpoint)


def _times(server: Server, checkpoint: str, at_once: int, repeats: int, expected_s: float) -> list[float]:
    """Return the seconds of so many jobs at once, again and again."""
    times: list[float] = []
    for _ in range(repeats):
        times.append(server.client.run([txt2img(checkpoint) for _ in range(at_once)], min(times, default=expected_s)))
    return times


def _ratios(series: dict[tuple[str, int], Series], checkpoint: str) -> list[Ratio]:
    ours = "serve-app"
    aim = ">= 3" if checkpoint == "sd15" else ""
    ratios = [
        ratio(NAME, f"{checkpoint}: {AT_ONCE} at once over one at a time", series[ours, AT_ONCE], series[ours, 1], aim)
    ]
    for kind, n in series:
        if kind != ours:
            target = ">= 1" if kind == "ComfyUI" else ""
            what = f"{checkpoint}: {n} at once over {kind}"
            ratios.append(ratio(NAME, what, series[ours, n], series[kind, n], target))
    return ratios
