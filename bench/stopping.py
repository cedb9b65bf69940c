"""What it costs a forward on a CPU to be one that ends once its jobs are cancelled: `python -m bench.stopping`.

Both kinds of forward alternate in one process. What is counted is the thread's own time, so other work on the machine
moves it little.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from statistics import median
from time import thread_time
from typing import Any

import torch

from serve_app.engine.stopping import Stoppable, StoppableFuture
from serve_app.models.families.family import Rows
from serve_app.models.shipped import CHECKPOINT, SHIPPED
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.forward import Canvas
from serve_app.store.models.catalog import Catalog


def main() -> None:
    """Print the milliseconds of a forward of the shipped network, with and without."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--side", type=int, default=8, help="of the latents, in cells")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    weights = Weights(Catalog(SHIPPED), cpu, dtype="auto", vae_dtype="auto", budget_bytes=10**9)
    backbone = weights.backbone(Recipe("backbone", "checkpoints", CHECKPOINT))
    network: Any = backbone.network.module
    x, text = torch.randn(1, 4, asked.side, asked.side), torch.randn(1, 77, network.config.cross_attention_dim)
    inputs = backbone.inputs(text, {}, "positive", Canvas(x, x))
    rows = [Rows(x, 1.0, torch.tensor([10.0]), inputs) for _ in range(asked.rows)]
    jobs = [StoppableFuture[None]() for _ in rows]
    took_ms: dict[str, list[float]] = {"without": [], "with": []}
    with torch.inference_mode():
        backbone.network.answer(rows)
        for _ in range(asked.rounds):
            for kind, of_kind in took_ms.items():
                began_s = thread_time()
                with Stoppable(jobs) if kind == "with" else nullcontext():
                    backbone.network.answer(rows)
                of_kind.append((thread_time() - began_s) * 1000)
    for kind, of_kind in took_ms.items():
        print(f"{kind:>7}: median {median(of_kind):.1f} ms, least {min(of_kind):.1f} ms")


if __name__ == "__main__":
    main()
