from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve_app.errors import FileMissingError
from serve_app.store.page.pack_content import PackContent


@pytest.fixture
def packs(tmp_path: Path) -> Path:
    def write(name: str, text: str) -> None:
        path = tmp_path / "packs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("a/__init__.py", "raise LookupError")
    write("a/example_workflows/first.json", "{}")
    write("a/example_workflows/first.jpg", "picture")
    write("a/workflows/second.json", "{}")
    write("a/subgraphs/blend.json", '{"nodes": []}')
    write("a/locales/de/main.json", json.dumps({"g": {"save": "Sichern", "open": "Auf"}}))
    write("a/locales/de/nodeDefs.json", json.dumps({"A": {"display_name": "Ah"}}))
    write("b/locales/de/main.json", json.dumps({"g": {"open": "Öffnen"}}))
    write("b/locales/fr/main.json", "no JSON")
    write("b/locales/fr/settings.json", "[1]")
    write("c.disabled/workflows/third.json", "{}")
    write("secret.txt", "hidden")
    return tmp_path / "packs"


def test_example_workflows_are_listed_by_pack_and_found(packs: Path) -> None:
    content = PackContent(packs)
    assert content.workflows() == {"a": ["first", "second"]}
    assert content.workflow("a", "second.json") == packs / "a/workflows/second.json"
    assert content.workflow("a", "first.jpg").read_text() == "picture"


@pytest.mark.parametrize(
    ("pack", "file"),
    [("a", "none.json"), ("b", "first.json"), ("a", "../../secret.txt"), ("..", "secret.txt"), ("a", ""), ("a", "\0")],
)
def test_nothing_else_is_found(packs: Path, pack: str, file: str) -> None:
    with pytest.raises(FileMissingError, match="no example workflow"):
        PackContent(packs).workflow(pack, file)


def test_a_link_that_leads_out_of_its_pack_is_not_followed(packs: Path) -> None:
    (packs / "a/workflows/out.json").symlink_to(packs / "secret.txt")
    assert PackContent(packs).workflows() == {"a": ["first", "second"]}


def test_blueprints_are_listed_by_pack(packs: Path) -> None:
    assert PackContent(packs).subgraphs() == [("a", packs / "a/subgraphs/blend.json")]


def test_translations_of_all_packs_are_merged_by_language_and_broken_files_count_as_empty(packs: Path) -> None:
    assert PackContent(packs).translations() == {
        "de": {"g": {"save": "Sichern", "open": "Öffnen"}, "nodeDefs": {"A": {"display_name": "Ah"}}}
    }


def test_there_is_nothing_where_there_are_no_packs(tmp_path: Path) -> None:
    for content in (PackContent(None), PackContent(tmp_path / "none")):
        assert (content.workflows(), content.subgraphs(), content.translations()) == ({}, [], {})
