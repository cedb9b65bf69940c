"""Processes that are the ranks of one replica on a CPU, over gloo."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from pickle import dumps, loads
from tempfile import mkdtemp
from typing import Any, TypeVar

import torch

from serve_app.engine.engine import Engine
from serve_app.engine.node_runtime import NodeRuntime
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.errors import RankLostError
from serve_app.models.network import ForwardOptions
from serve_app.models.ranks.follower import Follower
from serve_app.models.ranks.group import RankGroup
from serve_app.models.ranks.leader import Leader
from serve_app.models.ranks.meeting import Address, Meeting
from serve_app.models.weights.weights import Weights
from serve_app.sampling.request import SamplingRequest
from serve_app.store.models.catalog import Catalog

T = TypeVar("T")

LATE_S = 60.0
"""How long ranks wait for each other, on a busy machine."""
ANSWER_S = 400.0
"""How long one group of ranks may take for all that it is asked."""
END_S = 10.0
"""How long ranks that have nothing left to do may take to end."""
CPU = torch.device("cpu")


def weights_of(
    models: Path, leader: Leader | None = None, device: torch.device = CPU, group: RankGroup | None = None
) -> Weights:
    """Return the weights of a rank, which compute in fp32. leader: of the first one, whose device it is.

    group: of another one.
    """
    if leader is not None:
        device, group = leader.group.device, leader.group
    options = ForwardOptions(ranks=leader, weight_ranks=None if group is None else group.weights)
    return Weights(Catalog(models), device, dtype="fp32", vae_dtype="fp32", budget_bytes=10**9, options=options)


def run_ranks(
    folder: Path,
    sizes: Sequence[int],
    lead: Callable[[Path, Leader], Any],
    *,
    by_network: bool = False,
    cards: bool = False,
) -> dict[int, Any]:
    """Return what `lead` returns on rank 0 of groups of these sizes, one after the other.

    folder: with the folder models. The largest group is first. by_network: they meet as ranks on several hosts do.
    cards: each has a GPU. Errors: AssertionError for ranks that do not answer in time, or fail; none of them is left
    running.
    """
    folder = Path(mkdtemp(dir=folder))
    (folder / "models").symlink_to(folder.parent / "models")
    meetings: dict[int, Meeting] = {}
    for size in sizes:
        meetings[size] = Address.on("127.0.0.1") if by_network else folder / f"ranks of {size}"
        if isinstance(meetings[size], Path):
            (folder / f"ranks of {size}").mkdir()
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, lead.__module__])
    receiver, sender = context.Pipe(duplex=False)
    ranks = [
        context.Process(target=_rank, args=(folder, rank, meetings, lead, sender, cards), daemon=True)
        for rank in range(sizes[0])
    ]
    try:
        for rank in ranks:
            rank.start()
        # Without this process's end, the pipe ends with the ranks.
        sender.close()
        found = {size: _answer(receiver, size) for size in sizes}
        end = time.monotonic() + END_S
        for rank in ranks:
            rank.join(max(0.0, end - time.monotonic()))
    finally:
        for rank in ranks:
            if rank.is_alive():
                rank.kill()
                rank.join(END_S)
        receiver.close()
    return found


def _answer(receiver: Connection, size: int) -> Any:
    assert receiver.poll(ANSWER_S), f"{size} ranks have not answered in {ANSWER_S:.0f} seconds"
    try:
        answer = loads(receiver.recv_bytes())
    except EOFError:
        raise AssertionError(f"{size} ranks ended without an answer") from None
    assert not isinstance(answer, BaseException), f"{size} ranks failed: {answer!r}"
    return answer


def _rank(
    folder: Path,
    rank: int,
    meetings: Mapping[int, Meeting],
    lead: Callable[[Path, Leader], Any],
    results: Connection,
    cards: bool,
) -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if cards else CPU
    if cards:
        torch.cuda.set_device(device)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for size, meeting in meetings.items():
        if rank >= size:
            break
        group = RankGroup(meeting, rank, size, device, LATE_S)
        if rank:
            Follower(group, weights_of(folder / "models", device=device, group=group)).run()
            group.close()
            continue
        leader = Leader(group)
        try:
            # By value: torch's own pickling has a tensor's memory fetched from the rank, which may have ended by then.
            results.send_bytes(dumps(lead(folder / "models", leader)))
        except BaseException as error:
            results.send_bytes(dumps(AssertionError(repr(error))))
            raise
        with suppress(RankLostError):
            leader.close()


def drawn(weights: Weights, jobs: Sequence[SamplingRequest], *, strict: bool = False) -> list[Any]:
    """Return the latents of jobs that run together in an engine of their own. strict: none shares a forward."""

    async def together(runtime: NodeRuntime) -> list[Any]:
        return await asyncio.gather(*(runtime.sample(job) for job in jobs))

    return [sampled.latents for sampled in in_engine(weights, together, strict=strict)]


def in_engine(weights: Weights, work: Callable[[NodeRuntime], Awaitable[T]], *, strict: bool = False) -> T:
    """Return what work makes with an engine of its own."""
    engine = Engine(2**16, HostTimeline())

    async def made() -> T:
        return await work(EngineRuntime(engine, weights).bind(lambda done, steps: None, strict=strict))

    try:
        return asyncio.run(made())
    finally:
        engine.close()
