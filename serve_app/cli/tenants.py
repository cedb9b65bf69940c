"""`serve-app keys`, `tenants` and `audit`: by the database itself, or by a server that is asked with an admin's key."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

from serve_app import config
from serve_app.cli.lines import say
from serve_app.cli.server import Server
from serve_app.errors import InvalidSubmissionError, RefusedError
from serve_app.limits import Quotas
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.queries import Inquiry
from serve_app.store.tenants.api_keys import PREFIX, USUAL_SCOPES, AddKey, EndKey, FindKey, ListKeys, minted
from serve_app.store.tenants.audit import ReadAudit
from serve_app.store.tenants.listing import ListTenants, with_quotas

T = TypeVar("T")
DAY_S = 86_400.0


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line says and print it. Errors: RefusedError; ConfigError, DatabaseAwayError."""
    if arguments.server:
        with Server(arguments.server) as server:
            _print(_asked(arguments, server))
        return 0
    settings = config.load(arguments.config) if arguments.config else config.AppConfig()
    if arguments.database_url:
        settings = config.parse({**settings.model_dump(), "database_url": arguments.database_url}, "command line")
    jobs = Jobs(settings.resolved().database_url)
    try:
        _print(_done(arguments, jobs.administer, settings.quotas))
    except InvalidSubmissionError as error:
        raise RefusedError(str(error)) from error
    finally:
        jobs.close()
    return 0


def _asked(arguments: argparse.Namespace, server: Server) -> Iterator[str]:
    match arguments.action:
        case "create":
            body = {"tenant": arguments.tenant, "name": arguments.name, "scopes": _scopes(arguments)}
            if arguments.days is not None:
                body["expires_in_s"] = arguments.days * DAY_S
            yield server.post("/tenants/keys", body)["key"]
        case "rotate":
            path = f"/tenants/keys/{_id(arguments.key)}/rotate"
            yield server.post(path, {"grace_s": arguments.grace})["key"]
        case "revoke":
            server.post(f"/tenants/keys/{_id(arguments.key)}/revoke", {})
        case "list":
            yield from map(_key_line, server.get("/tenants/keys")["keys"])
        case "tenants":
            yield from map(_tenant_line, server.get("/tenants")["tenants"])
        case "audit":
            whose = {} if arguments.tenant is None else {"whose": arguments.tenant}
            yield from map(_entry_line, server.get("/tenants/audit", limit=arguments.limit, **whose)["entries"])


def _done(arguments: argparse.Namespace, ask: Callable[[Inquiry[Any]], Any], quotas: Quotas) -> Iterator[str]:
    match arguments.action:
        case "create":
            ends_s = None if arguments.days is None else time.time() + arguments.days * DAY_S
            key, text = minted(arguments.tenant, arguments.name, _scopes(arguments), ends_s)
            ask(AddKey(key))
            yield text
        case "rotate":
            old = ask(FindKey(_id(arguments.key)))
            if old is None or old.ended(time.time()):
                raise RefusedError(f"no key that holds is {arguments.key}")
            key, text = minted(old.tenant, old.name, old.scopes, old.ends_s)
            ask(AddKey(key, old.key_id, arguments.grace))
            yield text
        case "revoke":
            if not ask(EndKey(_id(arguments.key))):
                raise RefusedError(f"no key is {arguments.key}")
        case "list":
            yield from (_key_line({**asdict(key), "shown": key.shown}) for key in ask(ListKeys()))
        case "tenants":
            yield from map(_tenant_line, with_quotas(ask(ListTenants(time.time())), quotas))
        case "audit":
            entries = ask(ReadAudit(arguments.limit, whose=arguments.tenant))
            yield from (_entry_line(asdict(entry)) for entry in entries)


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        say(line)


def _scopes(arguments: argparse.Namespace) -> list[str]:
    return list(arguments.scope or USUAL_SCOPES)


def _id(key: str) -> str:
    """Return a key's id, given it, or what is shown of the key."""
    return key.removeprefix(f"{PREFIX}_").partition("_")[0]


def _key_line(key: dict[str, Any]) -> str:
    ends_s = key["ends_s"]
    until = "" if ends_s is None else f"  {'ended' if ends_s <= time.time() else 'until'} {_time(ends_s)}"
    return f"{key['shown']}  {key['tenant'] or '(operator)'}  {','.join(key['scopes'])}  {key['name']}{until}"


def _tenant_line(one: dict[str, Any]) -> str:
    jobs = ", ".join(f"{count} {state}" for state, count in sorted(one["jobs"].items())) or "none"
    quotas = ", ".join(f"{key} {most:.15g}" for key, most in one["quotas"].items())
    name, keys = one["tenant"] or "(operator)", one["keys"]
    used = f"GPU-seconds today: {one['gpu_s_today']:.1f}  bytes stored: {one['bytes_stored']}"
    return f"{name}  keys: {keys}  jobs: {jobs}  {used}  quotas: {quotas}"


def _entry_line(entry: dict[str, Any]) -> str:
    whose = f"{entry['tenant'] or '-'}  {entry['who'] or '-'}"
    said = f"  {entry['reason']}" if entry["reason"] else ""
    return f"{_time(entry['at_s'])}  {entry['result']}  {whose}  {entry['what']}  {entry['source'] or '-'}{said}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
