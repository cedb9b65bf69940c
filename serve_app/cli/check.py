"""`serve-app check`: compare the database with the stored files."""

from __future__ import annotations

import time
from dataclasses import asdict

from serve_app.cli.lines import print_json, print_line
from serve_app.config import AppConfig
from serve_app.errors import ConfigError
from serve_app.replica.files import open_store
from serve_app.scheduler.durability.lease import RENEW_S
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.check import check as differences


def check_files(config: AppConfig, *, mend: bool, as_json: bool = False) -> int:
    """Print the differences, and mend them if `mend`. Returns 1 if any are left.

    Errors: ConfigError, DatabaseAwayError, StoreError. A running server is detected by its renewals of the lease, which
    takes a few seconds.
    """
    jobs = Jobs(config.database_url)
    try:
        if mend:
            before = jobs.heartbeat()
            time.sleep(2 * RENEW_S)
            if jobs.heartbeat() != before:
                raise ConfigError("a server works on this database; stop it before mending")
        found = []
        for difference in differences(jobs, open_store(config), mend=mend):
            found.append(difference)
            if not as_json:
                print_line(difference.what + ("; removed" if difference.mended else ""))
        left = sum(not difference.mended for difference in found)
        if as_json:
            print_json([asdict(difference) for difference in found])
        print_line(f"{left} differences" if left else "the database and the stored files agree", error=True)
    finally:
        jobs.close()
    return 1 if left else 0
