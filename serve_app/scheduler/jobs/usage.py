"""Counts what tenants use, and checks the quotas of jobs and GPU time at each submission. Pure.

Days are UTC. Use is stored as a total for each day, so that writing it twice is harmless.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from serve_app.config.quotas import OTHER, Quota, Quotas
from serve_app.errors import QuotaError, QuotaLeft
from serve_app.limits import refused
from serve_app.scheduler.protocol.cluster_view import TenantLoad
from serve_app.store.database.changes import TenantUsed
from serve_app.store.tenants.stored_bytes import RETRY_S as STORED_RETRY_S

DAY_S = 86_400
RETRY_S = 5
"""The retry delay for limits that other jobs' ends relax."""


@dataclass(frozen=True, slots=True)
class TenantUse:
    """The use of one tenant: waiting and running jobs, GPU seconds of today, and expected ones of unfinished jobs."""

    queued: int = 0
    running: int = 0
    gpu_s: float = 0.0
    expected_s: float = 0.0


class Usage:
    """The use of all tenants. used: stored totals of today, and perhaps of other days."""

    def __init__(self, used: Iterable[TenantUsed] = ()) -> None:
        self.queued: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self._expected_s: defaultdict[str, float] = defaultdict(float)
        self._day = -1
        self._used: dict[str, float] = {}
        self.spent_s: defaultdict[str, float] = defaultdict(float)
        """GPU seconds of this epoch, by tenant."""
        self._earlier = tuple(used)

    def advance(self, at_s: float) -> None:
        """Move the time on. at_s: Unix time. A new day starts with its stored totals."""
        if (day := int(at_s // DAY_S)) > self._day:
            self._day = day
            self._used = {each.tenant: each.gpu_s for each in self._earlier if each.day == day}

    def expect(self, tenant: str, seconds: float) -> None:
        """Add expected GPU seconds of a tenant's unfinished jobs; a negative number subtracts."""
        self._expected_s[tenant] += seconds
        if abs(self._expected_s[tenant]) < 1e-6:
            del self._expected_s[tenant]

    def add(self, tenant: str, seconds: float) -> None:
        """Add GPU seconds that a tenant has used."""
        self._used[tenant] = self._used.get(tenant, 0.0) + seconds
        self.spent_s[tenant] += seconds

    def total(self, tenant: str, job_id: str) -> TenantUsed:
        """Return a tenant's total of today, to be stored with the end of job_id."""
        return TenantUsed(job_id, tenant, self._day, self._used.get(tenant, 0.0))

    def of(self, tenant: str) -> TenantUse:
        """Return the use of a tenant."""
        expected_s = max(0.0, self._expected_s.get(tenant, 0.0))
        return TenantUse(self.queued[tenant], self.running[tenant], self._used.get(tenant, 0.0), expected_s)

    def tenants(self) -> set[str]:
        """Return all tenants with any use."""
        return {*self.queued, *self.running, *self._used, *self._expected_s}

    def loads(self, quotas: Quotas, lost: Mapping[str, int]) -> dict[str, TenantLoad]:
        """Return the tenants' loads by label: each configured tenant, and "other". Without the operator.

        lost: the replicas that each has ended.
        """
        found = {label: TenantLoad() for label in (*quotas.tenants, OTHER)}
        for tenant in filter(None, {*self.queued, *self.running, *self.spent_s, *lost}):
            had, label = found[quotas.label(tenant)], quotas.label(tenant)
            queued, running = had.queued + self.queued[tenant], had.running + self.running[tenant]
            ended = had.lost_replicas + lost.get(tenant, 0)
            found[label] = TenantLoad(queued, running, had.gpu_s + self.spent_s[tenant], ended)
        return found

    def left(self, tenant: str, quota: Quota, stored: int, at_s: float) -> tuple[QuotaLeft, ...]:
        """Return what is left of a tenant's quotas. stored: its bytes; at_s: Unix time."""
        self.advance(at_s)
        use = self.of(tenant)
        kept = (
            ("queued", quota.queued, use.queued, RETRY_S),
            ("gpu_s_a_day", quota.gpu_s_a_day, use.gpu_s, _midnight_s(at_s)),
            ("bytes_stored", quota.bytes_stored, stored, STORED_RETRY_S),
        )
        return tuple(
            QuotaLeft(key, most, max(0, most - used), reset_s) for key, most, used, reset_s in kept if most is not None
        )

    def check(self, tenant: str, quota: Quota, at_s: float) -> None:
        """Check that a tenant may submit one more job. at_s: Unix time. Errors: QuotaError."""
        self.advance(at_s)
        use = self.of(tenant)
        if quota.running == 0:
            raise _refusal("running", 0, 0, "no job of this tenant may run", RETRY_S)
        if quota.queued is not None and use.queued >= quota.queued:
            what = f"{use.queued} jobs of this tenant wait, as many as its quota 'queued' allows ({quota.queued})"
            raise _refusal("queued", quota.queued, 0, what, RETRY_S)
        if quota.gpu_s_a_day is not None and use.gpu_s + use.expected_s >= quota.gpu_s_a_day:
            left_s = max(0.0, quota.gpu_s_a_day - use.gpu_s)
            what = (
                f"this tenant has used {use.gpu_s:.1f} s of GPUs today and its unfinished jobs are expected to take "
                f"{use.expected_s:.1f} s more; its quota 'gpu_s_a_day' allows {quota.gpu_s_a_day:g} s"
            )
            raise _refusal("gpu_s_a_day", quota.gpu_s_a_day, left_s, what, _midnight_s(at_s))


def _midnight_s(at_s: float) -> int:
    """Return the seconds until the next UTC day."""
    return max(1, int(DAY_S - at_s % DAY_S) + 1)


def _refusal(quota: str, limit: float, remaining: float, reason: str, retry_after_s: int) -> QuotaError:
    refused(f"quotas.{quota}")
    return QuotaError(reason, retry_after_s, quota, limit, remaining)
