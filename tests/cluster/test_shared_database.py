"""Two servers on one database: the one that started last works, and the other again once that has gone."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.server import running, txt2img, wait_for


def test_the_older_server_works_again_when_the_newer_one_has_gone_and_jobs_of_both_are_there(tmp_path: Path):
    with running(tmp_path) as older:
        first = older.submit(txt2img(1))
        older.finished(first)
        with running(tmp_path) as newer:
            wait_for(lambda: not older.answers(), "the older server to notice")
            second = newer.submit(txt2img(2))
            newer.finished(second)
            assert not older.answers()
        wait_for(older.answers, "the older server to work again")
        older.finished(older.submit(txt2img(3)))
        assert {first, second} <= older.get("/history").keys()
        (tmp_path / "state" / "jobs.sqlite").unlink()
        third = older.submit(txt2img(4))
        older.kill("scheduler")
        older.finished(third)
        assert {first, second, third} <= older.get("/history").keys()
