"""`serve-app backup` and `restore`: copy the database to one file, and back."""

from __future__ import annotations

import secrets
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from serve_app.cli.lines import print_json, print_line
from serve_app.config import AppConfig
from serve_app.errors import BackupError, ConfigError, DatabaseDamagedError
from serve_app.replica.files import open_store
from serve_app.scheduler.durability.lease import RENEW_S
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.store import WholeStore
from serve_app.store.tenants.audit import BACKUP, AuditEntry, WriteAudit
from serve_app.store.transfer.backup import Summary, restore_backup, restore_over_damaged, write_backup


def backup_database(config: AppConfig, file: Path, *, files: bool, as_json: bool = False) -> int:
    """Write a copy of the database. files: with the list of stored files. Errors: BackupError, and `write_backup`'s."""
    jobs = Jobs(config.database_url)
    try:
        summary = write_backup(jobs, file, open_store(config) if files else None)
        made = AuditEntry(summary.made_s, secrets.token_hex(8), 1, "", "", BACKUP, "command line", 0)
        jobs.administer(WriteAudit((made,), before_s=0.0))
    except OSError as error:
        raise BackupError(f"{file} cannot be written: {error}") from error
    finally:
        jobs.close()
    if as_json:
        print_json(_contents(summary))
    else:
        print_line(f"{file}: {_said(summary)}")
    return 0


def restore_database(config: AppConfig, file: Path, *, replace: bool, keep_keys: bool, as_json: bool = False) -> int:
    """Replace the database by a copy; print its files that the store lacks. Returns 1 if any are missing.

    Errors: BackupError, ConfigError, and `restore_backup`'s. A running server is detected as in `serve-app check`.
    """
    store = open_store(config)
    try:
        try:
            summary = _restored(config.database_url, file, store, replace=replace, keep_keys=keep_keys)
        except DatabaseDamagedError as error:
            if not replace:
                raise
            print_line(str(error), error=True)
            summary, aside = restore_over_damaged(config.database_url, file, store, keep_keys=keep_keys)
            print_line(f"the damaged file is now {aside}, likewise its -wal and -shm", error=True)
            for table, what in (("api_keys", "API keys"), ("audit", "entries of the audit log")):
                left = summary.salvaged[table]
                lost = "" if left.whole else "; others cannot be read any more, and are as in the copy"
                print_line(f"{len(left.rows)} {what} are taken over from it{lost}", error=True)
    except OSError as error:
        raise BackupError(f"{file} cannot be read: {error}") from error
    made = datetime.fromtimestamp(summary.made_s).isoformat(" ", "seconds")
    print_line(f"restored as of {made}: {_said(summary)}", error=True)
    if summary.ended_keys:
        print_line(
            f"{summary.ended_keys} of its API keys hold no longer, since they may have been revoked after it was made; "
            "make new ones, or restore with --keep-keys",
            error=True,
        )
    if as_json:
        print_json(_contents(summary) | {"absent": [f"{area}/{path}" for area, path in summary.absent or ()]})
        return 1 if summary.absent else 0
    for area, path in summary.absent or ():
        print_line(f"{area}/{path} is missing, or of another size")
    return 1 if summary.absent else 0


def _restored(url: str, file: Path, store: WholeStore, *, replace: bool, keep_keys: bool) -> Summary:
    jobs = Jobs(url)
    try:
        before = jobs.heartbeat()
        time.sleep(2 * RENEW_S)
        if jobs.heartbeat() != before:
            raise ConfigError("a server works on this database; stop it before restoring")
        jobs.inspect()
        jobs.check_there()
        return restore_backup(jobs, file, store, replace=replace, keep_keys=keep_keys)
    finally:
        jobs.close()


def _contents(summary: Summary) -> dict[str, Any]:
    return {"made_s": summary.made_s, "rows": dict(summary.rows), "files": dict(summary.files)}


def _said(summary: Summary) -> str:
    listed = sum(summary.files.values())
    return f"{summary.rows['jobs']} jobs, {summary.rows.total()} rows in all" + (f", {listed} files" if listed else "")
