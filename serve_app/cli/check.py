"""`serve-app check`: whether the database and the stored files agree."""

from __future__ import annotations

import time

from serve_app.cli.lines import say
from serve_app.config import AppConfig
from serve_app.errors import ConfigError
from serve_app.replica.files import open_store
from serve_app.scheduler.durability.lease import BEAT_S
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.check import check as differences


def check(config: AppConfig, *, mend: bool) -> int:
    """Print what differs; mend it if asked. Returns 1 if something differs, 0 if it is all mended or nothing does.

    Errors: ConfigError, DatabaseAwayError, StoreError.
    A server that works on the database is noticed by its stamps of the lease, which takes a few seconds.
    """
    jobs = Jobs(config.database_url)
    try:
        if mend:
            before = jobs.beat()
            time.sleep(2 * BEAT_S)
            if jobs.beat() != before:
                raise ConfigError("a server works on this database; stop it before mending")
        left = 0
        for difference in differences(jobs, open_store(config), mend=mend):
            say(difference.what + ("; removed" if difference.mended else ""))
            left += not difference.mended
        say(f"{left} differences" if left else "the database and the stored files agree", error=True)
    finally:
        jobs.close()
    return 1 if left else 0
