"""Images per second over HTTP, of one job at a time and of eight at once, until the images are saved."""

from __future__ import annotations

from collections.abc import Sequence

from bench.series import Ratio, Series, ratio
from bench.servers import Contender, running
from bench.workflows import txt2img

NAME = "images"
AT_ONCE = 8


def measure(contenders: Sequence[Contender], checkpoint: str, rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Run every contender in turn, rounds times; each warms up first, with weights and with eight at once."""
    seconds: dict[tuple[str, int], list[float]] = {(c.kind, n): [] for n in (1, AT_ONCE) for c in contenders}
    with running(contenders) as servers:
        fastest: dict[tuple[str, int], float] = {}
        for server in servers:
            server.client.run([txt2img(checkpoint), txt2img(checkpoint)])
        for turn in range(rounds + 1):
            for at_once in (1, AT_ONCE):
                for server in servers:
                    key = server.name, at_once
                    took_s = server.client.run([txt2img(checkpoint) for _ in range(at_once)], fastest.get(key, 0.0))
                    fastest[key] = min(took_s, fastest.get(key, took_s))
                    if turn > 0:
                        seconds[key].append(took_s)
    series = {
        (kind, n): Series(NAME, f"{checkpoint}, {n} at once", kind, "images/s", [n / s for s in taken])
        for (kind, n), taken in seconds.items()
    }
    return list(series.values()), _ratios(series, checkpoint)


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
