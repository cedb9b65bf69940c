"""`serve-app examples`: sample workflows in API format, which run on the models that come with the package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve_app.cli.lines import print_json, print_line
from serve_app.errors import WorkflowFileError, did_you_mean

FOLDER = Path(__file__).parent
DEMO = "text-to-image"


def names() -> list[str]:
    """Return the names of the samples, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read(name: str) -> Mapping[str, Any]:
    """Return a sample's graph. Errors: WorkflowFileError for an unknown name."""
    if name not in (known := names()):
        raise WorkflowFileError(
            f"no example is named {name!r}; there are {', '.join(known)}{did_you_mean(name, known)}"
        )
    graph: Mapping[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return graph


def wish(graph: Mapping[str, Any]) -> str:
    """Return the first text of a sample's graph, which says what it draws."""
    return next(str(node["inputs"]["text"]) for node in graph.values() if node["class_type"] == "CLIPTextEncode")


def list_examples(*, as_json: bool) -> int:
    """Print each sample's name and what it draws."""
    found = {name: wish(read(name)) for name in names()}
    if as_json:
        print_json(found)
        return 0
    width = max(map(len, found))
    for name, draws in found.items():
        print_line(f"{name:{width}}  {draws}")
    print_line("to run one: serve-app examples NAME > workflow.json; serve-app submit workflow.json", error=True)
    return 0


def print_example(name: str) -> int:
    """Print a sample's graph. Errors: WorkflowFileError for an unknown name."""
    print_json(read(name))
    return 0


def write_examples(folder: Path) -> int:
    """Copy every sample into a folder, and print the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names():
        print_line(str(shutil.copyfile(FOLDER / f"{name}.json", folder / f"{name}.json")))
    return 0
