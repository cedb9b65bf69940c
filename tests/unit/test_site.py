"""The documents as a site, whose every link leads somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from docs import reference_pages, site


def test_the_site_is_built_without_a_link_that_leads_nowhere(tmp_path: Path):
    assert site.build(tmp_path / "site") == 0
    assert "A quarter of an hour" in (tmp_path / "site" / "tutorial" / "index.html").read_text()


def test_a_link_to_an_anchor_that_is_not_there_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def few_pages(folder: Path) -> None:
        folder.mkdir()
        (folder / "index.md").write_text("[limits](limits.md#no-such-anchor)")
        (folder / "limits.md").write_text("# Limits")

    monkeypatch.setattr(site, "stage", few_pages)
    monkeypatch.setattr(site, "nav", lambda: ["index.md", "limits.md"])
    assert site.build(tmp_path / "site") == 1


@pytest.mark.parametrize("name", reference_pages.PAGES)
def test_a_reference_page_is_made_from_the_code(name: str):
    page = reference_pages.FOLDER / f"{name}.md"
    assert page.read_text() == reference_pages.PAGES[name](), "python -m docs.reference_pages writes it"


@pytest.mark.parametrize("name", ["contract", "v2", "comfyui", "operator"])
def test_the_openapi_document_of_a_dialect_is_made_from_its_routes(name: str):
    document = json.loads((reference_pages.FOLDER / f"openapi-{name}.json").read_text())
    assert document == reference_pages.documents()[name], "python -m docs.reference_pages writes it"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            named = {each["name"] for each in operation.get("parameters", ()) if each.get("in") == "path"}
            assert name in ("contract", "v2") or named == set(re.findall(r"{(\w+)}", path))
