"""How long a checkpoint takes to load, over reading its file from the page cache; and the memory a server then has."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import torch

from bench.series import Ratio, Series, ratio
from serve_app.models.weights import Weights
from serve_app.store.catalog import Catalog
from serve_app.values import Part, Recipe

NAME = "loading"
PARTS: tuple[Part, ...] = ("backbone", "clip", "vae")


def measure(models: Path, checkpoint: str, rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Load all of a checkpoint and read its file, in turns. The first turn fills the page cache."""
    path = models / "checkpoints" / f"{checkpoint}.safetensors"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loads: list[float] = []
    reads: list[float] = []
    for turn in range(rounds + 1):
        read = _read(path)
        weights = Weights(Catalog(models), device, budget_bytes=24 * 2**30)
        began = time.perf_counter()
        for part in PARTS:
            getattr(weights, part)(Recipe(part, "checkpoints", path.name))
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        del weights
        gc.collect()
        if turn:
            loads.append(took)
            reads.append(read)
    load = Series(NAME, f"{checkpoint}, load", "serve-app", "s", loads)
    read_series = Series(NAME, f"{checkpoint}, read the file", "page cache", "s", reads)
    return [load, read_series], [ratio(NAME, f"{checkpoint}: load over reading the file", load, read_series, "<= 1.3")]


def _read(path: Path) -> float:
    """Return the seconds to read the whole file into memory of its own."""
    began = time.perf_counter()
    with path.open("rb") as file:
        memory = bytearray(path.stat().st_size)
        file.readinto(memory)
    return time.perf_counter() - began
