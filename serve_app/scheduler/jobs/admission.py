"""Turns a submission into a job: limits, number, signatures and plan, from one parse of its prompt.

The scheduler commits the result.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from serve_app.config import AppConfig
from serve_app.config.pool import NOT_STRICT, SHARED
from serve_app.config.quotas import NO_QUOTAS, Quotas
from serve_app.errors import InvalidGraphError, InvalidSubmissionError, Problem, QueueFullError
from serve_app.graph.destination import own_signatures, plan_whole
from serve_app.graph.files import is_quick
from serve_app.graph.graph import Graph
from serve_app.graph.parse import built, parse
from serve_app.graph.plan import OPTIMIZATIONS, Plan, Pool, is_strict, plan
from serve_app.graph.signature import salt_of, signatures
from serve_app.graph.spec import NodeSpec
from serve_app.limits import refused
from serve_app.scheduler.core.records import priority_of
from serve_app.store.database.changes import JobRow, Submission, made_from


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """The limits of submissions.

    max_queue: the most waiting jobs; client_share: the share of one client. client_priority: whether clients may set
    `front`, `number` and a priority; max_priority: its largest absolute value. share_results: whether jobs may use
    each other's results; across_tenants: also another tenant's, if they depend on none of its files. strict: the
    default of jobs. quotas: of tenants. gpus: of a replica, by pool. optimizations: settings by which pictures differ,
    of the pools that have some.
    """

    max_queue: int
    client_share: float
    client_priority: bool
    max_priority: int
    share_results: bool
    strict: bool
    quotas: Quotas = NO_QUOTAS
    across_tenants: bool = False
    gpus: Mapping[str, float] = field(default_factory=dict)
    optimizations: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: AppConfig) -> AdmissionRules:
        """Return the configured rules."""
        return cls(
            config.max_queue,
            config.client_share,
            config.client_priority,
            max_priority=config.max_priority,
            share_results=config.cache != "none",
            strict=config.strict,
            quotas=config.quotas,
            across_tenants=config.tenants is not None and config.tenants.shared_results,
            gpus={pool.name: pool.gpus or float(pool.runtime) for pool in config.pools},
            optimizations={pool.name: found for pool in config.pools if (found := pool.optimizations)},
        )


class Admission:
    """Admits the jobs of one scheduler.

    pools: as the planner sees them. specs: their node classes. fingerprint: (folder, name,
    tenant) -> a tag that changes with the file. next_order: the next job's position in the order of submission.
    """

    def __init__(
        self,
        rules: AdmissionRules,
        pools: Sequence[Pool],
        specs: Callable[[], Mapping[str, NodeSpec]],
        fingerprint: Callable[..., str],
        next_order: int,
    ) -> None:
        self.rules = rules
        self._pools = pools
        self._whole = frozenset(pool.name for pool in pools if pool.whole)
        self._specs = specs
        self._fingerprint = fingerprint
        self._next_order = next_order

    async def admit(
        self,
        submission: Submission,
        waiting: Callable[[str], Mapping[tuple[str, str | None], int]],
        next_seq: Callable[[], int],
    ) -> tuple[JobRow, Plan]:
        """Return the job that a submission becomes.

        waiting: checks the tenant's quotas and returns the number of waiting jobs by (tenant, client). next_seq: the
        cursor of its event.

        Errors: InvalidGraphError, InvalidSubmissionError, QueueFullError, QuotaError.
        """
        priority = priority_of(submission.extra_data)
        if not self.rules.client_priority and (submission.front or submission.number is not None or priority):
            raise InvalidSubmissionError(
                "this server serves jobs in the order in which they come: no 'front', 'number', 'priority'"
            )
        if abs(priority) > (most := self.rules.max_priority):
            raise InvalidSubmissionError(
                f"'priority' in 'extra_data' is {priority}; max_priority of the configuration allows {-most} to {most}"
            )
        # Stored with the job, so that a new configuration does not change queued jobs.
        extra_data = {"strict": True, **submission.extra_data} if self.rules.strict else submission.extra_data
        # Before the job has its number, since the store may be slow.
        graph = built(submission.prompt)
        signed = await self._signed(submission.job_id, graph, extra_data, submission.tenant)
        self._check_room(submission, waiting(submission.tenant))
        order = self._next_order
        planned = self._plan(graph, submission.targets, signed, extra_data)
        extra_data = self._with_optimizations(extra_data, planned)
        number = submission.number
        row = made_from(
            JobRow,
            submission,
            number=float(-order if submission.front else order) if number is None else number,
            order=order,
            extra_data=extra_data,
            created_s=time.time(),
            queued_seq=next_seq(),
        )
        self._next_order += 1
        return row, planned

    async def readmit(self, row: JobRow) -> Plan:
        """Plan the outputs that a job of an earlier epoch still lacks. Errors: InvalidGraphError."""
        graph = parse(row.prompt)
        signed = await self._signed(row.job_id, graph, row.extra_data, row.tenant)
        left = [node_id for node_id in row.targets if node_id not in row.outputs]
        return self._plan(graph, left, signed, row.extra_data)

    def _plan(
        self, graph: Graph, outputs: Sequence[str], signed: Mapping[str, str], extra_data: Mapping[str, object]
    ) -> Plan:
        """Plan a job for the one pool that it names, or for those that share workflows.

        Errors: InvalidGraphError, also for a strict job that only pools take which it must not use.
        """
        pool = str(extra_data.get("pool", SHARED))
        if pool in self._whole:
            return plan_whole(graph, outputs, signed, pool)
        pools = [p for p in self._pools if not p.whole and pool in (SHARED, p.name)]
        others = {p.name: keys for p in pools if (keys := self.rules.optimizations.get(p.name, {}).keys() & NOT_STRICT)}
        if not others or not is_strict(extra_data):
            return plan(graph, self._specs(), outputs, signed, pools)
        try:
            return plan(graph, self._specs(), outputs, signed, [p for p in pools if p.name not in others])
        except InvalidGraphError:
            # One that no pool takes at all is another error.
            plan(graph, self._specs(), outputs, signed, pools)
        named = "; ".join(f"pool {name} has {', '.join(sorted(keys))}" for name, keys in others.items())
        message = f"'strict' in 'extra_data' is true, and only pools take this that compute otherwise: {named}"
        raise InvalidGraphError([Problem("no_pool", message)])

    def _with_optimizations(self, extra_data: Mapping[str, Any], planned: Plan) -> Mapping[str, Any]:
        """Return a job's extra_data with the optimizations of its tasks' pools, by pool, and no others."""
        pools = dict.fromkeys(task.pool for task in planned.tasks)
        used = {pool: found for pool in pools if (found := self.rules.optimizations.get(pool))}
        own = {key: value for key, value in extra_data.items() if key != OPTIMIZATIONS}
        return {**own, OPTIMIZATIONS: used} if used else own

    def _check_room(self, submission: Submission, waiting: Mapping[tuple[str, str | None], int]) -> None:
        if (everyones := sum(waiting.values())) >= self.rules.max_queue:
            refused("max_queue")
            raise QueueFullError(f"{everyones} jobs wait, as many as max_queue allows", retry_after_s=5)
        allowed = math.ceil(self.rules.max_queue * self.rules.client_share)
        if (own := waiting.get((submission.tenant, submission.client_id), 0)) >= allowed:
            refused("client_share")
            whose = "without a client_id" if submission.client_id is None else "of this client"
            raise QueueFullError(
                f"{own} jobs {whose} wait, as many as client_share of max_queue allows", retry_after_s=5
            )

    async def _signed(self, job_id: str, graph: Graph, extra_data: Mapping[str, object], tenant: str) -> dict[str, str]:
        if extra_data.get("pool") in self._whole:
            return own_signatures(graph, job_id)
        own, strict = "" if self.rules.share_results else job_id, is_strict(extra_data)
        salt = own + salt_of(tenant, strict=strict)
        everyones = own + salt_of("", strict=strict) if self.rules.across_tenants else None
        fingerprint = partial(self._fingerprint, tenant=tenant) if tenant else self._fingerprint
        sign = partial(signatures, graph, self._specs(), fingerprint, salt, everyones)
        return sign() if is_quick(graph, self._specs()) else await asyncio.to_thread(sign)
