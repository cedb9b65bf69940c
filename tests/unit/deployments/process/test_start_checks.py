"""What `serve-app up` checks before it starts: what stops it, and what it only warns of."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from serve_app import config
from serve_app.deployments.process.start_checks import (
    Start,
    buckets,
    database,
    examine,
    folders,
    lacking_gpus,
)
from serve_app.store.database.changes import JobAccepted, JobRow
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.bucket import Bucket


def start(root: Path, **arguments: Any) -> Start:
    """Return a start over a folder, on any free port."""
    named = {f"{name}_dir": root / name for name in ("models", "input", "output", "temp", "user")}
    arguments = {**named, "database_url": f"sqlite:///{root}/jobs.sqlite", **arguments}
    return Start(config.parse(arguments, "here").resolved(), "127.0.0.1", 0)


def stored_in(made: Bucket, **differing: Any) -> dict[str, Any]:
    keys = {key: getattr(made.location, key) for key in ("bucket", "prefix", "endpoint", "path_style")}
    return {"kind": "s3", **keys, **differing}


def test_all_that_is_in_order_is_ok(tmp_path):
    (tmp_path / "models").mkdir()
    found = {finding.check: finding.level for finding in examine(start(tmp_path))}
    assert found == {"folders": "ok", "port": "ok", "database": "ok", "clock": "ok"}


def test_a_models_folder_that_is_not_there_is_a_warning(tmp_path):
    [warning] = folders(start(tmp_path))
    assert (warning.level, warning.what) == ("warning", f"there is no models folder {tmp_path}/models")


def test_a_database_that_may_answer_later_is_a_warning(tmp_path):
    [finding] = database(start(tmp_path, database_url=f"postgresql://me@/jobs?host={tmp_path}"))
    assert finding.level == "warning"
    assert "going on without it until it answers" in finding.what


def test_a_bucket_must_be_there_and_let_files_be_written(tmp_path, bucket, monkeypatch):
    [finding] = buckets(start(tmp_path, store=stored_in(bucket)))
    assert (finding.level, list(bucket.list("", deep=True))) == ("ok", [])
    [finding] = buckets(start(tmp_path, store=stored_in(bucket, bucket="no-such-bucket")))
    assert finding.level == "error"
    assert "NoSuchBucket" in finding.what
    [_, finding] = buckets(start(tmp_path, store=stored_in(bucket), models="s3://no-such-models"))
    assert "no-such-models" in finding.what
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    [finding] = buckets(start(tmp_path, store=stored_in(bucket)))
    assert (finding.level, "credentials are" in finding.what) == ("error", True)


def test_a_store_that_may_answer_later_is_a_warning(tmp_path, credentials):
    away = {"kind": "s3", "bucket": "images", "endpoint": "http://127.0.0.1:9", "path_style": True}
    [finding] = buckets(start(tmp_path, store=away))
    assert finding.level == "warning"


@pytest.mark.parametrize("key", ["output_dir", "user_dir"])
def test_a_folder_that_may_not_be_written_is_an_error(tmp_path, monkeypatch, key):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path / "closed")
    found = [each for each in folders(start(tmp_path, **{key: tmp_path / "closed"})) if each.level == "error"]
    assert [str(each) for each in found] == [
        f"this user may not write to {key} {tmp_path}/closed; chown it, or name another"
    ]


def test_a_clock_that_is_behind_the_newest_job_is_a_warning(tmp_path, monkeypatch):
    jobs = Jobs(f"sqlite:///{tmp_path}/jobs.sqlite")
    jobs.write(
        jobs.acquire("here"),
        [JobAccepted(JobRow("a", 0.0, 0, {}, ("1",), None, {}, created_s=time.time() + 3600, queued_seq=1))],
    )
    jobs.close()
    [opened, clock] = database(start(tmp_path))
    assert (opened.level, clock.check, clock.level) == ("ok", "clock", "warning")


def test_a_pool_that_asks_for_more_gpus_than_there_are_is_named():
    [lack] = lacking_gpus(config.parse({"pools": [{"name": "big", "num_gpus": 2}]}, "here"), 1)
    assert lack.startswith("pool big asks for num_gpus: 2, and this machine has 1")
