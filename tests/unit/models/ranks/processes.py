"""Processes that are the ranks of one replica on a CPU, over gloo."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.errors import RankLostError
from serve_app.models.network import ForwardOptions
from serve_app.models.ranks.follower import Follower
from serve_app.models.ranks.group import RankGroup
from serve_app.models.ranks.leader import Leader
from serve_app.models.weights.weights import Weights
from serve_app.sampling.request import SamplingRequest
from serve_app.store.models.catalog import Catalog

LATE_S = 120.0
"""How long ranks wait for each other, on a busy machine."""
CPU = torch.device("cpu")


def weights_of(models: Path, leader: Leader | None = None) -> Weights:
    options = ForwardOptions(ranks=leader)
    return Weights(Catalog(models), CPU, dtype="auto", vae_dtype="auto", budget_bytes=10**9, options=options)


def run_ranks(folder: Path, sizes: Sequence[int], lead: Callable[[Path, Leader], Any]) -> dict[int, Any]:
    """Return what `lead` returns on rank 0 of groups of these sizes, one after the other.

    folder: with the folder models. The largest group is first.
    """
    folder = Path(mkdtemp(dir=folder))
    (folder / "models").symlink_to(folder.parent / "models")
    for size in sizes:
        (folder / f"ranks of {size}").mkdir()
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, lead.__module__])
    results = context.SimpleQueue()
    ranks = [
        context.Process(target=_rank, args=(folder, rank, sizes, lead, results), daemon=True)
        for rank in range(sizes[0])
    ]
    for rank in ranks:
        rank.start()
    found = {size: results.get() for size in sizes}
    for rank in ranks:
        rank.join()
    return found


def _rank(folder: Path, rank: int, sizes: Sequence[int], lead: Callable[[Path, Leader], Any], results: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for size in sizes[: sum(rank < size for size in sizes)]:
        group = RankGroup(folder / f"ranks of {size}", rank, size, CPU, LATE_S)
        if rank:
            Follower(group, weights_of(folder / "models")).run()
            group.close()
            continue
        leader = Leader(group)
        try:
            results.put(lead(folder / "models", leader))
        except BaseException as error:
            results.put(error)
            raise
        with suppress(RankLostError):
            leader.close()


def drawn(weights: Weights, jobs: Sequence[SamplingRequest]) -> list[Any]:
    """Return the latents of jobs that run together in an engine of their own."""
    engine = Engine(2**16, HostTimeline())

    async def together() -> Any:
        runtime = EngineRuntime(engine, weights).bind(lambda done, steps: None)
        return await asyncio.gather(*(runtime.sample(job) for job in jobs))

    try:
        return [sampled.latents for sampled in asyncio.run(together())]
    finally:
        engine.close()
