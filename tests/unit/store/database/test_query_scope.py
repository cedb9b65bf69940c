"""Every database query has a scope, and one that a tenant may run covers its own data only."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

from serve_app import api, scheduler, store
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.query_scope import ServerScoped, TenantScoped
from serve_app.store.database.webhooks import AddWebhook, DeleteWebhook, Deliveries, SendAgain, Webhook, Webhooks

FLOORS = (store, scheduler, api)
"""The packages that define queries."""


def queries() -> Iterator[type[Any]]:
    """Yield every query class."""
    for floor in FLOORS:
        for module in pkgutil.walk_packages(floor.__path__, f"{floor.__name__}."):
            if ".migrations." in module.name:  # Alembic's scripts, which only Alembic can import
                continue
            for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if found.__module__ == module.name and hasattr(found, "execute") and dataclasses.is_dataclass(found):
                    yield found


def test_every_query_has_one_scope_and_a_tenants_has_a_tenant_parameter() -> None:
    found = set(queries())
    assert len(found) > 40
    undecided = [each.__name__ for each in found if issubclass(each, TenantScoped) == issubclass(each, ServerScoped)]
    assert undecided == []
    for each in found:
        if issubclass(each, TenantScoped):
            assert "tenant" in inspect.signature(each).parameters, each.__name__


def test_a_tenants_webhooks_are_nobody_elses_to_list_delete_or_send_again(database_url: str) -> None:
    jobs = Jobs(database_url)
    epoch = jobs.acquire("test")
    given = Webhook("hook", "https://hooks.example", ("job.queued",), "whsec_x", 0.0, "of whoever says so")
    assert jobs.query(epoch, AddWebhook(given, 9, "studio"))
    [kept] = jobs.query(epoch, Webhooks("studio"))
    assert kept.tenant == "studio"
    with jobs.replacing() as connection:
        connection.exec_driver_sql(
            "INSERT INTO deliveries VALUES ('d', 'hook', 'job', 1, 'job.queued', '{}', 'failed', 1, 0, 0, 1, 500, '')"
        )
    foreign = ("hook", "other")
    assert jobs.query(epoch, Deliveries(foreign[0], 9, tenant=foreign[1])) == ()
    assert jobs.query(epoch, SendAgain(foreign[0], "d", 5.0, foreign[1])) is None
    assert not jobs.query(epoch, DeleteWebhook(*foreign))
    for tenant in ("studio", ""):
        assert [d.state for d in jobs.query(epoch, Deliveries("hook", 9, tenant=tenant))] == ["failed"]
    assert jobs.query(epoch, SendAgain("hook", "d", 5.0, "studio")) is not None
    assert jobs.query(epoch, DeleteWebhook("hook", "studio"))
    assert jobs.query(epoch, Deliveries("hook", 9)) == ()
    jobs.close()
