"""What probes are answered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.errors import DatabaseAwayError, NotReadyError
from serve_app.scheduler.durability import database_health
from serve_app.service.request_limits import Limits
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from tests.postgres import Postgres
from tests.relay import Relay
from tests.unit.api.conftest import FILES
from tests.unit.api.scripted_replica import scripted
from tests.unit.api.tenant_world import world


async def test_a_server_that_can_take_jobs_is_alive_and_ready(client):
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    assert (await client.head("/readyz")).status_code == 200


async def test_readiness_names_replicas_that_cannot_work(scheduler, client):
    await scheduler.report_trouble("r9", "comfyui", "it has no main.py")
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ready",
        "troubles": [{"pool": "comfyui", "why": "it has no main.py", "working": 0}],
    }


async def test_a_server_whose_scheduler_is_away_is_alive_but_not_ready(client, scheduler):
    scheduler.refusal = NotReadyError("the scheduler is not there")
    assert (await client.get("/healthz")).status_code == 200
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["detail"]) == (503, "the scheduler is not there")
    assert int(answer.headers["Retry-After"]) > 0


async def test_only_an_operator_sees_where_the_database_is(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    secret = "the database postgresql://db.internal.example/jobs: connection refused"
    doors = ("/readyz", "/queue", "/api/queue", "/api/v2/jobs")
    async with world(tmp_path) as made:
        clients = [made.client(key) for key in (made.keys["a"], made.keys["root"], None)]
        async with clients[0] as a, clients[1] as root, clients[2] as anyone:
            await made.replica.scheduler.report_trouble("r9", "comfyui", "http://gpu.internal.example refuses")
            assert (await anyone.get("/readyz")).json()["troubles"] == [{"pool": "comfyui", "working": 0}]
            for client in (a, root):  # so that their keys are known
                await client.get("/queue")
            made.replica.scheduler.refusal = DatabaseAwayError(secret)
            for client, path in [(anyone, "/readyz"), *((a, path) for path in doors)]:
                answer = await client.get(path)
                assert answer.status_code == 503
                assert "internal.example" not in answer.text
                assert "job database" in answer.text
            for path in doors[1:]:
                assert "db.internal.example" in (await root.get(path)).text
    assert f"GET /readyz: {secret}" in caplog.text


async def test_a_process_that_has_not_found_its_service_yet_is_alive():
    def not_yet() -> Service:
        raise NotReadyError("starting")

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=create_app(not_yet)), base_url="http://x") as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503


@contextlib.asynccontextmanager
async def over(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with scripted(database_url=database_url, statement_s=2.0) as replica:
        app = create_app(
            lambda: Service(replica.scheduler.client, Volume({}), FILES.__getitem__, Limits(10_000, 10_000))
        )
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


async def ready_again(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.1)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextlib.contextmanager
def read_only(server: Postgres, url: str) -> Iterator[None]:
    """As after a failover to a server that takes no writes yet."""
    name = urlsplit(url).path[1:]
    server.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    yield
    server.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')


@contextlib.contextmanager
def silent(relay: Relay) -> Iterator[None]:
    relay.lost = True
    yield
    relay.lost = False


@pytest.mark.parametrize("trouble", ["locked", "read_only", "silent"])
async def test_a_server_whose_database_commits_nothing_is_not_ready_until_it_does(
    trouble: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_health, "FRESH_S", 0.0)
    monkeypatch.setattr(database_health, "ANSWER_S", 0.5)
    fault: Callable[[], contextlib.AbstractContextManager[None]]
    if trouble == "locked":
        path = tmp_path / "jobs.sqlite"
        url, fault = f"sqlite:///{path}", lambda: locked(path)
    else:
        server: Postgres = request.getfixturevalue("postgres_server")
        made = server.database()
        relay = Relay(server.socket)
        url = f"postgresql://postgres@127.0.0.1:{relay.port}{urlsplit(made).path}?connect_timeout=2"
        fault = (lambda: read_only(server, made)) if trouble == "read_only" else (lambda: silent(relay))
    async with over(url) as client:
        await ready_again(client)
        with fault():
            answer = await client.get("/readyz")
            assert answer.status_code == 503
            assert "database" in answer.json()["detail"]
            assert int(answer.headers["Retry-After"]) > 0
        await ready_again(client)


def spoil(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(8, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(os.urandom(4096))


async def test_a_server_whose_database_has_spoilt_pages_takes_no_job_and_is_not_ready(
    tmp_path: Path, example: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_health, "INSPECT_S", 0.1)
    monkeypatch.setattr(database_health, "INSPECT_SHARE", 1.0)
    path = tmp_path / "jobs.sqlite"
    async with over(f"sqlite:///{path}") as client:
        await ready_again(client)
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with locked(path):
            waiting = asyncio.create_task(client.post("/prompt", json=example))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            spoil(path)
            assert (await waiting).status_code == 503
        async with asyncio.timeout(60):
            while (await client.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.1)
        for answer in (await client.get("/readyz"), await client.post("/prompt", json=example)):
            assert answer.status_code == 503
            assert "serve-app restore --replace BACKUP" in answer.json()["detail"]
