"""`serve-app cancel --all` and `--tenant NAME`: cancels every job that has not ended."""

from __future__ import annotations

from serve_app.cli.server import ServerClient
from serve_app.errors import ServerRefusedError, did_you_mean


def cancel_all(server: ServerClient, **headers: str) -> int:
    """Cancel what waits, then what runs; return about how many, as some may end or come meanwhile."""
    queue = server.get("/api/queue", headers=headers)
    server.post("/api/queue", {"clear": True}, headers=headers)
    server.post("/api/interrupt", {}, headers=headers)
    return len(queue["queue_running"]) + len(queue["queue_pending"])


def cancel_tenant(server: ServerClient, tenant: str) -> int:
    """Cancel all jobs of a tenant, with an admin's key. Errors: ServerRefusedError for a tenant that is nobody."""
    # A server without tenants has no such route, and would take a request in a tenant's name for one about everybody.
    known = [one["tenant"] for one in server.get("/tenants")["tenants"] if one["tenant"]]
    if tenant not in known:
        raise ServerRefusedError(f"no tenant {tenant!r} has a key or a job{did_you_mean(tenant, known)}")
    return cancel_all(server, **{"X-Tenant": tenant})
