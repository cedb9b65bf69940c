"""Archives that are made while they are read."""

from __future__ import annotations

import io
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.store.files.archive import GONE, PIECE_BYTES, ArchiveMember, zipped
from serve_app.store.files.s3 import S3
from serve_app.store.files.store import FileRef, Store
from serve_app.store.files.volume import Volume


@pytest.fixture(params=["volume", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        return S3(request.getfixturevalue("bucket"))
    return Volume({"output": tmp_path / "output"})


def member(store: Store, filename: str, data: bytes, name: str) -> ArchiveMember:
    ref = FileRef("output", "sub", filename)
    store.write(ref, data)
    return ArchiveMember(ref, name, len(data), 1e9)


def opened(pieces: Iterator[bytes]) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(b"".join(pieces)))


def test_an_archive_holds_each_file_under_its_name(store):
    large = bytes(range(256)) * 4096
    members = [member(store, "a.png", large, "one/ä.png"), member(store, "b.txt", b"", "b.txt")]
    archive = opened(zipped(store, members))
    assert archive.testzip() is None
    assert {info.filename: archive.read(info) for info in archive.infolist()} == {"one/ä.png": large, "b.txt": b""}
    assert archive.infolist()[0].date_time == (2001, 9, 9, 1, 46, 40)


def test_no_piece_is_larger_than_what_is_read_at_once(tmp_path):
    store = Volume({"output": tmp_path})
    members = [member(store, "a.png", bytes(3 * PIECE_BYTES), "a.png")]
    sizes = [len(piece) for piece in zipped(store, members)]
    assert len(sizes) > 3
    assert max(sizes) < PIECE_BYTES + 1000


def test_a_file_that_has_gone_is_named_in_the_archive(store):
    members = [member(store, "a.png", b"1", "a.png"), member(store, "b.png", b"2", "sub/b.png")]
    store.delete(members[1].ref)
    archive = opened(zipped(store, members))
    assert archive.namelist() == ["a.png", GONE]
    assert archive.read(GONE) == b"sub/b.png\n"


def test_a_reader_that_goes_leaves_no_file_open(tmp_path):
    store = Volume({"output": tmp_path})
    files = [member(store, "a.png", bytes(3 * PIECE_BYTES), "a.png")]
    kept = []

    class Watched(Volume):
        def open(self, ref, span=None):
            kept.append(super().open(ref, span))
            return kept[-1]

    pieces = zipped(Watched({"output": tmp_path}), files)
    next(pieces)
    pieces.close()
    assert [file.closed for file in kept] == [True]


def test_another_program_reads_an_archive(tmp_path):
    store = Volume({"output": tmp_path})
    made = tmp_path / "made.zip"
    made.write_bytes(b"".join(zipped(store, [member(store, "a.png", b"12345", "one/a.png")])))
    if not Path("/usr/bin/unzip").exists():
        pytest.skip("there is no unzip on this machine")
    assert subprocess.run(["unzip", "-p", made, "one/a.png"], capture_output=True, check=True).stdout == b"12345"
