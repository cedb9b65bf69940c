"""Model files of a real bucket: fetched once a host, whole, checked, and still there when the bucket is not."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.errors import ModelFileError, StoreError
from serve_app.store.files.bucket import Bucket
from serve_app.store.files.location import Location
from serve_app.store.models import mirror as mirror_module
from serve_app.store.models.catalog import Catalog
from serve_app.store.models.mirror import Mirror

MODEL = bytes(range(256)) * 20_000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file be fetched in several spans, and a listing be asked for each time."""
    monkeypatch.setattr(mirror_module, "SPAN_BYTES", 1_500_000)
    monkeypatch.setattr(mirror_module, "LISTING_S", 0.0)


@pytest.fixture
def bucket(bucket: Bucket) -> Bucket:
    for key in ("checkpoints/sub/a.safetensors", "clip/b.safetensors", "notes.txt", "checkpoints/.git/x.safetensors"):
        bucket.put(key, MODEL, "application/octet-stream")
    return bucket


@pytest.fixture
def catalog(bucket: Bucket, tmp_path: Path) -> Catalog:
    return Catalog(Mirror(bucket, tmp_path))


def copies(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.name[0] != ".")


def test_files_are_named_by_folder_as_on_a_disk_and_none_is_fetched_for_that(catalog, tmp_path):
    assert catalog.names("checkpoints") == ["sub/a.safetensors"]
    assert catalog.names("text_encoders") == ["b.safetensors"]
    assert catalog.names("loras") == []
    assert catalog.stat("checkpoints", "sub/a.safetensors").size == len(MODEL)
    assert catalog.directory_index("text_encoders", "b.safetensors") == 1
    with catalog.open("checkpoints", "sub/a.safetensors") as file:
        assert file.read(8) == MODEL[:8]
    assert copies(tmp_path) == []


def test_a_file_is_fetched_whole_under_its_own_name_and_then_read_from_the_disk(catalog, bucket, tmp_path, monkeypatch):
    path = catalog.path("checkpoints", "sub/a.safetensors")
    assert path.read_bytes() == MODEL
    assert path.is_relative_to(tmp_path)
    assert path.name == "a.safetensors"
    monkeypatch.setattr(bucket, "get", None)
    assert catalog.path("checkpoints", "sub/a.safetensors") == path


def test_a_file_that_is_not_there_is_named_with_the_nearest_one(catalog):
    with pytest.raises(ModelFileError, match=r"is not in s3://.*did you mean 'b\.safetensors'"):
        catalog.path("clip", "bb.safetensors")
    assert catalog.fingerprint("clip", "bb.safetensors") == "absent"


def test_a_replaced_file_has_another_fingerprint_and_is_fetched_beside_the_earlier_one(catalog, bucket):
    name = ("checkpoints", "sub/a.safetensors")
    before, earlier = catalog.fingerprint(*name), catalog.path(*name)
    bucket.put("checkpoints/sub/a.safetensors", MODEL[::-1], "application/octet-stream")
    assert catalog.fingerprint(*name) != before
    later = catalog.path(*name)
    assert later.read_bytes() == MODEL[::-1]
    assert earlier.read_bytes() == MODEL


def test_models_that_were_used_can_be_used_while_the_bucket_is_away(bucket, tmp_path):
    catalog = Catalog(Mirror(bucket, tmp_path))
    path = catalog.path("checkpoints", "sub/a.safetensors")
    files = catalog.files
    assert isinstance(files, Mirror)
    files.hurried = Bucket(replace(bucket.location, endpoint="http://127.0.0.1:9", patience_s=0.0))
    assert catalog.names("checkpoints") == ["sub/a.safetensors"]
    assert catalog.path("checkpoints", "sub/a.safetensors") == path


def test_a_bucket_that_never_answered_is_the_reason_given(bucket_of, tmp_path):
    with pytest.raises(StoreError, match="NoSuchBucket"):
        Catalog(Mirror(bucket_of("no-such-bucket"), tmp_path)).names("checkpoints")


def test_what_arrives_damaged_is_thrown_away(catalog, bucket, tmp_path, monkeypatch):
    get = bucket.get

    class Damaged:
        def __init__(self, body) -> None:
            self._body = body
            self.close = body.close

        def read(self, amount: int) -> bytes:
            return self._body.read(amount).replace(b"\x07", b"\x08")

    def damaging(*arguments, **more):
        answer = get(*arguments, **more)
        return {**answer, "Body": Damaged(answer["Body"])}

    monkeypatch.setattr(bucket, "get", damaging)
    with pytest.raises(StoreError, match="Damaged"):
        catalog.path("checkpoints", "sub/a.safetensors")
    assert copies(tmp_path) == []
    monkeypatch.setattr(bucket, "get", get)
    assert catalog.path("checkpoints", "sub/a.safetensors").read_bytes() == MODEL


def test_a_fetch_that_fails_leaves_nothing_behind(catalog, bucket, tmp_path, monkeypatch):
    def refuse(*_arguments, **_more):
        raise bucket.error("read", "x", "SlowDown", "later")

    monkeypatch.setattr(bucket, "get", refuse)
    with pytest.raises(StoreError, match="SlowDown"):
        catalog.path("checkpoints", "sub/a.safetensors")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_copies_beyond_the_budget_go_least_recently_used_first(bucket, tmp_path):
    for name in "abc":
        bucket.put(f"loras/{name}.safetensors", name.encode() * 1000, "application/octet-stream")
    catalog = Catalog(Mirror(bucket, tmp_path, budget_bytes=2500))
    first, second = catalog.path("loras", "a.safetensors"), catalog.path("loras", "b.safetensors")
    catalog.path("loras", "a.safetensors")
    with second.open("rb") as reading:
        third = catalog.path("loras", "c.safetensors")
        assert copies(tmp_path) == sorted([first, third])
        assert reading.read() == b"b" * 1000


def test_fetching_a_model_brings_all_of_its_files(catalog, bucket, tmp_path):
    parts = ["unet/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"]
    for part in parts:
        bucket.put(f"diffusers/m/{part}.safetensors", part.encode(), "application/octet-stream")
    bucket.put("diffusers/m/model_index.json", b"{}", "application/json")
    assert catalog.names("diffusers") == ["m"]
    catalog.fetch("diffusers", "m")
    assert sorted(path.read_bytes().decode() for path in copies(tmp_path)) == sorted(parts)
    catalog.fetch("checkpoints", "none.safetensors")


def fetch_counted(location: Location, cache: Path, start, fetched) -> None:
    """Fetch in a process of its own, counting the bytes that come from the bucket."""
    bucket = Bucket(location)
    get = bucket.get

    def counted(key, span=None, etag=None):
        with fetched:
            fetched.value += len(span) if span is not None else len(MODEL)
        return get(key, span, etag)

    bucket.get = counted  # type: ignore[method-assign]
    start.wait()
    assert Mirror(bucket, cache).path("checkpoints/sub/a.safetensors").read_bytes() == MODEL


def test_processes_of_one_host_fetch_a_file_once_between_them(bucket, tmp_path):
    context = multiprocessing.get_context("spawn")
    start, fetched = context.Event(), context.Value("q", 0)
    arguments = (bucket.location, tmp_path, start, fetched)
    processes = [context.Process(target=fetch_counted, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    # One byte more is asked for to learn how the store keeps the file.
    assert fetched.value == len(MODEL) + 1
