"""`serve-app doctor` looks at everything, changes nothing, and says what mends what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve_app.cli import main
from serve_app.store.database.jobs import Jobs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def test_each_check_is_one_line_and_nothing_is_made(here, capsys):
    assert main(["doctor", "--port", "0"]) == 0
    checks = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert {"folders", "port", "database", "proxy", "gpu", "vocabulary"} <= set(checks)
    assert list(here.iterdir()) == []


def test_what_keeps_a_server_from_starting_is_an_error_with_what_mends_it(here, capsys):
    (here / "jobs.sqlite").write_bytes(b"no database" * 1000)
    asked = ["--database-url", "sqlite:///jobs.sqlite", "--custom-nodes-dir", "nosuch", "--host", "0.0.0.0"]
    assert main(["doctor", "--json", "--port", "0", *asked]) == 1
    found = {each["check"]: each for each in json.loads(capsys.readouterr().out) if each["level"] == "error"}
    assert set(found) == {"database", "packs", "port"}
    assert "serve-app restore --replace" in found["database"]["what"]
    assert "--custom-nodes-dir" in found["packs"]["mend"]


def test_a_database_of_an_older_release_is_looked_at_and_left_as_it_is(here, capsys):
    jobs = Jobs("sqlite:///jobs.sqlite")
    with jobs.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    jobs.close()
    assert main(["doctor", "--port", "0", "--database-url", "sqlite:///jobs.sqlite"]) == 0
    jobs = Jobs("sqlite:///jobs.sqlite", migrates=False)
    with jobs.engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "0001"
    jobs.close()


def test_a_port_that_the_server_itself_has_is_in_order(here, url, capsys):
    assert main(["doctor", "--port", url.rpartition(":")[2]]) == 0
    assert "this server or another answers" in capsys.readouterr().out
