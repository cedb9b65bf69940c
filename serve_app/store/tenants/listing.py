"""Lists tenants for the operator: keys, jobs, GPU seconds of today, stored bytes and quotas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import sqlalchemy as sa

from serve_app.config.quotas import Quotas
from serve_app.store.database.query_scope import ServerScoped
from serve_app.store.database.schema import JOBS
from serve_app.store.tenants.api_keys import ListKeys
from serve_app.store.tenants.stored_bytes import totals
from serve_app.store.tenants.usage import read

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class ListTenants(ServerScoped):
    """Lists tenants with keys, jobs or use of today. now_s: Unix time."""

    writes: ClassVar[bool] = False

    now_s: float

    def execute(self, connection: sa.Connection) -> tuple[dict[str, Any], ...]:
        """Return them by name: how many keys hold, jobs by state, GPU-seconds up to the last job's end, and bytes.

        Those are counted only where somebody has a quota of them.
        """
        keys, jobs = ListKeys().execute(connection), _jobs_by_tenant(connection)
        today = int(self.now_s // DAY_S)
        used = {each.tenant: each.gpu_s for each in read(connection, today) if each.day == today}
        holding = [key.tenant for key in keys if not key.ended(self.now_s)]
        stored = totals(connection)
        names = sorted({*jobs, *used, *stored, *(key.tenant for key in keys)})
        return tuple(
            {
                "tenant": name,
                "keys": holding.count(name),
                "jobs": jobs.get(name, {}),
                "gpu_s_today": used.get(name, 0.0),
                "bytes_stored": stored.get(name, 0),
            }
            for name in names
        )


def with_quotas(tenants: tuple[dict[str, Any], ...], quotas: Quotas) -> list[dict[str, Any]]:
    """Return tenants with the quotas that each has, without those that are no limit."""
    return [{**one, "quotas": quotas.of(one["tenant"]).model_dump(exclude_none=True)} for one in tenants]


def _jobs_by_tenant(connection: sa.Connection) -> dict[str, dict[str, int]]:
    """Return the number of jobs by tenant and state."""
    counted = sa.select(JOBS.c.tenant, JOBS.c.state, sa.func.count()).group_by(JOBS.c.tenant, JOBS.c.state)
    found: dict[str, dict[str, int]] = {}
    for tenant, state, count in connection.execute(counted):
        found.setdefault(tenant, {})[state] = int(count)
    return found
