"""The ranks of a replica as Ray actors: one for each device but the first, which the replica itself has.

They are in the replica's placement group, on one host or several, and end with it: Ray ends the actors of an owner that
is gone. The other way round the replica ends its own process once a rank has ended, so its tasks go to other replicas
at once. A notice that the host of any of them is about to go is one to the whole replica.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from serve_app import log
from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.config.preemption import PreemptionConfig
from serve_app.deployments import telemetry
from serve_app.deployments.preemption import notice
from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from serve_app.models.ranks.leader import Leader
    from serve_app.models.ranks.meeting import Meeting

_log = log.get("replica")


class Rank:
    """One rank of a replica, in a process of its own. Its event loop is free while a thread carries out orders."""

    def __init__(self, config: AppConfig, pool: PoolConfig, replica_id: str, rank: int) -> None:
        telemetry.configure(config, "rank", replica=f"{replica_id}.{rank}")
        self._config, self._pool, self._rank = config, pool, rank

    async def check(self) -> str | None:
        """Return why this rank cannot compute, in a line; None if it can."""
        from serve_app.replica.ranks import reason_against

        return reason_against(self._pool, self._rank)

    async def follow(self, meeting: Meeting) -> None:
        """Carry out the first rank's orders, until that ends or something fails."""
        from serve_app.replica.ranks import follow

        await asyncio.to_thread(follow, self._config, self._pool, self._rank, meeting)

    async def notice(self) -> tuple[str, float]:
        """Wait for a notice of the end of this rank's host, as `preemption.notice`."""
        return await notice(ray.get_runtime_context().get_node_id(), self._config.preemption)


class Ranks:
    """The other ranks of a replica, from their start to their end."""

    def __init__(self, actors: Sequence[Any], meeting: Meeting) -> None:
        self.leader: Leader | None = None
        self._actors = actors
        self._meeting = meeting
        self._ending: list[asyncio.Task[str]] = []
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: AppConfig, pool: PoolConfig, replica_id: str, environment: dict[str, Any]) -> Ranks:
        """Start the ranks of a pool's replica in its placement group, and join them as the first.

        environment: the runtime_env of their processes. Errors: ConfigError for a rank that has no device, or cannot
        reach the others.
        """
        group = get_current_placement_group()
        kind = ray.remote(Rank)
        actors = [
            kind.options(
                num_cpus=pool.num_cpus,
                num_gpus=pool.gpus,
                resources=dict(pool.resources),
                runtime_env=environment,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            ).remote(config, pool, replica_id, rank)
            for rank in range(1, pool.devices)
        ]
        ranks = cls(actors, _meeting(pool))
        try:
            await ranks._join(pool)
        except BaseException:
            ranks.close()
            raise
        return ranks

    async def _join(self, pool: PoolConfig) -> None:
        from serve_app.replica.ranks import lead

        reasons = await asyncio.gather(*(actor.check.remote() for actor in self._actors))
        if reason := next((reason for reason in reasons if reason is not None), None):
            raise ConfigError(reason)
        self._ending = [asyncio.create_task(_end(actor.follow.remote(self._meeting))) for actor in self._actors]
        leading = asyncio.create_task(asyncio.to_thread(lead, pool, self._meeting))
        done, _ = await asyncio.wait([leading, *self._ending], return_when=asyncio.FIRST_COMPLETED)
        if leading not in done:
            raise ConfigError(self._ended())
        self.leader = leading.result()

    async def notice(self, preemption: PreemptionConfig) -> tuple[str, float]:
        """Wait for a notice of the end of any rank's host, as `preemption.notice`.

        Errors: RayError of a rank that has ended.
        """

        async def of_rank(actor: Any) -> tuple[str, float]:
            found: tuple[str, float] = await actor.notice.remote()
            return found

        looks = [notice(ray.get_runtime_context().get_node_id(), preemption)]
        # Those of one host see what this process does.
        if not isinstance(self._meeting, Path):
            looks += [of_rank(actor) for actor in self._actors]
        looking = [asyncio.create_task(look) for look in looks]
        try:
            done, _ = await asyncio.wait(looking, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in looking:
                task.cancel()
        return done.pop().result()

    def watch(self, exit: Callable[[int], object] = os._exit) -> None:
        """End this process once a rank has ended: forwards that wait for it never return."""
        self._watching = asyncio.create_task(self._watch(exit))

    async def _watch(self, exit: Callable[[int], object]) -> None:
        await asyncio.wait(self._ending, return_when=asyncio.FIRST_COMPLETED)
        _log.error("this replica ends: %s", self._ended())
        exit(1)

    def _ended(self) -> str:
        """Return which rank has ended, and why."""
        rank, ending = next((rank, ending) for rank, ending in enumerate(self._ending, 1) if ending.done())
        return f"rank {rank} of its devices has ended: {ending.result()}"

    def close(self) -> None:
        """End the ranks."""
        for task in (self._watching, *self._ending):
            if task is not None:
                task.cancel()
        for actor in self._actors:
            ray.kill(actor)
        if isinstance(self._meeting, Path):
            shutil.rmtree(self._meeting, ignore_errors=True)


def _meeting(pool: PoolConfig) -> Meeting:
    """Return where the ranks of a replica whose first is this process meet."""
    if not pool.spans_hosts:
        return Path(mkdtemp(prefix="serve-app-ranks-"))
    from serve_app.models.ranks.meeting import Address

    return Address.on(ray.util.get_node_ip_address())


async def _end(following: Any) -> str:
    """Return why a rank has ended, once it has."""
    try:
        await following
    except RayError as error:
        return str(error).strip().splitlines()[-1]
    return "its work is over"
