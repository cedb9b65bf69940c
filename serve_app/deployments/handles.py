"""How processes reach the scheduler: one named, detached actor, found by name and called until it answers.

Ray says where the actor is; the calls go to it by a connection of our own (`rpc.py`). What holds an object reference
or an actor's handle goes as Ray's own call, since Ray counts who has references.

The scheduler may be restarting when it is called, so every call here is one that may be made twice. Who waits for a
scheduler that does not come back is told UnavailableError.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import ray
import ray.actor
from ray import cloudpickle
from ray.exceptions import RayActorError, RayTaskError

from serve_app.deployments.rpc import Connection, DisconnectedError, UnpicklableError
from serve_app.errors import NotReadyError
from serve_app.events import Event
from serve_app.graph.graph import Graph
from serve_app.graph.plan import TaskId
from serve_app.graph.spec import NodeSpec
from serve_app.packs.routes import PackRoute
from serve_app.scheduler.core.demand import Demand
from serve_app.scheduler.protocol.client import (
    Accepted,
    Attached,
    JobKeys,
    JobView,
    News,
    Prevalidation,
    QueueBounds,
    QueueCount,
    QueueView,
    Reader,
    Standing,
    Submission,
    Unfinished,
)
from serve_app.scheduler.protocol.cluster_view import ClusterView, HostStats, Trouble
from serve_app.scheduler.protocol.messages import Free, Message, ReplicaInfo, Report, SocketSaid
from serve_app.store.database.changes import JobQuery
from serve_app.store.files.reserved import Contents

# Here and not above: whoever only names them needs no database.
if TYPE_CHECKING:
    from serve_app.store.database.queries import Inquiry
    from serve_app.store.tenants.pauses import Pause

T = TypeVar("T")

NAME = "scheduler"
NAMESPACE = "serve_app"
SPECS_S = 5.0
PATIENCE_S = 15.0
"""How long a call waits for a scheduler that is being restarted."""
AGAIN_S = 0.2
"""How long after a failed call it is made again."""
ADDRESS_S = 3.0
"""How long the actor may take to say where it listens, which it does as soon as it runs."""
OF_RAY = (ray.ObjectRef, ray.actor.ActorHandle)
"""What only Ray may carry."""


def own_actor() -> bytes:
    """Return a handle of this process's actor, pickled: whoever unpickles it imports what the actor's class needs."""
    return cloudpickle.dumps(ray.get_runtime_context().current_actor)  # type: ignore[no-any-return]


class SchedulerHandle:
    """SchedulerClient and SchedulerForReplicas over the actor. me: a replica's `own_actor`, so its death is noticed."""

    def __init__(self, me: bytes = b"") -> None:
        self._me = me
        self._connection: tuple[Any, Connection] | None = None
        self._connecting: asyncio.Task[tuple[Any, Connection]] | None = None
        self._specs: dict[str | None, tuple[float, str, Mapping[str, NodeSpec]]] = {}
        self._routes: Mapping[str, tuple[PackRoute, ...]] = {}
        self._routes_at_s = float("-inf")

    async def submit(self, submission: Submission) -> Accepted:
        try:
            return await self._once("submit", submission)  # type: ignore[no-any-return]
        except DisconnectedError:
            again = replace(submission, id_is_new=False)
            return await self._call("submit", again)  # type: ignore[no-any-return]

    async def cancel(self, job_id: str, tenant: str = "") -> bool:
        return await self._call("cancel", job_id, tenant)  # type: ignore[no-any-return]

    async def cancel_all(self, job_ids: Sequence[str] | None, which: Unfinished | None = None, tenant: str = "") -> int:
        return await self._call("cancel_all", job_ids, which, tenant)  # type: ignore[no-any-return]

    async def count(self, tenant: str = "") -> QueueCount:
        return await self._call("count", tenant)  # type: ignore[no-any-return]

    async def queue(self, bounds: QueueBounds, tenant: str = "") -> QueueView:
        return await self._call("queue", bounds, tenant)  # type: ignore[no-any-return]

    async def job(self, job_id: str, tenant: str = "") -> JobView | None:
        return await self._call("job", job_id, tenant)  # type: ignore[no-any-return]

    async def standing(self, job_id: str, tenant: str = "") -> Standing | None:
        return await self._call("standing", job_id, tenant)  # type: ignore[no-any-return]

    async def preview(self, job_id: str, tenant: str = "") -> Event | None:
        return await self._call("preview", job_id, tenant)  # type: ignore[no-any-return]

    async def inquire(self, inquiry: Inquiry[T]) -> T:
        return await self._call("inquire", inquiry)  # type: ignore[no-any-return]

    async def events(self, job_id: str, after: int, timeout_s: float, tenant: str = "") -> list[Event]:
        return await self._call("events", job_id, after, timeout_s, tenant)  # type: ignore[no-any-return]

    async def keys(self, query: JobQuery) -> JobKeys:
        return await self._call("keys", query)  # type: ignore[no-any-return]

    async def views(self, job_ids: Sequence[str], brief: bool, tenant: str = "") -> tuple[JobView, ...]:
        return await self._call("views", job_ids, brief, tenant)  # type: ignore[no-any-return]

    async def forget(self, job_ids: Sequence[str] | None, tenant: str = "") -> None:
        await self._call("forget", job_ids, tenant)

    async def remove(self, job_ids: Sequence[str] | None, tenant: str = "") -> tuple[int, tuple[str, ...]]:
        return await self._call("remove", job_ids, tenant)  # type: ignore[no-any-return]

    async def warm(self, models: Sequence[str], pool: str | None) -> tuple[str, ...]:
        return await self._call("warm", tuple(models), pool)  # type: ignore[no-any-return]

    async def pause(self, pause: Pause, paused: bool) -> tuple[Pause, ...]:
        return await self._call("pause", pause, paused)  # type: ignore[no-any-return]

    async def hear(self, replica_id: str, said: SocketSaid) -> None:
        await self._call("hear", replica_id, said)

    async def free(self, wish: Free) -> None:
        await self._call("free", wish)

    async def answered(self, job_id: str) -> None:
        """Say so; a scheduler that does not hear it lets the job's events go a little later by itself."""
        if self._connection is not None:
            self._connection[1].tell("answered", job_id)

    async def attach(self, feed: str, token: str) -> Attached:
        return await self._call("attach", feed, token)  # type: ignore[no-any-return]

    async def news(self, readers: Mapping[str, Reader], queue: int, timeout_s: float) -> News:
        return await self._call("news", readers, queue, timeout_s)  # type: ignore[no-any-return]

    async def specs(self, pool: str | None = None) -> Mapping[str, NodeSpec]:
        """Return the node classes, at most SPECS_S old: every submission needs them, and they hardly ever change."""
        at_s, tag, specs = self._specs.get(pool, (float("-inf"), "", {}))
        if time.monotonic() - at_s > SPECS_S:
            # Those of a ComfyUI take a tenth of a second on their way, so they go only where they have changed.
            tag, changed = await self._call("specs_since", tag, pool)
            specs = specs if changed is None else changed
            self._specs[pool] = (time.monotonic(), tag, specs)
        return specs

    async def routes(self) -> Mapping[str, tuple[PackRoute, ...]]:
        """Return the routes of node packs, likewise: every request for a path that is not there needs them."""
        if time.monotonic() - self._routes_at_s > SPECS_S:
            self._routes, self._routes_at_s = await self._call("routes"), time.monotonic()
        return self._routes

    async def check(self, graph: Graph, outputs: Sequence[str]) -> Prevalidation:
        return await self._call("check", graph, tuple(outputs))  # type: ignore[no-any-return]

    async def story(self, job_id: str, tenant: str = "") -> Sequence[tuple[float, str]]:
        return await self._call("story", job_id, tenant)  # type: ignore[no-any-return]

    async def cluster(self) -> ClusterView:
        return await self._call("cluster")  # type: ignore[no-any-return]

    async def ready(self) -> Sequence[Trouble]:
        return await self._call("ready")  # type: ignore[no-any-return]

    async def join(self, info: ReplicaInfo, specs: list[NodeSpec], host: HostStats) -> int:
        return await self._call("join", info, specs, host, self._me)  # type: ignore[no-any-return]

    async def poll(self, replica_id: str, epoch: int, after: int) -> list[tuple[int, Message]]:
        return await self._call("poll", replica_id, epoch, after)  # type: ignore[no-any-return]

    async def report(self, replica_id: str, epoch: int, reports: list[Report], host: HostStats | None) -> None:
        await self._call("report", replica_id, epoch, reports, host)

    async def reserve(
        self, task_id: TaskId, node_id: str, key: str, at_least: int, contents: Contents
    ) -> tuple[int, bool]:
        return await self._call("reserve", task_id, node_id, key, at_least, contents)  # type: ignore[no-any-return]

    async def backlog(self, pool: str) -> Demand:
        """Return what a pool is asked for."""
        return await self._call("backlog", pool)  # type: ignore[no-any-return]

    async def leave(self, replica_id: str, epoch: int) -> None:
        await self._call("leave", replica_id, epoch)

    async def trouble(self, replica_id: str, pool: str, why: str, lost: bool = True) -> None:
        await self._call("trouble", replica_id, pool, why, lost)

    async def _call(self, method: str, *arguments: Any) -> Any:
        """Call the scheduler, finding it again if it died. Errors: the method's own; NotReadyError after PATIENCE_S."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self._once(method, *arguments)
            except DisconnectedError as error:
                if time.monotonic() > deadline:
                    raise NotReadyError(f"the scheduler is not there: {error}") from error
                await asyncio.sleep(AGAIN_S)

    async def _once(self, method: str, *arguments: Any) -> Any:
        """Call the scheduler once. Errors: the method's own; DisconnectedError."""
        actor, connection = await self._connected()
        try:
            return await connection.call(method, *arguments)
        except UnpicklableError:
            return await _by_ray(actor, connection, method, arguments)

    async def _connected(self) -> tuple[Any, Connection]:
        """Return the actor and the connection to it. Errors: DisconnectedError."""
        if self._connection is None or self._connection[1].ended.is_set():
            if self._connecting is None or self._connecting.done():
                self._connecting = asyncio.create_task(_connect())
                # Whoever waited for it may have given up, and then nobody asks how it ended.
                self._connecting.add_done_callback(lambda done: done.cancelled() or done.exception())
            # It is everybody's: whoever gives up waiting for it leaves it to the others.
            self._connection = await asyncio.shield(self._connecting)
        return self._connection


async def _connect() -> tuple[Any, Connection]:
    try:
        actor = await asyncio.to_thread(ray.get_actor, NAME, NAMESPACE)
        async with asyncio.timeout(ADDRESS_S):
            address = await actor.address.remote()
        return actor, await Connection.open(address, OF_RAY)
    except (RayActorError, ValueError, OSError, TimeoutError) as error:
        raise DisconnectedError(type(error).__name__) from error


async def _by_ray(actor: Any, connection: Connection, method: str, arguments: tuple[Any, ...]) -> Any:
    """Make a call as Ray makes it. Errors: the method's own; DisconnectedError once the scheduler has died.

    A death is the connection's to notice: once the wall clock was set back, Ray may never say so (its timers are wall
    clock's, ray 2.60).
    """
    answer = asyncio.ensure_future(actor.call.remote(method, *arguments))
    ended = asyncio.ensure_future(connection.ended.wait())
    try:
        await asyncio.wait({answer, ended}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise DisconnectedError("the scheduler has ended")
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise DisconnectedError(type(error).__name__) from error
    finally:
        answer.cancel()
        ended.cancel()
