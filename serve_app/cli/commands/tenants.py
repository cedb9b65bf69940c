"""Commands for tenants: API keys, the audit log, the list of tenants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.cli.commands import options
from serve_app.cli.lines import print_json, print_line

if TYPE_CHECKING:
    from serve_app.cli.tenants import TenantAdmin

app = typer.Typer()
keys = typer.Typer(help="Make, list, rotate and revoke the keys of tenants.", no_args_is_help=True)
ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="ask this server, with the admin's key in SERVE_APP_KEY")
]
Key = Annotated[str, typer.Argument(help="the id, or what list shows of the key")]


class Scope(StrEnum):
    """What a key allows."""

    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"
    METRICS = "metrics"


@keys.command()
def create(
    tenant: Annotated[str, typer.Argument(help='whose it is; "" for the operator')],
    name: Annotated[str, typer.Option(help="what people call it")] = "",
    scope: Annotated[list[Scope] | None, typer.Option(help="what it allows; may be repeated")] = None,
    days: Annotated[
        float | None,
        typer.Option(min=0.01, max=36_500, metavar="N", help="how long it holds (default: until it is revoked)"),
    ] = None,
    as_json: options.Json = False,
    database_url: options.DatabaseUrl = None,
    config: options.Config = None,
    server: ServerOption = None,
) -> int:
    """Make a key and print it, this once."""
    from serve_app.store.tenants.api_keys import USUAL_SCOPES

    with _opened(server, config, database_url, new=True) as tenants:
        return _print_key(tenants.create(tenant, name, list(map(str, scope or USUAL_SCOPES)), days), as_json)


@keys.command()
def rotate(
    key: Key,
    grace: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="how long the old one holds")] = 3600.0,
    as_json: options.Json = False,
    database_url: options.DatabaseUrl = None,
    config: options.Config = None,
    server: ServerOption = None,
) -> int:
    """Make a key's successor and print it, this once."""
    with _opened(server, config, database_url) as tenants:
        return _print_key(tenants.rotate(key, grace), as_json)


@keys.command()
def revoke(
    key: Key,
    database_url: options.DatabaseUrl = None,
    config: options.Config = None,
    server: ServerOption = None,
) -> int:
    """End a key."""
    with _opened(server, config, database_url) as tenants:
        tenants.revoke(key)
    return 0


@keys.command("list")
def list_keys(
    as_json: options.Json = False,
    database_url: options.DatabaseUrl = None,
    config: options.Config = None,
    server: ServerOption = None,
) -> int:
    """List the keys."""
    from serve_app.cli.tenants import key_line

    with _opened(server, config, database_url) as tenants:
        return _print_rows(tenants.keys(), key_line, as_json)


@app.command("tenants")
def list_tenants(
    as_json: options.Json = False,
    database_url: options.DatabaseUrl = None,
    config: options.Config = None,
    server: ServerOption = None,
) -> int:
    """List the tenants: keys, jobs, GPU-seconds, quotas."""
    from serve_app.cli.tenants import tenant_line

    with _opened(server, config, database_url) as tenants:
        return _print_rows(tenants.tenants(), tenant_line, as_json)


@app.command()
def audit(
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="entries")] = 50,
    tenant: Annotated[str | None, typer.Option(metavar="NAME", help="only of one")] = None,
    as_json: options.Json = False,
    database_url: options.DatabaseUrl = None,
    config: options.Config = None,
    server: ServerOption = None,
) -> int:
    """Show the audit log, the newest first."""
    from serve_app.cli.tenants import entry_line

    with _opened(server, config, database_url) as tenants:
        return _print_rows(tenants.audit(limit, tenant), entry_line, as_json)


@app.command("export-tenant")
def export_tenant(
    tenant: Annotated[str, typer.Argument(help="which one")],
    file: Annotated[Path, typer.Argument(help="the file to make, such as studio.tenant.gz")],
    database_url: options.DatabaseUrl = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> int:
    """Move a tenant's jobs, keys and all its rows out of the database into a file, also while a server runs."""
    from serve_app.cli.tenants import export_rows

    return export_rows(options.settings(config, database_url=database_url), tenant, file, as_json=as_json)


@app.command("import-tenant")
def import_tenant(
    file: Annotated[Path, typer.Argument(help="what export-tenant made")],
    without_files: Annotated[
        bool, typer.Option("--without-files", help="also if some of the tenant's stored files are not here")
    ] = False,
    database_url: options.DatabaseUrl = None,
    config: options.Config = None,
    as_json: options.Json = False,
) -> int:
    """Move a tenant from a file into the database, also while a server runs."""
    from serve_app.cli.tenants import import_rows

    settings = options.settings(config, database_url=database_url)
    return import_rows(settings, file, without_files=without_files, as_json=as_json)


@contextmanager
def _opened(
    server: str | None, config: Path | None, database_url: str | None, *, new: bool = False
) -> Iterator[TenantAdmin]:
    """Open the server, or the database of the configuration. new: for a key, which may be a database's first row."""
    from serve_app.cli.tenants import database_tenants, server_tenants

    if server:
        opened = server_tenants(server)
    else:
        settings = options.settings(config, new=new, database_url=database_url)
        if new and settings.tenants is None:
            print_line(
                "the configuration has no section `tenants`, so a server asks for no key: add `tenants: {}`",
                error=True,
            )
        opened = database_tenants(settings)
    with opened as tenants:
        yield tenants


def _print_key(text: str, as_json: bool) -> int:
    if as_json:
        print_json({"key": text})
    else:
        print_line(text)
    return 0


def _print_rows(rows: Sequence[dict[str, Any]], line: Callable[[dict[str, Any]], str], as_json: bool) -> int:
    if as_json:
        print_json(list(rows))
    else:
        for row in rows:
            print_line(line(row))
    return 0
