"""Writes docs/modules.md: every package and module of serve_app with the first line of its docstring.

python -m docs.modules
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "modules.md"
HEAD = """# Modules

Made by `python -m docs.modules` from the modules' docstrings. How they work together:
[ARCHITECTURE.md](../ARCHITECTURE.md).
"""


def page() -> str:
    """Return the page as it should be."""
    top = ROOT / "serve_app"
    folders = sorted({path.parent for path in top.rglob("*.py")})
    return "\n".join([HEAD, *(_section(folder) for folder in folders)])


def _section(folder: Path) -> str:
    modules = sorted(path for path in folder.glob("*.py") if not path.name.startswith("__"))
    rows = [f"| `{path.stem}` | {_says(path)} |" for path in modules]
    table = ["| module | what it is |", "|---|---|", *rows, ""] if rows else []
    return "\n".join([f"## {folder.relative_to(ROOT)}", "", _says(folder / "__init__.py"), "", *table])


def _says(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) if path.exists() else None
    paragraph = (docstring or "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
