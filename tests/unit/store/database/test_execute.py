"""Statements that go to the driver as text: what they change, and what they fail with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from serve_app.store.database.execute import execute
from serve_app.store.database.insert_once import insert_once
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.schema import JOBS, OUTPUTS


@pytest.fixture
def jobs(database_url: str) -> Iterator[Jobs]:
    database = Jobs(database_url)
    yield database
    database.close()


OUTPUT = {"job_id": "a", "node_id": "1", "ui": "{}", "seq": 3}
_RENAME = (
    sa.update(OUTPUTS)
    .where(OUTPUTS.c.node_id == sa.bindparam("of_node"))
    .values(ui=sa.bindparam("new_ui"), seq=sa.bindparam("new_seq"))
)


def test_rows_are_changed_by_their_names_one_or_many(jobs: Jobs) -> None:
    with jobs.engine.begin() as connection:
        rows = [{**OUTPUT, "node_id": str(n), "seq": n} for n in range(5)]
        assert insert_once(connection, OUTPUTS, ("job_id",), rows[:1]) is None
        assert insert_once(connection, OUTPUTS, ("job_id",), rows) is None
        assert execute(connection, _RENAME, []) == 0
        assert execute(connection, _RENAME, [{"new_seq": 40, "of_node": "4", "new_ui": "[4]"}]) == 1
        new = [{"of_node": str(n), "new_ui": f"[{n}]", "new_seq": 10 * n} for n in (1, 2, 7)]
        assert execute(connection, _RENAME, new) == 2
    with jobs.engine.connect() as connection:
        found = connection.execute(sa.select(OUTPUTS.c.node_id, OUTPUTS.c.ui, OUTPUTS.c.seq)).all()
    assert sorted(map(tuple, found)) == [
        ("0", "{}", 0), ("1", "[1]", 10), ("2", "[2]", 20), ("3", "{}", 3), ("4", "[4]", 40),
    ]  # fmt: skip


def test_errors_are_sqlalchemys_with_the_drivers_own_inside(jobs: Jobs) -> None:
    broken = sa.insert(JOBS)
    with pytest.raises(sa.exc.IntegrityError) as refused, jobs.engine.begin() as connection:
        execute(connection, broken, [{"job_id": "a", "number": None}])
    assert isinstance(refused.value.orig, jobs.engine.dialect.dbapi.IntegrityError)
