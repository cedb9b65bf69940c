"""Which of ComfyUI's official templates this server takes: docs/templates.md.

The templates come in packages of their own and are not part of this project:

    pip download --no-deps -d DIR comfyui-workflow-templates-json && unzip -d DIR DIR/*.whl
    python -m bench.templates DIR > docs/templates.md

A template passes if it converts, validates with every model file that it names there, and is within the default
bounds of a GPU; whether such a file is of a
family that runs here, only the file says.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from serve_app.cli.convert import own_classes
from serve_app.config.limits import SizeLimits
from serve_app.config.pool import LATENTS
from serve_app.errors import WorkflowFileError
from serve_app.graph.bounds import within_bounds
from serve_app.graph.parse import parse
from serve_app.graph.saved.convert import convert
from serve_app.graph.saved.page_nodes import PAGE_ONLY
from serve_app.graph.validate import validate
from serve_app.nodes.registry import specs
from serve_app.nodes.unsupported import NOT_THERE

MOST_CLASSES = 4
"""How many missing classes a row names."""


def problems(workflow: Mapping[str, Any], classes: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the classes that a saved workflow lacks, and, with all there, what else is wrong with it."""
    subgraphs = {str(found["id"]) for found in _definitions(workflow)}
    used = {str(node["type"]) for node in _nodes(workflow) if node.get("mode") not in (2, 4)}
    missing = sorted(used - classes.keys() - subgraphs - PAGE_ONLY)
    if missing:
        return missing, []
    try:
        prompt = convert(workflow, classes, NOT_THERE)
    except WorkflowFileError as error:
        return [], [str(error)]
    named = {v for node in prompt.values() for v in node["inputs"].values() if isinstance(v, str)}
    validated = validate(parse(prompt), specs(), lambda folder: sorted(named), None, NOT_THERE)
    bounded = within_bounds(validated, specs(), SizeLimits(), LATENTS["cuda"])
    outputs = {node.id for node in bounded.graph.nodes.values() if specs()[node.class_type].output_node}
    # What no output needs is never run, as in ComfyUI.
    found = () if outputs and outputs <= {*bounded.outputs} else bounded.problems
    return [], [f"{problem.class_type or 'the graph'}: {problem.message}" for problem in found]


def _definitions(workflow: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for subgraph in (workflow.get("definitions") or {}).get("subgraphs") or ():
        yield subgraph
        yield from _definitions(subgraph)


def _nodes(workflow: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from workflow.get("nodes") or ()
    for subgraph in _definitions(workflow):
        yield from subgraph.get("nodes") or ()


def page(folder: Path) -> str:
    """Return the table of the templates below a folder."""
    index = next(folder.rglob("index.json"))
    listed = [template for group in json.loads(index.read_text()) for template in group["templates"]]
    local = [template for template in listed if template.get("openSource") is not False]
    classes = own_classes()
    rows: list[str] = []
    lacking: Counter[str] = Counter()
    complete = passing = 0
    for template in sorted(local, key=lambda one: -int(one.get("usage") or 0)):
        workflow = json.loads((index.parent / f"{template['name']}.json").read_text())
        missing, wrong = problems(workflow, classes)
        lacking.update(missing)
        complete += not missing
        passing += not missing and not wrong
        shown = ", ".join(f"`{name}`" for name in missing[:MOST_CLASSES])
        more = f" and {len(missing) - MOST_CLASSES} more" if len(missing) > MOST_CLASSES else ""
        said = shown + more or "; ".join(wrong[:2]).replace("|", "\\|")[:300] or "passes"
        rows.append(f"| {template['name']} | {template.get('usage') or 0} | {said} |")
    head = [
        "# Templates",
        "",
        f"Of the {len(listed)} official templates of ComfyUI {len(local)} run on one's own machine. All classes of",
        f"{complete} of them are there, and {passing} convert and validate, given the model files that they name.",
        "Of which families those are, files alone tell: those of `hunyuan_video_text_to_video`,",
        "`ltxv_text_to_video` and `ltxv_image_to_video` are not supported.",
        "",
        "Written by `python -m bench.templates DIR`, DIR being the folder of the installed templates.",
        "",
        "## Classes that are missing most often",
        "",
        "| class | templates |",
        "|---|---|",
        *(f"| `{name}` | {count} |" for name, count in lacking.most_common(30)),
        "",
        "## Templates, most used first",
        "",
        "| template | usage | |",
        "|---|---|---|",
        *rows,
    ]
    return "\n".join(head) + "\n"


if __name__ == "__main__":
    print(page(Path(sys.argv[1])), end="")
