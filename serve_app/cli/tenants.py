"""API keys, the audit log and the list of tenants, over HTTP or in the database; tenants' moves between databases."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from serve_app.cli.lines import print_json, print_line
from serve_app.cli.server import ServerClient
from serve_app.config import AppConfig
from serve_app.config.quotas import Quotas
from serve_app.errors import BackupError, InvalidSubmissionError, ServerRefusedError
from serve_app.replica.files import open_store
from serve_app.store.database.jobs import Jobs
from serve_app.store.tenants.api_keys import PREFIX, AddKey, EndKey, FindKey, ListKeys, minted
from serve_app.store.tenants.audit import ReadAudit
from serve_app.store.tenants.listing import ListTenants, with_quotas
from serve_app.store.transfer.moving import Moved, export_tenant, import_tenant

DAY_S = 86_400.0


class TenantAdmin(Protocol):
    """The operations of the commands, with results in the format of the server's answers. Errors:
    ServerRefusedError.
    """

    def create(self, tenant: str, name: str, scopes: Sequence[str], days: float | None) -> str:
        """Make a key and return its text."""
        ...

    def rotate(self, key: str, grace_s: float) -> str:
        """Make a key's successor and return its text; the old one stays valid for grace_s."""
        ...

    def revoke(self, key: str) -> None: ...

    def keys(self) -> list[dict[str, Any]]: ...

    def tenants(self) -> list[dict[str, Any]]: ...

    def audit(self, limit: int, tenant: str | None) -> list[dict[str, Any]]:
        """Return entries of the audit log, the newest first."""
        ...


class ServerTenants:
    """Uses a server over HTTP."""

    def __init__(self, server: ServerClient) -> None:
        self._server = server

    def create(self, tenant: str, name: str, scopes: Sequence[str], days: float | None) -> str:
        ends = {} if days is None else {"expires_in_s": days * DAY_S}
        body = {"tenant": tenant, "name": name, "scopes": list(scopes), **ends}
        return str(self._server.post("/tenants/keys", body)["key"])

    def rotate(self, key: str, grace_s: float) -> str:
        return str(self._server.post(f"/tenants/keys/{_id(key)}/rotate", {"grace_s": grace_s})["key"])

    def revoke(self, key: str) -> None:
        self._server.post(f"/tenants/keys/{_id(key)}/revoke", {})

    def keys(self) -> list[dict[str, Any]]:
        return list(self._server.get("/tenants/keys")["keys"])

    def tenants(self) -> list[dict[str, Any]]:
        return list(self._server.get("/tenants")["tenants"])

    def audit(self, limit: int, tenant: str | None) -> list[dict[str, Any]]:
        whose: dict[str, Any] = {} if tenant is None else {"whose": tenant}
        return list(self._server.get("/tenants/audit", limit=limit, **whose)["entries"])


class DatabaseTenants:
    """Reads and writes the database itself, also while a server runs."""

    def __init__(self, jobs: Jobs, quotas: Quotas) -> None:
        self._ask = jobs.administer
        self._quotas = quotas

    def create(self, tenant: str, name: str, scopes: Sequence[str], days: float | None) -> str:
        key, text = minted(tenant, name, list(scopes), None if days is None else time.time() + days * DAY_S)
        self._ask(AddKey(key))
        return text

    def rotate(self, key: str, grace_s: float) -> str:
        old = self._ask(FindKey(_id(key)))
        if old is None or old.ended(time.time()):
            raise ServerRefusedError(f"no key that holds is {key}")
        made, text = minted(old.tenant, old.name, old.scopes, old.ends_s)
        self._ask(AddKey(made, old.key_id, grace_s))
        return text

    def revoke(self, key: str) -> None:
        if not self._ask(EndKey(_id(key))):
            raise ServerRefusedError(f"no key is {key}")

    def keys(self) -> list[dict[str, Any]]:
        return [{**asdict(key), "shown": key.shown} for key in self._ask(ListKeys())]

    def tenants(self) -> list[dict[str, Any]]:
        return [dict(one) for one in with_quotas(self._ask(ListTenants(time.time())), self._quotas)]

    def audit(self, limit: int, tenant: str | None) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self._ask(ReadAudit(limit, whose=tenant))]


@contextmanager
def server_tenants(url: str) -> Iterator[TenantAdmin]:
    """Open a client of a server."""
    with ServerClient(url) as server:
        yield ServerTenants(server)


@contextmanager
def database_tenants(settings: AppConfig) -> Iterator[TenantAdmin]:
    """Open the configured database. Errors: DatabaseAwayError; ServerRefusedError for an invalid request."""
    jobs = Jobs(settings.database_url)
    try:
        yield DatabaseTenants(jobs, settings.quotas)
    except InvalidSubmissionError as error:
        raise ServerRefusedError(str(error)) from error
    finally:
        jobs.close()


def export_rows(config: AppConfig, tenant: str, file: Path, *, as_json: bool = False) -> int:
    """Move a tenant into a file. Errors: BackupError if it cannot be written, and `export_tenant`'s."""
    jobs = Jobs(config.database_url)
    try:
        moved = export_tenant(jobs, tenant, file, open_store(config))
    except OSError as error:
        raise BackupError(f"{file} cannot be written: {error}; nothing is changed") from error
    finally:
        jobs.close()
    _print_moved(moved, as_json=as_json, before=f"{file}: ")
    return 0


def import_rows(config: AppConfig, file: Path, *, without_files: bool, as_json: bool = False) -> int:
    """Move a tenant from a file into the database. Errors: BackupError if it cannot be read, and `import_tenant`'s."""
    jobs = Jobs(config.database_url)
    try:
        moved = import_tenant(jobs, file, open_store(config), without_files=without_files)
    except OSError as error:
        raise BackupError(f"{file} cannot be read: {error}; nothing is changed") from error
    finally:
        jobs.close()
    _print_moved(moved, as_json=as_json)
    return 0


def _print_moved(moved: Moved, *, as_json: bool, before: str = "") -> None:
    """Print what was moved. before: what its line begins with."""
    if as_json:
        print_json({"tenant": moved.tenant, "rows": moved.rows, "files": moved.files})
        return
    jobs, rows, files = moved.rows["jobs"], moved.rows.total(), moved.files.total()
    print_line(f"{before}{moved.tenant}: {jobs} jobs, {rows} rows, {files} files listed")


def key_line(key: dict[str, Any]) -> str:
    """Return a key as one line."""
    ends_s = key["ends_s"]
    until = "" if ends_s is None else f"  {'ended' if ends_s <= time.time() else 'until'} {_time(ends_s)}"
    return f"{key['shown']}  {key['tenant'] or '(operator)'}  {','.join(key['scopes'])}  {key['name']}{until}"


def tenant_line(one: dict[str, Any]) -> str:
    """Return a tenant as one line."""
    jobs = ", ".join(f"{count} {state}" for state, count in sorted(one["jobs"].items())) or "none"
    quotas = ", ".join(f"{key} {most:.15g}" for key, most in one["quotas"].items())
    name, keys = one["tenant"] or "(operator)", one["keys"]
    used = f"GPU-seconds today: {one['gpu_s_today']:.1f}  bytes stored: {one['bytes_stored']}"
    return f"{name}  keys: {keys}  jobs: {jobs}  {used}  quotas: {quotas}"


def entry_line(entry: dict[str, Any]) -> str:
    """Return an entry of the audit log as one line."""
    whose = f"{entry['tenant'] or '-'}  {entry['who'] or '-'}"
    said = f"  {entry['reason']}" if entry["reason"] else ""
    return f"{_time(entry['at_s'])}  {entry['result']}  {whose}  {entry['what']}  {entry['source'] or '-'}{said}"


def _id(key: str) -> str:
    """Return a key's id, given the id or the visible part of the key."""
    return key.removeprefix(f"{PREFIX}_").partition("_")[0]


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
