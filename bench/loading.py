"""How long a checkpoint takes to load, over reading its file from the page cache."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch

from bench.series import Ratio, Series, ratio
from serve_app.deployments.process.torch_environment import ENVIRONMENT
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Part, Recipe
from serve_app.store.models.catalog import Catalog

NAME = "loading"
WARM_UP = 4
"""Turns that do not count. They fill the page cache, and a virtual machine gets the memory from its host."""

TURNS = 5
"""Turns a round: one is short, and they differ much."""

PARTS: tuple[Part, ...] = ("backbone", "clip", "vae")


def measure(models: Path, checkpoint: str, rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Load all of a checkpoint and read its file, in turns."""
    path = models / "checkpoints" / f"{checkpoint}.safetensors"
    return measure_parts(models, path, [Recipe(part, "checkpoints", path.name) for part in PARTS], rounds)


def measure_parts(models: Path, path: Path, parts: Sequence[Recipe], rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Load parts of a file and read the whole of it, in turns, in a process with a replica's environment."""
    with patch.dict(os.environ, ENVIRONMENT), ProcessPoolExecutor(1, get_context("spawn")) as replica:
        loads, reads = replica.submit(_times, models, path, parts, rounds).result()
    load = Series(NAME, f"{path.stem}, load", "serve-app", "s", loads)
    read = Series(NAME, f"{path.stem}, read the file", "page cache", "s", reads)
    return [load, read], [ratio(NAME, f"{path.stem}: load over reading the file", load, read, "<= 1.3")]


def _times(models: Path, path: Path, parts: Sequence[Recipe], rounds: int) -> tuple[list[float], list[float]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loads: list[float] = []
    reads: list[float] = []
    for turn in range(WARM_UP + TURNS * rounds):
        read = _read(path)
        weights = Weights(Catalog(models), device, dtype="auto", vae_dtype="auto", budget_bytes=24 * 2**30)
        began = time.perf_counter()
        for part in parts:
            getattr(weights, part.part)(part)
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        del weights
        gc.collect()
        if turn >= WARM_UP:
            loads.append(took)
            reads.append(read)
    return loads, reads


def _read(path: Path) -> float:
    """Return the seconds to read the whole file into new memory."""
    began = time.perf_counter()
    with path.open("rb") as file:
        memory = bytearray(path.stat().st_size)
        file.readinto(memory)
    return time.perf_counter() - began
