"""What every store promises, on a volume and on a real object store."""

from __future__ import annotations

import threading

import pytest

from serve_app.errors import FileMissingError
from serve_app.store.files.store import FileRef, Store

REF = FileRef("output", "a/ü b", "x y.png")
CONTENT = bytes(range(256)) * 4096


def read(store: Store, ref: FileRef, span: range | None = None) -> bytes:
    with store.open(ref, span) as file:
        return file.read() if span is None else file.read(len(span))


def test_what_is_written_is_read_back_and_listed_in_its_area_and_subfolder_alone(store):
    store.write(REF, CONTENT)
    store.write(FileRef("output", "", "top.png"), b"1")
    store.write(FileRef("temp", "a/ü b", "other.png"), b"2")
    assert read(store, REF) == CONTENT
    assert store.stat(REF).size == len(CONTENT)
    assert list(store.names("output", "a/ü b")) == ["x y.png"]
    assert list(store.names("output")) == ["top.png"]
    assert list(store.names("output", "a")) == list(store.names("input")) == list(store.names("temp", "none")) == []


def test_a_replaced_content_has_another_tag(store):
    store.write(REF, b"one")
    first = store.stat(REF)
    assert store.stat(REF) == first
    store.write(REF, b"two")
    assert read(store, REF) == b"two"
    assert store.stat(REF).etag != first.etag


def test_a_name_that_is_taken_is_kept_where_it_may_not_be_replaced(store):
    store.write(REF, b"mine", replace=False)
    with pytest.raises(FileExistsError):
        store.write(REF, b"yours", replace=False)
    assert read(store, REF) == b"mine"


def test_of_many_who_write_one_new_name_at_once_one_succeeds(store):
    won: list[int] = []
    gate = threading.Barrier(8)

    def write(n: int) -> None:
        gate.wait()
        try:
            store.write(REF, bytes([n]) * 1000, replace=False)
        except FileExistsError:
            return
        won.append(n)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert read(store, REF) == bytes(won) * 1000


@pytest.mark.parametrize("span", [range(1), range(100, 90_000), range(len(CONTENT) - 5, len(CONTENT)), range(7, 7)])
def test_a_span_is_read_alone_and_the_file_can_still_be_read_elsewhere(store, span):
    store.write(REF, CONTENT)
    assert read(store, REF, span) == CONTENT[span.start : span.stop]
    with store.open(REF, span) as file:
        assert file.tell() == span.start
        assert file.read(300_000) == CONTENT[span.start : span.start + 300_000]
        file.seek(5)
        assert file.read(3) == CONTENT[5:8]
        file.seek(-4, 2)
        assert file.read() == CONTENT[-4:]


def test_an_empty_file_is_a_file(store):
    store.write(REF, b"")
    assert read(store, REF) == b""
    assert store.stat(REF).size == 0


@pytest.mark.parametrize(
    ("subfolder", "filename"),
    [
        ("", "absent.png"),
        ("absent", "x y.png"),
        ("", "a"),
        ("..", "secret.png"),
        ("a/../..", "secret.png"),
        ("", "../secret.png"),
        ("", ""),
        ("", ".."),
        ("/a", "x y.png"),
        ("", "x\0.png"),
        ("..\\..", "x"),
        ("", "\ud800.png"),
        ("a" * 2000, "x.png"),
    ],
)
def test_a_name_that_is_absent_or_no_name_is_missing(store, subfolder, filename):
    store.write(REF, b"x")
    ref = FileRef("output", subfolder, filename)
    for ask in (store.stat, store.open):
        with pytest.raises(FileMissingError):
            ask(ref)


def test_spellings_of_one_name_are_one_file(store):
    store.write(FileRef("output", "a//b/./", "x.png"), b"x")
    assert read(store, FileRef("output", "a/b", "x.png")) == b"x"
    assert list(store.names("output", "a/b/")) == ["x.png"]
