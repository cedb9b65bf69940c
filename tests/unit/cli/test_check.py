"""`serve-app check` says what the database and the files disagree in, and mends what is certain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.cli import check as command
from serve_app.cli import main
from serve_app.events import Failure
from serve_app.execution.files import NodeFiles
from serve_app.scheduler.durability import lease
from serve_app.store.database.changes import JobAccepted, JobEnded, JobRow, JobStarted, OutputRecorded
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS
from serve_app.store.files.volume import Volume
from tests.unit.store import reserving

ROW = JobRow("", 0.0, 0, {}, ("1",), None, {}, created_s=5.0, queued_seq=1)


class Site:
    """A database and files, as a server that has stopped leaves them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"sqlite:///{root}/jobs.sqlite"
        self.jobs = Jobs(self.url)
        self.epoch = self.jobs.acquire("test")
        self.store = Volume({area: root / area for area in AREAS})

    def job(self, job_id: str, *, recorded: bool) -> None:
        """A job that saved a file and ended."""
        order = self.jobs.next_order()
        self.jobs.write(self.epoch, [JobAccepted(replace(ROW, job_id=job_id, order=order)), JobStarted(job_id, 6.0, 2)])

        async def reserve(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
            return reserving.reserve(self.jobs, self.epoch, job_id, "1", key, at_least, contents)

        images = asyncio.run(NodeFiles(self.store, job_id, "1", reserve).save("output", "x", ".png", [b"x"]))
        if recorded:
            self.jobs.write(self.epoch, [OutputRecorded(job_id, "1", {"images": images}, 3)])
        self.jobs.write(self.epoch, [JobEnded(job_id, "success" if recorded else "cancelled", 9.0, 4, Failure())])

    def check(self, *options: str) -> int:
        return main(["check", "--database-url", self.url, "--output-dir", str(self.root / "output"), *options])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "RENEW_S", 0.01)
    return Site(tmp_path)


def test_agreement_is_reported(site, capsys):
    site.job("a", recorded=True)
    assert site.check() == 0
    assert capsys.readouterr().out == ""


def test_an_unrecorded_file_is_reported_and_removed_on_request(site, capsys):
    site.job("a", recorded=True)
    site.job("b", recorded=False)
    assert site.check() == 1
    assert "output/x_00002_.png is in no record; its name was given to job b" in capsys.readouterr().out
    assert site.check("--mend") == 0
    assert [path.name for path in (site.root / "output").iterdir()] == ["x_00001_.png"]
    assert site.check() == 0


def test_a_recorded_file_that_is_missing_is_named_and_cannot_be_mended(site, capsys):
    site.job("a", recorded=True)
    (site.root / "output" / "x_00001_.png").unlink()
    for options in ((), ("--mend",)):
        assert site.check(*options) == 1
        assert "output/x_00001_.png is missing: node 1 of job a saved it" in capsys.readouterr().out


def test_another_content_under_a_reserved_name_stays(site, capsys):
    site.job("a", recorded=False)
    (site.root / "output" / "x_00001_.png").write_bytes(b"a person's")
    assert site.check("--mend") == 1
    assert "its content is another's, so it stays" in capsys.readouterr().out
    assert (site.root / "output" / "x_00001_.png").read_bytes() == b"a person's"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE jobs SET ended_seq = NULL", "with cursor None"),
        ("UPDATE jobs SET ended_s = NULL", "its end is None"),
        ("UPDATE jobs SET state = 'running'", "is 'running', but its end is 9.0"),
        ("DELETE FROM outputs", "ended in success without an output of node 1"),
    ],
)
def test_a_job_that_contradicts_itself_is_named(site, capsys, statement, said):
    site.job("a", recorded=True)
    with site.jobs.engine.begin() as connection:
        connection.exec_driver_sql(statement)
    assert site.check() == 1
    assert said in capsys.readouterr().out


def test_nothing_is_mended_while_a_server_works_on_the_database(site, capsys, monkeypatch):
    site.job("a", recorded=False)
    beat: Callable[[Jobs], tuple[int, int]] = Jobs.heartbeat

    def stamped(jobs: Jobs) -> tuple[int, int]:
        site.jobs.renew(site.epoch)
        return beat(jobs)

    monkeypatch.setattr(Jobs, "heartbeat", stamped)
    assert site.check("--mend") == 1
    assert "a server works on this database" in capsys.readouterr().err
    assert (site.root / "output" / "x_00001_.png").exists()
    assert vars(command)["RENEW_S"] < lease.RENEW_S
