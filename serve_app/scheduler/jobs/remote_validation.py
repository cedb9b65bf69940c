"""Runs VALIDATE_INPUTS and IS_CHANGED of node classes on workers, before a job is accepted.

Nothing is durable: a submission waits for the result, and its client retries without one (decision 9).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence

from serve_app.errors import InvalidSubmissionError, NotReadyError
from serve_app.graph.graph import Graph
from serve_app.graph.plan import Pool, takes
from serve_app.graph.spec import NodeSpec
from serve_app.scheduler.core.replicas import ReplicaRecord
from serve_app.scheduler.protocol.client import Prevalidation
from serve_app.scheduler.protocol.messages import Check, Checked

CHECK_S = 30.0
"""How long a submission waits for a replica and its result."""
LOOK_S = 0.1
"""The interval at which a submission looks for a replica."""
MAX_LOSSES = 2
"""Replicas that may be lost while they check a submission before it is refused, as its classes may be the cause."""


class RemoteValidation:
    """The running checks. send: sends a message to a replica. replica: returns the next one of a pool to use."""

    def __init__(
        self,
        pools: Sequence[Pool],
        replica: Callable[[str], ReplicaRecord | None],
        send: Callable[[str, Check], None],
    ) -> None:
        self._pools = pools
        self._next = replica
        self._send = send
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Checked]] = {}
        self._asked: dict[str, set[int]] = {}
        self._waiting: dict[str, int] = {}

    async def check(self, graph: Graph, outputs: Sequence[str], specs: Mapping[str, NodeSpec]) -> Prevalidation:
        """Check every node with own checks in the outputs' ancestry.

        Errors: NotReadyError after CHECK_S without an answer; InvalidSubmissionError if MAX_LOSSES replicas were lost.
        """
        asked: dict[str, list[str]] = {}
        for node_id in graph.ancestors(outputs):
            spec = specs[graph.nodes[node_id].class_type]
            pool = next((pool.name for pool in self._pools if takes(pool, spec)), None)
            # The planner reports a node that no pool takes.
            if spec.needs_prevalidation and pool is not None:
                asked.setdefault(pool, []).append(node_id)
        answers = await asyncio.gather(*(self._ask(pool, graph, tuple(ids)) for pool, ids in asked.items()))
        problems = tuple(problem for answer in answers for problem in answer.problems)
        return Prevalidation(problems, {k: v for answer in answers for k, v in answer.fingerprints.items()})

    def answered(self, answer: Checked) -> None:
        """Pass a replica's result to the waiting check; drop it without one."""
        future = self._answers.get(answer.check_id)
        if future is not None and not future.done():
            future.set_result(answer)

    def lost(self, replica_id: str) -> None:
        """Retry the checks of a lost replica on another one."""
        for number in self._asked.pop(replica_id, ()):
            if (future := self._answers.get(number)) is not None:
                future.cancel()

    def under_way(self, replica_id: str) -> bool:
        """Whether a check runs on the replica."""
        return bool(self._asked.get(replica_id))

    def waiting(self, pool: str) -> int:
        """Return the number of checks that wait for a replica of the pool, which scales a pool up from zero."""
        return self._waiting.get(pool, 0)

    async def _ask(self, pool: str, graph: Graph, node_ids: tuple[str, ...]) -> Checked:
        classes = ", ".join(sorted({graph.nodes[node_id].class_type for node_id in node_ids}))
        try:
            async with asyncio.timeout(CHECK_S):
                for _ in range(MAX_LOSSES):
                    replica = await self._replica(pool)
                    number = next(self._numbers)
                    future: asyncio.Future[Checked] = asyncio.get_running_loop().create_future()
                    self._answers[number] = future
                    self._asked.setdefault(replica, set()).add(number)
                    try:
                        self._send(replica, Check(number, graph.nodes, node_ids))
                        await asyncio.wait([future])
                        if not future.cancelled():
                            return future.result()
                    finally:
                        del self._answers[number]
                        self._asked.get(replica, set()).discard(number)
            raise InvalidSubmissionError(
                f"{MAX_LOSSES} replicas of pool {pool} were lost while they checked the inputs of {classes}"
            )
        except TimeoutError as error:
            raise NotReadyError(
                f"no replica of pool {pool} has checked the inputs of {classes} within {CHECK_S:g} s", retry_after_s=5
            ) from error

    async def _replica(self, pool: str) -> str:
        """Return the least busy replica of the pool, a quarantined one last; wait until there is one."""
        self._waiting[pool] = self.waiting(pool) + 1
        try:
            while (replica := self._next(pool)) is None:
                await asyncio.sleep(LOOK_S)
        finally:
            self._waiting[pool] -= 1
        return replica.info.replica_id
