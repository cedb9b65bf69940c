"""Diffusion transformers of the published layouts, a thousand and more wide but few blocks deep, over HTTP.

Jobs a second: one alone; eight at once that differ in text, seed, sampler, steps and cfg; of ours eight such one after
another too. The memory it takes; and how long their files take to load. Texts are drawn, not encoded, and what is saved
are latents, so that all of the time is the backbone's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench import loading
from bench.series import Ratio, Series, ratio
from bench.servers import Contender, running
from bench.workflows import Latent, drawn, image, ltx_video_with_sound, minimax_video_with_sound, video
from serve_app.models.families.dit.flux import Flux
from serve_app.models.families.dit.zimage import ZImage
from serve_app.models.families.family import BackboneFamily
from serve_app.models.families.video.ltx2 import Ltx2, Stream
from serve_app.models.families.video.ltx2_connectors import Connector
from serve_app.models.families.video.minimax_h3 import MiniMaxH3
from serve_app.models.families.video.wan import Wan
from serve_app.models.files.layout import joined, origins
from serve_app.recipe.recipe import Recipe

NAME = "transformers"
PACKS = Path(__file__).parent / "packs"
TOGETHER = 8
ALONE = 3
"""How many single jobs are timed one after another; their median counts."""


@dataclass(frozen=True, slots=True)
class Net:
    """A file, what it holds, how many tokens its texts have, and how many steps a job takes on average.

    latent: makes what a job samples; sound: that is a video and its sound. published: tensors have the authors' names,
    not diffusers'. config: of the network, as published files have it in their metadata. tables: tensors of published
    files that are no weights.
    """

    name: str
    family: BackboneFamily
    tokens: int
    steps: int
    latent: Callable[[], Latent] = image
    sound: bool = False
    published: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return f"bench_{self.name}.safetensors"


_LTX2_CONFIG = {
    "num_attention_heads": 16,
    "attention_head_dim": 128,
    "cross_attention_dim": 2048,
    "audio_num_attention_heads": 16,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 1024,
    "connector_num_layers": 1,
    "connector_num_attention_heads": 16,
    "connector_attention_head_dim": 128,
    "audio_connector_num_attention_heads": 16,
    "audio_connector_attention_head_dim": 64,
    "connector_num_learnable_registers": 128,
    "apply_gated_attention": True,
    "connector_apply_gated_attention": True,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "rope_type": "split",
    "frequencies_precision": "float64",
    "use_middle_indices_grid": True,
    "causal_temporal_positioning": True,
    "av_ca_timestep_scale_multiplier": 1000.0,
}
"""LTX-2.3's, half as wide."""
_LTX2 = Ltx2(
    Stream(2048, 16),
    Stream(1024, 16),
    layers=2,
    text_width=3072,
    video_connector=Connector(2048, 16, layers=1, registers=128, gated=True),
    audio_connector=Connector(1024, 16, layers=1, registers=128, gated=True),
    gated=True,
    modulates_text=True,
    times_text=True,
    biases=(True, True),
    marks=False,
    projects_text=False,
    halves=True,
    double=True,
    middle=True,
    causal=True,
    cross_time_scale=1000.0,
)
_H3 = MiniMaxH3(
    width=2048,
    layers=2,
    refiners=1,
    heads=16,
    head=128,
    inside=5504,
    text_width=1024,
    time_width=256,
    time_inside=1024,
)
NETS = (
    Net("flux", Flux(width=1024, heads=8, doubles=2, singles=4, text_width=512, pooled_width=256), 64, 8),
    # ComfyUI takes no other width for Z-Image's.
    Net("z_image", ZImage(width=3840, heads=30, layers=1, refiners=1, text_width=512), 64, 2),
    # Nor for Wan's texts.
    Net("wan", Wan(width=1536, layers=2, inside=8960, text_width=4096), 512, 4, video, published=True),
    Net("ltx2", _LTX2, 256, 4, ltx_video_with_sound, sound=True, published=True, config=_LTX2_CONFIG),
    Net(
        "minimax_h3",
        _H3,
        256,
        4,
        minimax_video_with_sound,
        sound=True,
        published=True,
        tables={"rope.inv_freq": 10000.0 ** (-torch.arange(16) / 16)},
    ),
)


def provide(models: Path, nets: Iterable[Net]) -> None:
    """Write the files, in bfloat16 as they are published."""
    for net in nets:
        path = models / "diffusion_models" / net.file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(1)
            state = {name: tensor.to(torch.bfloat16) for name, tensor in net.family.build().state_dict().items()}
            if net.published:
                found = origins(state, net.family.table())
                state = {name: joined([(state[at.name], at) for at in places]) for name, places in found.items()}
            metadata = {"config": json.dumps({"transformer": net.config})} if net.config else None
            save_file({name: tensor.contiguous() for name, tensor in state.items()} | dict(net.tables), path, metadata)


def measure(
    contenders: Sequence[Contender], rounds: int, names: Iterable[str] = ()
) -> Iterator[tuple[list[Series], list[Ratio]]]:
    """Start every contender in turn, rounds times, once a net, and measure each once it is warm. The first is ours.

    names: of the nets; all without. What is measured of a net, and how long its file takes to load, are yielded as soon
    as they are known.
    """
    models, wanted = contenders[0].models, set(names)
    nets = [net for net in NETS if not wanted or net.name in wanted]
    provide(models, nets)
    for net in nets:
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
        net.latent(),
        tokens=net.tokens,
        width=family.text_width,
        pooled=pooled,
        steps=net.steps,
        sound=net.sound,
        mixed=mixed,
    )
