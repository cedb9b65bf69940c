"""The client of the scheduler's actor: found by name, and called until it answers.

Ray gives the actor's address and keys; calls go by ZeroMQ (`rpc.py`). Calls with an object reference or an actor
handle go through Ray, since Ray counts references.

The scheduler may restart during a call, so every call is idempotent and retried. Errors: UnavailableError if it does
not come back in time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

import ray
import ray.actor
from ray.exceptions import RayActorError, RayTaskError

from serve_app.deployments.codec import UnsendableError
from serve_app.deployments.rpc import Connection, DisconnectedError
from serve_app.deployments.verbs import CALLED, VERBS
from serve_app.errors import NotReadyError
from serve_app.graph.spec import NodeSpec
from serve_app.packs.routes import PackRoute
from serve_app.scheduler.protocol.client import Accepted, SchedulerClient
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import ReplicaInfo, SchedulerForReplicas
from serve_app.store.database.changes import Submission

NAME = "scheduler"
NAMESPACE = "serve_app"
OF_SERVE = "serve"
"""The namespace of Serve's replicas."""
SPECS_S = 5.0
PATIENCE_S = 15.0
"""How long a call waits for a restarting scheduler."""
AGAIN_S = 0.2
"""The delay before a retry."""
ADDRESS_S = 3.0
"""The timeout for the actor's address."""
OF_RAY = (ray.ObjectRef, ray.actor.ActorHandle)
"""Types that only Ray can transfer."""


def own_actor() -> str:
    """Return the name of this process's actor, which is a replica of Serve's."""
    return str(ray.get_runtime_context().get_actor_name())


class SchedulerVerbs(SchedulerClient, SchedulerForReplicas, Protocol):
    """Both protocols of the scheduler."""


def scheduler_client(me: str = "") -> SchedulerVerbs:
    """Return a client of the scheduler's actor. me: a replica's `own_actor`, so that its death is noticed."""
    return cast(SchedulerVerbs, SchedulerHandle(me))


class SchedulerHandle:
    """Forwards verbs to the actor by name; those defined here do more. `scheduler_client` adds the types."""

    def __init__(self, me: str = "") -> None:
        self._me = me
        self._connection: tuple[Any, Connection] | None = None
        self._connecting: asyncio.Task[tuple[Any, Connection]] | None = None
        self._specs: dict[str | None, tuple[float, str, Mapping[str, NodeSpec]]] = {}
        self._routes: Mapping[str, tuple[PackRoute, ...]] = {}
        self._routes_at_s = float("-inf")

    def __getattr__(self, verb: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        if verb not in CALLED:
            raise AttributeError(f"the scheduler has no verb {verb!r}")
        signature = CALLED[verb].signature

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
        """Report it without waiting; if it is lost, the scheduler releases the job's events later by itself."""
        if self._connection is not None:
            self._connection[1].tell("answered", job_id)

    async def specs(self, pool: str | None = None) -> Mapping[str, NodeSpec]:
        """Return the node classes, cached for SPECS_S: every submission needs them, and they rarely change."""
        at_s, tag, specs = self._specs.get(pool, (float("-inf"), "", {}))
        if time.monotonic() - at_s > SPECS_S:
            # Those of a ComfyUI take a tenth of a second on their way, so they go only where they have changed.
            tag, changed = await self._call("specs_since", tag, pool)
            specs = specs if changed is None else changed
            self._specs[pool] = (time.monotonic(), tag, specs)
        return specs

    async def routes(self) -> Mapping[str, tuple[PackRoute, ...]]:
        """Return the routes of node packs, cached too: every request for an unknown path needs them."""
        if time.monotonic() - self._routes_at_s > SPECS_S:
            self._routes, self._routes_at_s = await self._call("routes"), time.monotonic()
        return self._routes

    async def join(self, info: ReplicaInfo, specs: list[NodeSpec], host: HostStats) -> int:
        epoch: int = await self._call("join", info, specs, host, self._me)
        return epoch

    async def _call(self, method: str, *arguments: Any) -> Any:
        """Call the scheduler, with reconnection. Errors: the method's own; NotReadyError after PATIENCE_S."""
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
        except UnsendableError:
            return await _by_ray(actor, connection, method, arguments)

    async def _connected(self) -> tuple[Any, Connection]:
        """Return the actor and the connection to it. Errors: DisconnectedError."""
        if self._connection is None or self._connection[1].ended.is_set():
            if self._connecting is None or self._connecting.done():
                self._connecting = asyncio.create_task(_connect())
                # Whoever waited for it may have given up, and then nobody asks how it ended.
                self._connecting.add_done_callback(lambda done: done.cancelled() or done.exception())
            # It is shared: a caller that is cancelled must not cancel it for the others.
            self._connection = await asyncio.shield(self._connecting)
        return self._connection


async def _connect() -> tuple[Any, Connection]:
    try:
        actor = await asyncio.to_thread(ray.get_actor, NAME, NAMESPACE)
        async with asyncio.timeout(ADDRESS_S):
            address = await actor.address.remote()
        return actor, await Connection.open(address, VERBS, OF_RAY)
    except (RayActorError, ValueError, OSError, TimeoutError) as error:
        raise DisconnectedError(type(error).__name__) from error


async def _by_ray(actor: Any, connection: Connection, method: str, arguments: tuple[Any, ...]) -> Any:
    """Call through Ray. Errors: the method's own; DisconnectedError if the scheduler has died.

    The connection detects a death: after the wall clock was set back, Ray may not (its timers use the wall clock, ray
    2.60).
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
