"""Builds the documents as a site: python -m docs.site FOLDER. A link that leads nowhere ends it with status 1.

The pages are the repository's own; links to its other files become plain text.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
AT_ROOT = {"README": "index", "ARCHITECTURE": "architecture", "SECURITY": "security", "CHANGELOG": "changelog"} | {
    "CONTRIBUTING": "contributing"
}
"""The site's pages that are beside the folder of documents, by their file's name."""
GUIDES = (
    "deploy",
    "deploy-tested",
    "kubernetes",
    "operations",
    "storage",
    "model-files",
    "monitoring",
    "tenants",
    "quotas",
    "plugins",
    "comfyui-pool",
    "clients",
)
REFERENCE = ("models", "nodes", "templates", "limits", "metrics", "plan", "pack-coverage", "modules", "glossary")
EXPLANATION = (
    "failures",
    "misbehaving-nodes",
    "scale",
    "scale-simulation",
    "gpu",
    "speed-settings",
    "several-devices",
    "several-devices-figures",
    "parity",
    "parity-differences",
    "parity-sound",
)
OTHERS = ("model-card", "style")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def nav() -> list[dict[str, Any]]:
    """Return the site's navigation, in Diataxis' four parts."""
    guides = sorted(f"guides/{path.name}" for path in (ROOT / "docs" / "guides").glob("*.md"))
    made = sorted(f"reference/{path.name}" for path in (ROOT / "docs" / "reference").glob("*.md"))
    decisions = sorted(f"decisions/{path.name}" for path in (ROOT / "docs" / "decisions").glob("*.md"))
    return [
        {"Start": "index.md"},
        {"Tutorial": "tutorial.md"},
        {"Guides": [*guides, *_pages(GUIDES), "security.md"]},
        {"Reference": [*made, *_pages(REFERENCE), "changelog.md"]},
        {
            "Explanation": [
                "architecture.md",
                *_pages(EXPLANATION),
                {"Decisions": decisions},
                "contributing.md",
                *_pages(OTHERS),
            ]
        },
    ]


def stage(folder: Path) -> None:
    """Write the site's source into a folder: every page, with links as the site has them."""
    for path in sorted((ROOT / "docs").rglob("*")):
        place = folder / path.relative_to(ROOT / "docs")
        if path.suffix in (".md", ".png", ".json"):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(_page(path, place, folder).encode() if path.suffix == ".md" else path.read_bytes())
    for name, page in AT_ROOT.items():
        place = folder / f"{page}.md"
        place.write_text(_page(ROOT / f"{name}.md", place, folder).replace("](docs/images/", "](images/"))


def build(target: Path) -> int:
    """Build the site; return the exit status of mkdocs, which is 1 for a link or anchor that is not there."""
    with tempfile.TemporaryDirectory() as source:
        stage(Path(source, "docs"))
        settings = {
            "site_name": "serve-app",
            "docs_dir": "docs",
            "site_dir": str(target.absolute()),
            "theme": {"name": "material", "font": False, "features": ["navigation.tabs", "content.code.copy"]},
            "plugins": ["search"],
            "markdown_extensions": ["admonition", "toc", "pymdownx.superfences"],
            "validation": {
                "nav": {"omitted_files": "warn"},
                "links": {"anchors": "warn", "unrecognized_links": "warn"},
            },
            "nav": nav(),
        }
        file = Path(source, "mkdocs.yml")
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(file)]
        # Its notice of another program for sites is no warning about these pages.
        done = subprocess.run(
            command, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.stderr.write("".join(line for line in done.stderr.splitlines(True) if not line.startswith("INFO")))
    return done.returncode


def _pages(names: tuple[str, ...]) -> list[str]:
    return [f"{name}.md" for name in names]


def _page(path: Path, place: Path, folder: Path) -> str:
    """Return a page's text with its links as the site has them."""

    def link(found: re.Match[str]) -> str:
        text, to, anchor = found[1], (path.parent / found[2]).resolve(), found[3] or ""
        if to.parent == ROOT and to.stem in AT_ROOT:
            there = folder / f"{AT_ROOT[to.stem]}.md"
        elif to.suffix in (".md", ".json") and to.is_relative_to(ROOT / "docs"):
            there = folder / to.relative_to(ROOT / "docs")
        else:
            return text
        up = "../" * len(place.parent.relative_to(folder).parts)
        return f"[{text}]({up}{there.relative_to(folder)}{anchor})"

    return _LINK.sub(link, path.read_text())


if __name__ == "__main__":
    raise SystemExit(build(Path(sys.argv[1])))
