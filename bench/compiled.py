"""What compiled blocks gain a forward, by inductor: `python -m bench.compiled`.

A Flux of a few blocks and drawn weights runs with its blocks compiled and as they are, in one process and in turns, on
one thread. Printed are the seconds and the number of compiles that the first forward of each size took, the largest
difference of outputs over their largest number, and the processor time of a forward over that without. The exit status
is 1 if outputs differ by more than TOLERANCE.
"""

from __future__ import annotations

import argparse
import os
import sys
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from serve_app.models.families import Flux
from serve_app.models.families.dit.flux import FluxInputs
from serve_app.models.families.family import Rows
from serve_app.models.kernels.compiled_blocks import prepare_compiler
from serve_app.models.network import ForwardOptions, LoadedNetwork
from serve_app.recipe.training import Discrete

FAMILY = Flux(384, 3, 3, 3, 128, 64)
SIZES = ((1, 32, 32), (2, 32, 32), (2, 32, 48), (1, 48, 32), (4, 16, 16))
"""Rows, and height and width of the latents in cells."""
TOKENS = 32
TOLERANCE = 1e-4


def main() -> int:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(prog="python -m bench.compiled", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if (reason := prepare_compiler(torch.device("cpu"))) is not None:
        print(reason, file=sys.stderr)
        return 1
    module = FAMILY.empty().to_empty(device="cpu")
    draw = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draw) * 0.02)
    networks = {
        kind: LoadedNetwork("drawn", FAMILY, module, Discrete(), options=ForwardOptions(compiled=kind == "compiled"))
        for kind in ("plain", "compiled")
    }
    print(f"load before: {os.getloadavg()[0]:.1f}")
    print(f"{'rows':>4}{'cells':>8}{'compiles':>10}{'first s':>9}{'apart':>10}{'plain ms':>10}{'ratio':>7}")
    apart = [_measured(networks, size, asked.rounds) for size in SIZES]
    print(f"load after: {os.getloadavg()[0]:.1f}")
    return int(max(apart) > TOLERANCE)


def _measured(networks: dict[str, LoadedNetwork], size: tuple[int, int, int], rounds: int) -> float:
    """Print the row of a size; return how far outputs are apart."""
    rows, before = _rows(*size), counters["stats"]["unique_graphs"]
    began_s = perf_counter()
    compiled = _answer(networks["compiled"], rows)
    first_s, compiles = perf_counter() - began_s, counters["stats"]["unique_graphs"] - before
    plain = _answer(networks["plain"], rows)
    apart = float((compiled - plain).abs().max() / plain.abs().max())
    took_ms: dict[str, list[float]] = {kind: [] for kind in networks}
    for _ in range(rounds):
        for kind, network in networks.items():
            began_s = thread_time()
            _answer(network, rows)
            took_ms[kind].append((thread_time() - began_s) * 1000)
    ratio = median(b / a for a, b in zip(took_ms["plain"], took_ms["compiled"], strict=True))
    cells = f"{size[1]}x{size[2]}"
    print(
        f"{size[0]:>4}{cells:>8}{compiles:>10}{first_s:>9.1f}{apart:>10.1e}{median(took_ms['plain']):>10.0f}{ratio:>7.2f}",
        flush=True,
    )
    return apart


def _rows(count: int, height: int, width: int) -> list[Rows]:
    draw = torch.Generator().manual_seed(height * 100 + width)
    inputs = FluxInputs(
        torch.randn(count, TOKENS, FAMILY.text_width, generator=draw),
        torch.randn(count, 64, generator=draw),
        torch.full((count,), 3.5),
    )
    x = torch.randn(count, 16, height, width, generator=draw)
    return [Rows(x, 0.5, torch.full((count,), 0.5), inputs)]


def _answer(network: LoadedNetwork, rows: Any) -> Tensor:
    with torch.inference_mode():
        return torch.cat(network.answer(rows))


if __name__ == "__main__":
    sys.exit(main())
