"""How processes reach the scheduler: one named, detached actor, found by name and called until it answers.

Ray says where the actor is; the calls go to it by a connection of our own (`rpc.py`). What holds an object reference
or an actor's handle goes as Ray's own call, since Ray counts who has references.

The scheduler may be restarting when it is called, so every call here is one that may be made twice. Who waits for a
scheduler that does not come back is told UnavailableError.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

import ray
import ray.actor
from ray import cloudpickle
from ray.exceptions import RayActorError, RayTaskError

from serve_app.deployments.rpc import Connection, DisconnectedError, UnpicklableError
from serve_app.errors import NotReadyError
from serve_app.graph.spec import NodeSpec
from serve_app.packs.routes import PackRoute
from serve_app.scheduler.protocol.client import Accepted, SchedulerClient, Submission
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import ReplicaInfo, SchedulerForReplicas

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


class SchedulerVerbs(SchedulerClient, SchedulerForReplicas, Protocol):
    """All that the scheduler can be asked, by whomever."""


def scheduler_client(me: bytes = b"") -> SchedulerVerbs:
    """Return a client of the scheduler's actor. me: a replica's `own_actor`, so that its death is noticed."""
    return cast(SchedulerVerbs, SchedulerHandle(me))


SIGNATURES = {
    name: inspect.signature(verb)
    for protocol in (SchedulerClient, SchedulerForReplicas)
    for name, verb in vars(protocol).items()
    if inspect.iscoroutinefunction(verb)
}
"""The verbs of both protocols; what arguments each takes."""


class SchedulerHandle:
    """Calls the actor's verbs by name; those written out here are more than a call. `scheduler_client` types it."""

    def __init__(self, me: bytes = b"") -> None:
        self._me = me
        self._connection: tuple[Any, Connection] | None = None
        self._connecting: asyncio.Task[tuple[Any, Connection]] | None = None
        self._specs: dict[str | None, tuple[float, str, Mapping[str, NodeSpec]]] = {}
        self._routes: Mapping[str, tuple[PackRoute, ...]] = {}
        self._routes_at_s = float("-inf")

    def __getattr__(self, verb: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if (signature := SIGNATURES.get(verb)) is None:
            raise AttributeError(f"the scheduler has no verb {verb!r}")

        def call(*arguments: Any, **named: Any) -> Coroutine[Any, Any, Any]:
            bound = signature.bind(self, *arguments, **named)
            bound.apply_defaults()
            return self._call(verb, *bound.args[1:])

        return call

    async def submit(self, submission: Submission) -> Accepted:
        try:
            accepted: Accepted = await self._once("submit", submission)
        except DisconnectedError:
            accepted = await self._call("submit", replace(submission, id_is_new=False))
        return accepted

    async def answered(self, job_id: str) -> None:
        """Say so; a scheduler that does not hear it lets the job's events go a little later by itself."""
        if self._connection is not None:
            self._connection[1].tell("answered", job_id)

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

    async def join(self, info: ReplicaInfo, specs: list[NodeSpec], host: HostStats) -> int:
        epoch: int = await self._call("join", info, specs, host, self._me)
        return epoch

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
