from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import FileMissingError
from serve_app.store.files.store import AREAS, FileRef
from serve_app.store.files.volume import Volume


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret.png").write_bytes(b"secret")
    return tmp_path


@pytest.fixture
def volume(root: Path) -> Volume:
    return Volume({area: root / area for area in AREAS})


def read(volume: Volume, ref: FileRef) -> bytes:
    with volume.open(ref) as file:
        return file.read()


def test_what_is_written_is_read_back_and_listed(volume: Volume) -> None:
    ref = FileRef("output", "a/b", "x.png")
    volume.write(ref, b"one")
    assert read(volume, ref) == b"one"
    assert list(volume.names("output", "a/b")) == ["x.png"]
    assert volume.stat(ref).size == 3
    assert volume.resolve(ref).read_bytes() == b"one"


def test_a_replaced_content_has_another_tag_even_at_the_same_size_and_time(volume: Volume) -> None:
    ref = FileRef("output", "", "x.png")
    volume.write(ref, b"one")
    first, time_ns = volume.stat(ref), volume.resolve(ref).stat().st_mtime_ns
    with volume.open(ref):  # keeps the old inode's number from being given away
        volume.write(ref, b"two")
    os.utime(volume.resolve(ref), ns=(time_ns, time_ns))
    assert read(volume, ref) == b"two"
    assert volume.stat(ref).modified_s == first.modified_s
    assert volume.stat(ref).etag != first.etag


def test_a_reader_keeps_the_old_content_while_a_new_one_is_written(volume: Volume) -> None:
    ref = FileRef("output", "", "x.png")
    volume.write(ref, b"old content")
    with volume.open(ref) as file:
        volume.write(ref, b"new")
        assert file.read() == b"old content"


def test_a_write_that_fails_leaves_neither_half_a_file_nor_litter(volume: Volume, root: Path) -> None:
    ref = FileRef("output", "", "x.png")
    volume.write(ref, b"whole")
    with pytest.raises(TypeError):
        volume.write(ref, "text")  # type: ignore[arg-type]
    assert read(volume, ref) == b"whole"
    assert os.listdir(root / "output") == ["x.png"]


def test_a_file_system_without_links_creates_names_once_too(
    volume: Volume, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    ref = FileRef("output", "", "x.png")
    volume.write(ref, b"mine", replace=False)
    with pytest.raises(FileExistsError):
        volume.write(ref, b"yours", replace=False)
    assert read(volume, ref) == b"mine"
    assert os.listdir(root / "output") == ["x.png"]


def test_a_folder_that_does_not_exist_has_no_names(volume: Volume) -> None:
    assert list(volume.names("temp", "nowhere")) == []


@pytest.mark.parametrize(
    ("subfolder", "filename"),
    [
        ("", "../secret.png"),
        ("..", "secret.png"),
        ("a/../..", "secret.png"),
        ("", ".."),
        ("", ""),
        ("", "a/b.png"),
        ("/etc", "passwd"),
        ("", "/etc/passwd"),
        ("..\\..", "secret.png"),
        ("", "..\\secret.png"),
        ("", "x\0.png"),
        ("", "x" * 5000),
        ("a" * 300, "x.png"),
        ("", "\ud800.png"),
    ],
)
def test_a_name_that_leaves_its_area_or_is_no_name_is_missing(volume: Volume, subfolder: str, filename: str) -> None:
    ref = FileRef("output", subfolder, filename)
    for action in (volume.stat, volume.open, volume.resolve):
        with pytest.raises(FileMissingError):
            action(ref)


def test_a_symbolic_link_out_of_the_area_is_missing_for_reading_and_writing(volume: Volume, root: Path) -> None:
    (root / "output").mkdir()
    (root / "output" / "file.png").symlink_to(root / "secret.png")
    (root / "output" / "folder").symlink_to(root)
    for ref in (FileRef("output", "", "file.png"), FileRef("output", "folder", "secret.png")):
        with pytest.raises(FileMissingError):
            volume.open(ref)
        with pytest.raises(FileMissingError):
            volume.write(ref, b"overwritten")
    assert (root / "secret.png").read_bytes() == b"secret"


def test_an_area_may_itself_be_a_symbolic_link(root: Path) -> None:
    (root / "elsewhere").mkdir()
    (root / "linked").symlink_to(root / "elsewhere")
    volume = Volume({"output": root / "linked"})
    volume.write(FileRef("output", "", "x.png"), b"x")
    assert (root / "elsewhere" / "x.png").read_bytes() == b"x"


def test_a_folder_is_not_a_file(volume: Volume) -> None:
    volume.write(FileRef("output", "a", "x.png"), b"x")
    for ref in (FileRef("output", "", "a"), FileRef("output", "a/x.png", "y.png")):
        with pytest.raises(FileMissingError):
            volume.write(ref, b"")
    with pytest.raises(FileMissingError):
        volume.open(FileRef("output", "", "a"))


@given(st.text(alphabet="./\\a\0 ~%", max_size=12), st.text(alphabet="./\\a\0 ~%", max_size=8))
def test_no_spelling_reaches_a_file_beside_the_areas(
    tmp_path_factory: pytest.TempPathFactory, subfolder: str, filename: str
) -> None:
    root = tmp_path_factory.getbasetemp()
    volume = Volume({"output": root / "area" / "output"})
    try:
        path = volume.path_of(FileRef("output", subfolder, filename))
    except FileMissingError:
        return
    assert path.is_relative_to(root / "area" / "output")
    assert path != root / "area" / "output"


@pytest.mark.parametrize(
    ("name", "ref"),
    [
        ("a.png", FileRef("input", "", "a.png")),
        ("sub/deep/a.png", FileRef("input", "sub/deep", "a.png")),
        ("sub/a.png [output]", FileRef("output", "sub", "a.png")),
        ("a.png [temp]", FileRef("temp", "", "a.png")),
        ("a.png[input]", FileRef("input", "", "a.png")),
    ],
)
def test_a_widget_value_names_a_file_and_its_area(name: str, ref: FileRef) -> None:
    assert FileRef.parse(name) == ref


def test_outputs_and_their_names_are_on_the_disk_once_written_and_previews_need_not_be(
    volume: Volume, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
    volume.write(FileRef("temp", "", "x.png"), b"one")
    assert (synced, read(volume, FileRef("temp", "", "x.png"))) == ([], b"one")
    volume.write(FileRef("output", "", "x.png"), b"one")
    assert synced[0].endswith(".part")
    assert synced[1] == str(root / "output")
