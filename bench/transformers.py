"""Diffusion transformers of the published layouts, a thousand and more wide but few blocks deep, over HTTP.

Jobs a second: one alone; eight at once that differ in text, seed, sampler, steps and cfg; of ours eight such one after
another too. The memory it takes; and how long their files take to load. Texts are drawn, not encoded, and what is saved
are latents, so that all of the time is the backbone's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from bench import loading
from bench.series import Ratio, Series, ratio
from bench.servers import Contender, running
from bench.workflows import drawn
from serve_app.models.families.dit.flux import Flux
from serve_app.models.families.dit.zimage import ZImage
from serve_app.models.families.family import BackboneFamily
from serve_app.models.families.video.wan import Wan
from serve_app.models.files.layout import reverse, translate
from serve_app.recipe.recipe import Recipe

NAME = "transformers"
PACKS = Path(__file__).parent / "packs"
TOGETHER = 8
ALONE = 3
"""How many single jobs are timed one after another; their median counts."""


@dataclass(frozen=True, slots=True)
class Net:
    """A file, what it holds, how many tokens its texts have, and how many steps a job takes on average.

    images: of the video that a job makes; 1 is an image. published: tensors have the authors' names, not diffusers'.
    """

    name: str
    family: BackboneFamily
    tokens: int
    steps: int
    images: int = 1
    published: bool = False

    @property
    def file(self) -> str:
        return f"bench_{self.name}.safetensors"


NETS = (
    Net("flux", Flux(width=1024, heads=8, doubles=2, singles=4, text_width=512, pooled_width=256), 64, 8),
    # ComfyUI takes no other width for Z-Image's.
    Net("z_image", ZImage(width=3840, heads=30, layers=1, refiners=1, text_width=512), 64, 2),
    # Nor for Wan's texts.
    Net("wan", Wan(width=1536, layers=2, inside=8960, text_width=4096), 512, 4, images=17, published=True),
)


def provide(models: Path) -> None:
    """Write the files, in bfloat16 as they are published."""
    for net in NETS:
        path = models / "diffusion_models" / net.file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(1)
            state = net.family.build().state_dict()
            names = reverse(net.family.table()) if net.published else {}
            save_file(
                {translate(n, names) or n: tensor.to(torch.bfloat16).contiguous() for n, tensor in state.items()}, path
            )


def measure(contenders: Sequence[Contender], rounds: int) -> Iterator[tuple[list[Series], list[Ratio]]]:
    """Start every contender in turn, rounds times, once a net, and measure each once it is warm. The first is ours.

    What is measured of a net, and how long its file takes to load, are yielded as soon as they are known.
    """
    models = contenders[0].models
    provide(models)
    for net in NETS:
        yield _net(net, [replace(c, packs=PACKS) for c in contenders], rounds)
        path = models / "diffusion_models" / net.file
        yield loading.measure_parts(models, path, [Recipe("backbone", "diffusion_models", net.file)], rounds)


def _net(net: Net, contenders: Sequence[Contender], rounds: int) -> tuple[list[Series], list[Ratio]]:
    taken: dict[tuple[int, str], list[float]] = {(n, c.kind): [] for n in (1, TOGETHER) for c in contenders}
    in_turn: list[float] = []
    peak_mb: dict[str, list[float]] = {c.kind: [] for c in contenders}
    for _ in range(rounds):
        for contender in contenders:
            with running(contender) as server:
                server.client.run([_job(net), _job(net)])
                for at_once in (1, TOGETHER):
                    times: list[float] = []
                    for _ in range(ALONE if at_once == 1 else 1):
                        jobs = [_job(net, mixed=at_once > 1) for _ in range(at_once)]
                        times.append(server.client.run(jobs, min(times, default=0.0)))
                    taken[at_once, contender.kind].append(at_once / median(times))
                if contender is contenders[0]:
                    # As many as are in the mix, so that both orders hold the same.
                    jobs = [_job(net, mixed=True) for _ in range(TOGETHER)]
                    in_turn.append(TOGETHER / sum(server.client.run([job]) for job in jobs))
                peak_mb[contender.kind].append(server.memory_mb()[0])
    series = {
        (n, kind): Series(NAME, f"{net.name}, {n} at once", kind, "jobs/s", per_s) for (n, kind), per_s in taken.items()
    }
    memory = {
        kind: Series(NAME, f"{net.name}, peak memory of the largest process", kind, "MB", peaks)
        for kind, peaks in peak_mb.items()
    }
    ours = contenders[0].kind
    alone = Series(NAME, f"{net.name}, {TOGETHER} one at a time", ours, "jobs/s", in_turn)
    what = f"{net.name}: {TOGETHER} at once over one at a time"
    ratios = [ratio(NAME, what, series[TOGETHER, ours], alone, ">= 1.5")]
    for other in contenders[1:]:
        for at_once in (1, TOGETHER):
            what = f"{net.name}: {at_once} at once over {other.kind}"
            target = ">= 1" if other.kind == "ComfyUI" else ""
            ratios.append(ratio(NAME, what, series[at_once, ours], series[at_once, other.kind], target))
        if other.kind == "ComfyUI":
            what = f"{net.name}: peak memory of the largest process, over ComfyUI"
            ratios.append(ratio(NAME, what, memory[ours], memory[other.kind], "<= 1"))
    return [*series.values(), alone, *memory.values()], ratios


def _job(net: Net, *, mixed: bool = False) -> Mapping[str, Any]:
    family: Any = net.family
    pooled = getattr(family, "pooled_width", 1)
    return drawn(
        net.file,
        tokens=net.tokens,
        width=family.text_width,
        pooled=pooled,
        steps=net.steps,
        images=net.images,
        mixed=mixed,
    )
