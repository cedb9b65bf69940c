"""Connections to PostgreSQL whose server takes no writes, or whose answers never come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
import sqlalchemy as sa

from serve_app.errors import DatabaseAwayError
from serve_app.store.database.jobs import Jobs
from tests.postgres import Postgres
from tests.relay import Relay

LIMIT_S = 1.0


@pytest.fixture
def url(postgres_server: Postgres) -> Iterator[str]:
    url = postgres_server.database()
    yield url
    postgres_server.drop(url)


def by_relay(url: str, relay: Relay) -> str:
    return f"postgresql://postgres@127.0.0.1:{relay.port}{urlsplit(url).path}?connect_timeout=2"


def test_sessions_that_turned_read_only_are_let_go_and_none_is_opened_until_the_server_takes_writes(
    postgres_server: Postgres, url: str
) -> None:
    jobs = Jobs(url)
    epoch = jobs.acquire("me")
    with jobs.engine.connect() as one, jobs.engine.connect() as other:  # as many as the pool keeps
        for connection in (one, other):
            connection.exec_driver_sql("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
            connection.commit()
    with pytest.raises(DatabaseAwayError, match="read-only transaction"):
        jobs.renew(epoch)
    jobs.renew(epoch)

    name = urlsplit(url).path[1:]
    postgres_server.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    jobs.engine.dispose()
    with pytest.raises(DatabaseAwayError, match="session is read-only"):
        jobs.renew(epoch)
    postgres_server.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    jobs.renew(epoch)
    jobs.close()


def test_a_statement_whose_answer_never_comes_ends_after_its_limit_and_the_next_one_has_a_connection_of_its_own(
    postgres_server: Postgres, url: str
) -> None:
    relay = Relay(postgres_server.socket)
    jobs = Jobs(by_relay(url, relay), LIMIT_S)
    epoch = jobs.acquire("me")
    relay.lost = True
    for act in (lambda: jobs.renew(epoch), jobs.heartbeat):
        began_s = time.monotonic()
        with pytest.raises(DatabaseAwayError, match=r"no answer to a statement within 1 s|timeout"):
            act()
        assert time.monotonic() - began_s < 30
    relay.lost = False
    jobs.renew(epoch)
    assert jobs.heartbeat()[1] >= 1
    jobs.close()
    relay.close()


def test_a_session_that_was_given_up_in_the_middle_of_a_transaction_keeps_no_row_locked(
    postgres_server: Postgres, url: str
) -> None:
    jobs = Jobs(url, LIMIT_S)
    epoch = jobs.acquire("me")
    with jobs.engine.connect() as abandoned:
        abandoned.execute(sa.text("UPDATE lease SET beat = beat"))  # and its client says nothing more
        waiting_s = time.monotonic() + 30
        while True:
            try:
                jobs.renew(epoch)
                break
            except DatabaseAwayError:
                assert time.monotonic() < waiting_s
        abandoned.invalidate()
    jobs.close()


def test_what_restores_or_migrates_may_take_longer_than_a_statement_may(postgres_server: Postgres, url: str) -> None:
    jobs = Jobs(url, LIMIT_S)
    with jobs.replacing() as connection:
        connection.execute(sa.text("SELECT pg_sleep(1.5)"))
    with pytest.raises(DatabaseAwayError), jobs.snapshot() as connection:
        connection.execute(sa.text("SELECT pg_sleep(1.5)"))
    holder = psycopg.connect(url.replace("postgresql+psycopg", "postgresql"))
    holder.execute("SELECT pg_advisory_xact_lock(1579674265)")
    threading.Timer(1.5, holder.rollback).start()
    Jobs(url, LIMIT_S).close()
    jobs.close()
