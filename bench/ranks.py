"""Several devices for one forward: the bytes that each sends, counted beside the papers' formulas, and what follows.

The family's own forward runs on the meta device as one rank of several, with collectives that only count. So bytes and
operations are those of the code, for published sizes. Times are a roofline's and no measurements: of each rank's
kernels, and of what it sends, one after the other. `python -m bench.ranks` prints docs/scale.md's table, and
`python -m bench.ranks --overhead` what the path of ranks costs with one, beside a forward without it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch import Tensor

from serve_app.models.families import Flux, QwenImage, Wan
from serve_app.models.families.dit.flux import FluxInputs
from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.forward_cost import ForwardCost, forward_cost
from serve_app.models.network import ForwardOptions, LoadedNetwork
from serve_app.models.ranks.group import RankGroup
from serve_app.models.ranks.leader import Leader
from serve_app.models.ranks.sharding import sharded_over
from serve_app.models.weights.memory_plan import PartPlan
from serve_app.models.weights.roofline import CARDS, forward_s
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete

MIB = 2**20
RESIDENT = PartPlan(0, 0)
REACHED = 0.8
"""The part of a link's data sheet that collectives of some megabytes reach."""
LINKS = {"H100 SXM": ("NVLink", 450e9), "L40S": ("PCIe 4", 32e9)}
"""Bytes a second that a card sends to others of its host, by data sheet."""


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


class Counted:
    """The first of a number of ranks, whose collectives count what it sends."""

    def __init__(self, size: int) -> None:
        self.rank, self.size = 0, size
        self.exchanged = self.gathered = 0

    def all_to_all(self, sent: Sequence[Tensor], received: Sequence[Sequence[int]]) -> list[Tensor]:
        self.exchanged += sum(prod(one.shape) * one.dtype.itemsize for one in sent[1:])
        return [sent[0].new_empty(tuple(shape)) for shape in received]

    def all_gather(self, own: Tensor, sizes: Sequence[int], dim: int) -> Tensor:
        self.gathered += prod(own.shape) * own.dtype.itemsize * (self.size - 1)
        shape = list(own.shape)
        shape[dim] = sum(sizes)
        return own.new_empty(shape)


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
    cards = [next(card for card in CARDS if card.name == name) for name in LINKS]
    heads = [f"{card.name}, {LINKS[card.name][0]}: step, speed-up" for card in cards]
    lines = [
        f"| forward of one row | ranks | by | MiB sent a rank | by formula | {' | '.join(heads)} |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        alone = [forward_s(counted(case, 1)[0], RESIDENT, card) for card in cards]
        for size in (2, 3, 4, 8):
            cost, ranks = counted(case, size)
            by, expected = formula(case, size)
            sent = ranks.exchanged + ranks.gathered
            times = [forward_s(cost, RESIDENT, card) + sent / (REACHED * LINKS[card.name][1]) for card in cards]
            shown = " | ".join(f"{took:.2f} s, {one / took:.1f}" for took, one in zip(times, alone, strict=True))
            lines.append(f"| {case.name} | {size} | {by} | {sent / MIB:,.0f} | {expected / MIB:,.0f} | {shown} |")
    return "\n".join(lines)


def overhead(rounds: int = 21) -> float:
    """Return the median time of a forward by a leader without followers over one without a leader, taken in turn."""
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
        for _ in range(rounds):
            for network, taken in times.items():
                began = perf_counter()
                network.answer(rows)
                taken.append(perf_counter() - began)
        leader.close()
    return median(ours / theirs for ours, theirs in zip(times[led], times[alone], strict=True))


def _row(family: Flux, number: int) -> Rows:
    x, text = torch.randn(1, 16, 32, 32), torch.randn(1, 64, 256)
    inputs = FluxInputs(text, torch.randn(1, 64), torch.ones(1))
    return Rows(x, 0.5, torch.full((1,), 0.5), inputs, recipe=Recipe("backbone", "diffusion_models", "network"))


if __name__ == "__main__":
    print(f"{overhead():.3f}" if "--overhead" in sys.argv else table())
