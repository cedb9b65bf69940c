"""Assets in either database: what refers to bytes, and when those are nobody's."""

from __future__ import annotations

import os
import time
from dataclasses import replace

import pytest

from serve_app.errors import AssetMissingError, KeyReusedError
from serve_app.events import Failure
from serve_app.store.database.changes import Claims, JobAccepted, JobEnded, JobRow
from serve_app.store.database.jobs import Jobs, T
from serve_app.store.database.queries import Query
from serve_app.store.files.store import FileRef
from serve_app.store.files.volume import Volume
from serve_app.store.page.assets import (
    FOLDER,
    Asset,
    DeleteAsset,
    Deleted,
    ExpireAssets,
    FindAssets,
    HasBytes,
    MintAsset,
    OutputsOf,
    RecordOutputs,
)
from serve_app.store.retention.sweep import UNFINISHED_S, Sweep

HASH = f"blake3:{'a' * 64}"
ROW = JobRow("job", 0.0, 0, {}, (), None, {}, created_s=5.0, queued_seq=1)


def file_name(n: int) -> str:
    return f"{'a' * 64}-{n:012x}.png"


def asset(n: int, **members: object) -> Asset:
    made = Asset(f"id-{n}", HASH, "input", f"{FOLDER}/{file_name(n)}", 3, "image/png", f"{n}.png", (), 5.0)
    return replace(made, **members)  # type: ignore[arg-type]


class Asked:
    """A database with its lease taken."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs, self.epoch = jobs, jobs.acquire("me")

    def __call__(self, query: Query[T]) -> T:
        return self.jobs.query(self.epoch, query)


@pytest.fixture
def ask(database_url):
    jobs = Jobs(database_url)
    yield Asked(jobs)
    jobs.close()


def test_a_second_asset_of_the_bytes_has_the_firsts_file(ask):
    first = ask(MintAsset(asset(1), stored=True))
    assert (first.created, first.shared) == (True, False)
    second = ask(MintAsset(asset(2), stored=True))
    assert (second.asset.path, second.created, second.shared) == (asset(1).path, True, True)
    assert ask(DeleteAsset("id-1")) == Deleted("deleted")
    assert ask(DeleteAsset("id-2")) == Deleted("deleted", (FileRef("input", FOLDER, file_name(1)),))
    assert ask(DeleteAsset("id-2")) == Deleted("missing")
    assert not ask(HasBytes(HASH))


def test_equal_queries_have_equal_answers(ask):
    for _ in range(2):
        minted = ask(MintAsset(asset(1), stored=True, key="k"))
        assert (minted.created, minted.shared) == (True, False)
    output = asset(3, area="output", path="x.png", job_id="job", node_id="9")
    for _ in range(2):
        ask(RecordOutputs((output,)))
    assert ask(OutputsOf(("job",))) == {"id-3": (output, False)}


def test_a_key_that_is_used_leaves_no_asset(ask):
    ask(MintAsset(asset(1), stored=True, key="k"))
    with pytest.raises(KeyReusedError):
        ask(MintAsset(asset(2, hash=f"blake3:{'b' * 64}"), stored=True, key="k"))
    assert ask(FindAssets(("id-1", "id-2"))).keys() == {"id-1"}


def test_a_job_takes_hold_of_its_assets_or_is_refused(ask):
    ask(MintAsset(asset(1), stored=True))
    with pytest.raises(AssetMissingError) as refused:
        ask.jobs.write(ask.epoch, [JobAccepted(ROW, Claims(None, ("id-1", "id-2")))])
    assert refused.value.asset_id == "id-2"
    for _ in range(2):
        ask.jobs.write(ask.epoch, [JobAccepted(ROW, Claims(None, ("id-1",)))])
    assert ask(DeleteAsset("id-1")) == Deleted("in use")
    ask.jobs.write(ask.epoch, [JobEnded("job", "cancelled", 6.0, 9, Failure())])
    assert ask(DeleteAsset("id-1")).what == "deleted"


def test_what_has_expired_goes_unless_a_job_uses_it(ask):
    ask(MintAsset(asset(1, expires_s=time.time() + 3600), stored=True))
    ask.jobs.write(ask.epoch, [JobAccepted(ROW, Claims(None, ("id-1",)))])
    over = asset(2, expires_s=1.0, hash=f"blake3:{'b' * 64}")
    ask(RecordOutputs((over,)))
    assert ask(FindAssets(("id-2",))) == {}
    assert ask(ExpireAssets()) == (over.ref,)
    assert ask(FindAssets(("id-1",))).keys() == {"id-1"}


def test_uploads_that_no_asset_has_are_swept_once_they_are_old(ask, tmp_path):
    volume = Volume({"input": tmp_path / "input", "output": tmp_path / "output", "temp": tmp_path / "temp"})
    ask(MintAsset(asset(1), stored=True))
    for name in (file_name(1), file_name(2), file_name(3), "mine.png"):
        volume.write(FileRef("input", FOLDER, name), b"abc")
        if name != file_name(3):
            long_ago_s = time.time() - UNFINISHED_S - 60
            os.utime(tmp_path / "input" / FOLDER / name, (long_ago_s, long_ago_s))
    assert Sweep(ask.jobs, volume, 60.0).abandoned_uploads() == 1
    assert sorted(volume.names("input", FOLDER)) == sorted([file_name(1), file_name(3), "mine.png"])
