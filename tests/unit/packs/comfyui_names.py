"""Writes what the modules of a ComfyUI checkout hold, which `serve_app.packs.missing` answers packs by.

    python -m tests.unit.packs.comfyui_names COMFYUI_DIRECTORY

Of each module, by name: what it binds at its top, each with null where it makes it, and with where it is from where it
imports it, "module" or "module:name". Nothing of the checkout is run.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from serve_app.packs.missing import NAMES_FILE, ROOTS

Names: TypeAlias = dict[str, str | None]
OWN_SCOPE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def names_of(directory: Path) -> dict[str, Names]:
    """Return the names of every module of a checkout that packs import from."""
    files = {_module(file.relative_to(directory)): file for root in ROOTS for file in _files(directory, root)}
    found: dict[str, Names] = {}

    def read(module: str) -> Names:
        if module not in found:
            found[module] = {}
            package = module if files[module].name == "__init__.py" else module.rpartition(".")[0]
            for name, source in _bound(ast.parse(files[module].read_text()).body, package):
                if name != "*":
                    found[module][name] = source
                elif str(source).rstrip(":") in files:
                    public = [member for member in read(str(source).rstrip(":")) if not member.startswith("_")]
                    found[module] |= {member: f"{source}{member}" for member in public}
        return found[module]

    return {module: dict(sorted(read(module).items())) for module in sorted(files)}


def _files(directory: Path, root: str) -> list[Path]:
    return [*(directory / root).rglob("*.py"), *directory.glob(f"{root}.py")]


def _module(file: Path) -> str:
    return ".".join(file.parent.parts if file.name == "__init__.py" else file.with_suffix("").parts)


def _bound(body: Sequence[ast.stmt], package: str) -> Iterator[tuple[str, str | None]]:
    """Yield what statements bind, also those within `if` and `try`, and where it is imported from."""
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield statement.name, None
            case ast.Import():
                for alias in statement.names:
                    yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
            case ast.ImportFrom():
                above = package.split(".")[: len(package.split(".")) - statement.level + 1] if statement.level else []
                source = ".".join([*above, *([statement.module] if statement.module else [])])
                for alias in statement.names:
                    yield alias.asname or alias.name, f"{source}:{'' if alias.name == '*' else alias.name}"
            case ast.Assign() | ast.AnnAssign() | ast.For() | ast.With():
                for node in _targets(statement):
                    yield from ((n.id, None) for n in ast.walk(node) if isinstance(n, ast.Name))
        if not isinstance(statement, OWN_SCOPE):
            for part in ("body", "orelse", "finalbody"):
                yield from _bound(getattr(statement, part, []), package)
            for handler in getattr(statement, "handlers", []):
                yield from _bound(handler.body, package)


def _targets(statement: ast.Assign | ast.AnnAssign | ast.For | ast.With) -> list[ast.expr]:
    match statement:
        case ast.Assign():
            return statement.targets
        case ast.With():
            return [item.optional_vars for item in statement.items if item.optional_vars is not None]
    return [statement.target]


def main(directory: Path) -> None:
    """Write the names, a line a module."""
    modules = names_of(directory)
    lines = (f"{json.dumps(module)}: {json.dumps(names)}" for module, names in modules.items())
    NAMES_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
