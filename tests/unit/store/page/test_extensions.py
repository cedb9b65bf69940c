from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.errors import FileMissingError
from serve_app.store.page.extensions import Extensions


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("a/__init__.py", 'raise LookupError\nWEB_DIRECTORY = "./js"')
    write("a/js/main.js", "a")
    write("a/js/deep/more.js", "b")
    write("a/js/style.css", "c")
    write("a/secret.txt", "d")
    write("b/__init__.py", "")
    write("b/pyproject.toml", '[tool.comfy]\nweb = "pages"')
    write("b/pages/b.js", "e")
    write("c/__init__.py", "WEB_DIRECTORY = compute()")
    write("d/__init__.py", "no python")
    write("e.disabled/__init__.py", 'WEB_DIRECTORY = "."')
    write("e.disabled/e.js", "f")
    return tmp_path


def test_scripts_are_listed_of_every_pack_that_has_pages_without_running_it(packs: Path) -> None:
    assert Extensions(packs).scripts() == [
        "/extensions/a/deep/more.js",
        "/extensions/a/main.js",
        "/extensions/b/b.js",
    ]


def test_a_file_of_the_pages_is_found_whatever_its_kind(packs: Path) -> None:
    assert Extensions(packs).path("a", "style.css").read_text() == "c"


@pytest.mark.parametrize(
    ("name", "file"),
    [("a", "../secret.txt"), ("a", "none.js"), ("a", "deep"), ("a", "x\0"), ("zzz", "a.js"), ("c", "x")],
)
def test_nothing_else_is(packs: Path, name: str, file: str) -> None:
    with pytest.raises(FileMissingError, match="no page file"):
        Extensions(packs).path(name, file)


def test_without_packs_there_are_no_pages(tmp_path: Path) -> None:
    assert Extensions(None).scripts() == Extensions(tmp_path / "none").scripts() == []
