"""Several devices for one forward: the bytes that each sends, counted beside the papers' formulas, and what follows.

The family's own forward runs on the meta device as one rank of several, with collectives that only count. So bytes and
operations are those of the code, for published sizes. Times are a roofline's and no measurements: of each rank's
kernels, and of what it sends, one after the other. `python -m bench.ranks` prints docs/scale.md's table of forwards,
`--vae` that of video autoencoders, `--weights` that of sharded weights, and `--overhead` what the path of ranks costs
with one, beside a forward without it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from serve_app.models.families import Flux, QwenImage, Wan, Wan22Vae, WanVae
from serve_app.models.families.dit.flux import FluxInputs
from serve_app.models.families.family import BackboneFamily, Rows, VideoVaeFamily
from serve_app.models.forward_cost import ForwardCost, forward_cost
from serve_app.models.network import ForwardOptions, LoadedNetwork
from serve_app.models.ranks.group import RankGroup
from serve_app.models.ranks.leader import Leader
from serve_app.models.ranks.planning import LINKS, REACHED, Counted
from serve_app.models.ranks.sharding import sharded_over
from serve_app.models.ranks.strips import Strips, strip_rows
from serve_app.models.vae import pieces
from serve_app.models.weights.memory_plan import PartPlan
from serve_app.models.weights.roofline import CARDS, forward_s
from serve_app.models.weights.sharded_blocks import shard_sizes, sharded_blocks
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete

GIB = 2**30
MIB = 2**20
VIDEO_AXES = 5
WARM_UPS = 2
RESIDENT = PartPlan(0, 0)
CARDS_BY_LINK = {"H100 SXM": ("NVLink", LINKS["nvlink"]), "L40S": ("PCIe 4", LINKS["pcie4"])}
"""Cards with the name of their link, and the bytes a second that one sends to others of its host, by data sheet."""


@dataclass(frozen=True)
class Case:
    """A forward of a published network. latents: of a row. tokens: of all streams, each `width` wide.

    layers: those with attention over them.
    """

    name: str
    family: BackboneFamily
    latents: tuple[int, ...]
    words: int
    tokens: int
    width: int
    layers: int


CASES: Sequence[Case] = (
    Case("Flux.1 dev, 1024²", Flux(3072, 24, 19, 38, 4096, 768), (16, 128, 128), 512, 4096 + 512, 3072, 57),
    Case("Qwen-Image, 1328²", QwenImage(3072, 24, 60, 3584), (16, 1, 166, 166), 256, 83**2 + 256, 3072, 60),
    Case("Wan 2.1 1.3B, 832×480, 81 frames", Wan(1536, 30, 8960, 4096), (16, 21, 60, 104), 512, 21 * 30 * 52, 1536, 30),
    Case(
        "Wan 2.1 14B, 1280×720, 81 frames", Wan(5120, 40, 13824, 4096), (16, 21, 90, 160), 512, 21 * 45 * 80, 5120, 40
    ),
)


def counted(case: Case, size: int) -> tuple[ForwardCost, Counted]:
    """Return what a rank of a forward computes, and what it sends."""
    network = case.family.empty().to(torch.bfloat16)
    cond, options = case.family.blank_text(case.words)
    ranks = Counted(size)
    with sharded_over(ranks if size > 1 else None):
        return forward_cost(case.family, network, torch.empty(1, *case.latents, device="meta"), cond, options), ranks


def formula(case: Case, size: int) -> tuple[str, float]:
    """Return how tokens are shared, and the bytes that a rank sends for attention by the papers."""
    heads = case.family.sharded_heads or 1
    own = case.tokens / size * case.width * 2 * case.layers
    if heads % size == 0:
        return "Ulysses", 4 * own * (size - 1) / size
    return "gathered", 2 * own * (size - 1)


def table() -> str:
    """Return the table in Markdown."""
    cards = [next(card for card in CARDS if card.name == name) for name in CARDS_BY_LINK]
    heads = [f"{card.name}, {CARDS_BY_LINK[card.name][0]}: step, speed-up" for card in cards]
    lines = [
        f"| forward of one row | ranks | by | MiB sent a rank | by formula | {' | '.join(heads)} |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        alone = [forward_s(counted(case, 1)[0], RESIDENT, card) for card in cards]
        for size in (2, 3, 4, 8):
            cost, ranks = counted(case, size)
            by, expected = formula(case, size)
            sent = ranks.sent
            times = [forward_s(cost, RESIDENT, card) + sent / (REACHED * CARDS_BY_LINK[card.name][1]) for card in cards]
            shown = " | ".join(f"{took:.2f} s, {one / took:.1f}" for took, one in zip(times, alone, strict=True))
            lines.append(f"| {case.name} | {size} | {by} | {sent / MIB:,.0f} | {expected / MIB:,.0f} | {shown} |")
    return "\n".join(lines)


def weights_table() -> str:
    """Return the table of sharded weights, in Markdown."""
    lines = [
        "| forward | ranks | GiB of weights | GiB on each | GiB sent a rank | by formula | over NVLink, PCIe 4 |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        network = case.family.empty().to(torch.bfloat16)
        whole = sum(weight.nbytes for weight in network.parameters())
        rounds = _rounds(case, network)
        for size in (2, 4, 8):
            sizes = shard_sizes(network, None, size)
            sent = rounds * sizes.sent_bytes
            nvlink, pcie = (f"{sent / (REACHED * LINKS[link]):.2g} s" for link in ("nvlink", "pcie4"))
            figures = (whole, sizes.device_bytes, sent, whole * (size - 1) / size)
            shown = " | ".join(f"{figure / GIB:.2f}" for figure in figures)
            lines.append(f"| {case.name} | {size} | {shown} | {nvlink}, {pcie} |")
    return "\n".join(lines)


def _rounds(case: Case, network: nn.Module) -> int:
    """Return how often a forward gathers all blocks, if in the order in which it first uses them."""
    used: list[int] = []
    for number, block in enumerate(sharded_blocks(network, None)):
        for layer in block.layers:
            layer.register_forward_pre_hook(lambda layer, given, number=number: used.append(number))
    cond, options = case.family.blank_text(case.words)
    forward_cost(case.family, network, torch.empty(1, *case.latents, device="meta"), cond, options)
    order = {number: at for at, number in enumerate(dict.fromkeys(used))}
    return 1 + sum(order[later] < order[earlier] for earlier, later in pairwise(used))


@dataclass(frozen=True)
class Video:
    """A video that an autoencoder decodes. latents: (channels, frames, rows, columns)."""

    name: str
    family: VideoVaeFamily
    latents: tuple[int, int, int, int]


VIDEOS: Sequence[Video] = (
    Video("Wan 2.1, 832×480, 81 frames", WanVae(96, 16, 3), (16, 21, 60, 104)),
    Video("Wan 2.1, 1280×720, 81 frames", WanVae(96, 16, 3), (16, 21, 90, 160)),
    Video("Wan 2.2, 1280×704, 121 frames", Wan22Vae(160, 256), (48, 31, 44, 80)),
)


class Formula:
    """What a rank would send by what layers are given, from outside of them.

    rows: those at one border of its strip that convolutions of the next rank read, for each layer that reads any. keys:
    keys and values of attention, for one other rank.
    """

    def __init__(self, network: nn.Module) -> None:
        self.rows = self.keys = 0
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                layer.register_forward_pre_hook(self._convolved)
            elif type(layer).__name__ == "WanAttentionBlock":
                layer.register_forward_pre_hook(self._attended)

    def _convolved(self, layer: Any, given: tuple[Tensor, ...]) -> None:
        rows = layer.kernel_size[-2] // 2
        before = given[1].shape[2] if len(given) > 1 and given[1] is not None else 0
        x = given[0]
        frames = x.shape[2] + before if x.ndim == VIDEO_AXES else x.shape[0]
        self.rows += rows * x.shape[-1] * x.shape[1] * frames * x.dtype.itemsize

    def _attended(self, layer: Any, given: tuple[Tensor, ...]) -> None:
        self.keys += 2 * given[0].nbytes


def vae_table() -> str:
    """Return the table of autoencoders in Markdown."""
    lines = [
        "| video decoded | ranks | MiB sent a rank | by formula | over NVLink, PCIe 4 |",
        "|---|---|---|---|---|",
    ]
    for video in VIDEOS:
        for size in (2, 4, 8):
            counted, expected = (round(made / MIB) for made in decoded(video, size))
            nvlink, pcie = (f"{counted * MIB / (REACHED * LINKS[link]):.2g} s" for link in ("nvlink", "pcie4"))
            lines.append(f"| {video.name} | {size} | {counted:,} | {expected:,} | {nvlink}, {pcie} |")
    return "\n".join(lines)


def decoded(video: Video, size: int) -> tuple[int, int]:
    """Return the bytes that the second rank sends, and those by formula."""
    network = video.family.empty().to(torch.bfloat16)
    channels, frames, rows, columns = video.latents
    strips_of = strip_rows(rows, size)
    assert strips_of is not None
    ranks = Counted(size, rank=1)
    strips, formula = Strips(ranks, strips_of), Formula(network)
    own = torch.empty(1, channels, 1, strips_of[ranks.rank], columns, dtype=torch.bfloat16, device="meta")
    # Those after the second are as that.
    made, sent = pieces(video.family, network, "decode_frames", [own] * 2), []
    borders, others = min(2, size - 1), size - 1
    with torch.inference_mode():
        for _ in range(2):
            with strips.working():
                next(made)
            sent.append((ranks.sent, borders * formula.rows + others * formula.keys))
    first, both = sent
    counted, expected = (one + (frames - 1) * (two - one) for one, two in zip(first, both, strict=True))
    return counted, expected


def overhead(rounds: int = 40) -> list[float]:
    """Return the processor time of a forward by a leader without followers over that of one without a leader, by round.

    The two are taken in turn, each first in every other round.
    """
    torch.set_num_threads(1)
    family = Flux(512, 8, 3, 6, 256, 64)
    module = family.build().eval().requires_grad_(False)
    with TemporaryDirectory() as folder, torch.inference_mode():
        leader = Leader(RankGroup(Path(folder), 0, 1, torch.device("cpu"), 60.0))
        alone, led = (
            LoadedNetwork("network", family, module, Discrete(), options=ForwardOptions(ranks=ranks))
            for ranks in (None, leader)
        )
        rows = [_row(family, number) for number in range(2)]
        times: dict[LoadedNetwork, list[float]] = {alone: [], led: []}
        for turn in range(WARM_UPS + rounds):
            for network in (alone, led) if turn % 2 else (led, alone):
                began = process_time()
                network.answer(rows)
                times[network].append(process_time() - began)
        leader.close()
    return [ours / theirs for ours, theirs in zip(times[led], times[alone], strict=True)][WARM_UPS:]


def _row(family: Flux, number: int) -> Rows:
    x, text = torch.randn(1, 16, 32, 32), torch.randn(1, 64, 256)
    inputs = FluxInputs(text, torch.randn(1, 64), torch.ones(1))
    return Rows(x, 0.5, torch.full((1,), 0.5), inputs, recipe=Recipe("backbone", "diffusion_models", "network"))


if __name__ == "__main__":
    if "--overhead" in sys.argv:
        low, middle, high = quantiles(overhead())
        print(f"median {middle:.3f}, half of them within {low:.3f} to {high:.3f}")
    elif "--weights" in sys.argv:
        print(weights_table())
    else:
        print(vae_table() if "--vae" in sys.argv else table())
