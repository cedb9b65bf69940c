"""Which of ComfyUI's official templates this server takes: docs/templates.md.

The templates come in packages of their own and are not part of this project:

    pip download --no-deps -d DIR comfyui-workflow-templates-json && unzip -d DIR DIR/*.whl
    python -m bench.templates DIR [COMFYUI PYTHON] > docs/templates.md

A template passes if it converts, validates with every model file that it names there, is within the default bounds of a
GPU, and names no network of `UNSUPPORTED`, which is known by its file's name alone. One that does not pass runs in a
pool of a ComfyUI if that validates it (`bench/templates_comfyui.py`): COMFYUI is its folder, PYTHON its interpreter.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from serve_app.cli.convert import own_classes
from serve_app.config.limits import SizeLimits
from serve_app.config.pool import LATENTS
from serve_app.errors import WorkflowFileError
from serve_app.graph.bounds import within_bounds
from serve_app.graph.parse import parse
from serve_app.graph.saved.classes import needed_classes
from serve_app.graph.saved.convert import convert
from serve_app.graph.validate import validate
from serve_app.nodes.registry import specs
from serve_app.nodes.unsupported import NOT_THERE

SPECS = specs()
UNSUPPORTED = {
    "lens": "Lens",
    "ming_image": "Ming-Image",
    "newbie": "NewBie-Image",
    "pixeldit": "PixelDiT",
    "stable-audio-open": "Stable Audio Open",
}
"""Families that are not supported, by how the names of their networks begin."""
WRITERS = {"gemma4_e4b": "Gemma 4 that hears"}
"""The same of language models that write texts."""
GEOMETRIES = {"moge_3": "MoGe 3"}
"""The same of networks that estimate the geometry of pictures."""
MOST_CLASSES = 4
"""How many missing classes a row names."""


def problems(workflow: Mapping[str, Any], classes: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the classes that a saved workflow lacks, and, with all there, what else is wrong with it."""
    if missing := lacking(workflow, classes):
        return missing, []
    try:
        prompt = convert(workflow, classes, NOT_THERE)
    except WorkflowFileError as error:
        return [], [str(error)]
    named = {v for node in prompt.values() for v in node["inputs"].values() if isinstance(v, str)}
    validated = validate(parse(prompt), SPECS, lambda folder: sorted(named), None, NOT_THERE)
    bounded = within_bounds(validated, SPECS, SizeLimits(), LATENTS["cuda"])
    outputs = {node.id for node in bounded.graph.nodes.values() if SPECS[node.class_type].output_node}
    # What no output needs is never run, as in ComfyUI.
    found = () if outputs and outputs <= {*bounded.outputs} else bounded.problems
    wrong = [f"{problem.class_type or 'the graph'}: {problem.message}" for problem in found]
    return [], wrong + [f"{family} is not supported" for family in families(prompt)]


def families(prompt: Mapping[str, Any]) -> list[str]:
    """Return the families that are not supported of the networks that a prompt names."""
    loaded: dict[str, set[str]] = {}
    for node in (prompt[key] for key in reached(prompt)):
        for declared in SPECS[node["class_type"]].inputs:
            if isinstance(name := node["inputs"].get(declared.name), str) and declared.folder:
                loaded.setdefault(declared.folder, set()).add(name.lower())
    networks = loaded.get("diffusion_models", set()) | loaded.get("checkpoints", set())
    named = (
        (UNSUPPORTED, networks),
        (WRITERS, loaded.get("text_encoders", set())),
        (GEOMETRIES, loaded.get("geometry_estimation", set())),
    )
    return sorted(
        family
        for table, names in named
        for begin, family in table.items()
        if any(name.startswith(begin) for name in names)
    )


def reached(prompt: Mapping[str, Any]) -> set[str]:
    """Return the nodes that a prompt's outputs need, by the switches as they are saved."""
    found: set[str] = set()
    todo = [key for key, node in prompt.items() if SPECS[node["class_type"]].output_node]
    while todo:
        if (key := todo.pop()) in found:
            continue
        found.add(key)
        node = prompt[key]
        left_out = {"on_false" if turned else "on_true" for turned in [_turned(prompt, node)] if turned is not None}
        links = (value for name, value in node["inputs"].items() if name not in left_out)
        todo += [link[0] for link in links if isinstance(link, list) and len(link) == 2 and link[0] in prompt]
    return found


def _turned(prompt: Mapping[str, Any], node: Mapping[str, Any]) -> bool | None:
    """Return how a switch is turned; None for another node, or one that another than a constant turns."""
    if node["class_type"] != "ComfySwitchNode":
        return None
    turned = node["inputs"].get("switch")
    if isinstance(turned, list) and prompt[turned[0]]["class_type"] == "PrimitiveBoolean":
        turned = prompt[turned[0]]["inputs"].get("value")
    return turned if isinstance(turned, bool) else None


def lacking(workflow: Mapping[str, Any], classes: Mapping[str, Any]) -> list[str]:
    """Return the classes that a saved workflow lacks."""
    return sorted(needed_classes(workflow) - classes.keys())


def cut_off(workflow: Mapping[str, Any]) -> list[str]:
    """Return the outputs of a saved workflow's subgraphs whose links the file lacks: nothing runs what needs them."""
    return [
        f"`{output['name']}` of its subgraph {subgraph['name']!r}"
        for subgraph in workflow.get("definitions", {}).get("subgraphs", [])
        for output in subgraph["outputs"]
        if output["linkIds"] and not {*output["linkIds"]} & {link["id"] for link in subgraph["links"]}
    ]


def said_by_comfyui(templates: Mapping[str, Any], folder: str, python: str) -> dict[str, list[str]]:
    """Return what a ComfyUI lacks for each saved workflow, by name: classes, or else what its validation refuses."""
    with TemporaryDirectory() as made:
        classes, prompts, out = (Path(made) / f"{name}.json" for name in ("classes", "prompts", "out"))
        script = [python, "-P", str(Path(__file__).with_name("templates_comfyui.py")), folder]
        subprocess.run([*script, "classes", str(classes)], check=True, stdout=subprocess.DEVNULL)
        known = json.loads(classes.read_text())
        said, converted = {}, {}
        for name, workflow in templates.items():
            if missing := lacking(workflow, known):
                said[name] = [f"`{one}`" for one in missing]
                continue
            try:
                converted[name] = convert(workflow, known, {})
            except WorkflowFileError as error:
                said[name] = [str(error)]
        prompts.write_text(json.dumps(converted))
        subprocess.run([*script, "validate", str(prompts), str(out)], check=True, stdout=subprocess.DEVNULL)
        validated: dict[str, list[str]] = json.loads(out.read_text())
        return said | validated


def page(folder: Path, *comfyui: str) -> str:
    """Return the table of the templates below a folder. comfyui: its folder and its interpreter, if it is asked."""
    index = next(folder.rglob("index.json"))
    listed = [template for group in json.loads(index.read_text()) for template in group["templates"]]
    local = [template for template in listed if template.get("openSource") is not False]
    workflows = {one["name"]: json.loads((index.parent / f"{one['name']}.json").read_text()) for one in local}
    usage = {template["name"]: int(template.get("usage") or 0) for template in local}
    classes = own_classes()
    found = {name: problems(workflow, classes) for name, workflow in workflows.items()}
    failing = {name: workflows[name] for name, (missing, wrong) in found.items() if missing or wrong}
    elsewhere = said_by_comfyui(failing, *comfyui) if comfyui else {}
    rows: list[str] = []
    missed: Counter[str] = Counter()
    nowhere = broken = 0
    for name in sorted(workflows, key=lambda name: -usage[name]):
        missing, wrong = found[name]
        missed.update(missing)
        there = elsewhere.get(name)
        cut = cut_off(workflows[name]) if there else []
        nowhere += bool(there and not cut)
        broken += bool(cut)
        where = "here" if name not in failing else "" if there is None else "nowhere" if there else "ComfyUI pool"
        shown = _few([f"`{one}`" for one in missing]) or "; ".join(wrong[:2])
        if there:
            shown += f"; a ComfyUI lacks {_few(there)}"
        if cut:
            shown = f"the file has no link to {_few(cut)}"
        rows.append(f"| {name} | {usage[name]} | {where} | {shown.replace('|', '/')[:400]} |")
    passing = len(workflows) - len(failing)
    share = sum(usage[name] for name in workflows if name not in failing) / max(1, sum(usage.values()))
    pools = len(failing) - nowhere - broken
    beside = [
        f"{pools} more validate in a pool of ComfyUI 0.33.0. {nowhere} run nowhere, since they",
        f"need what came after it, and {broken} since its file lacks a link.",
    ]
    head = [
        "# Templates",
        "",
        f"Of the {len(listed)} official templates of ComfyUI {len(local)} run on one's own machine. {passing} of them",
        f"convert and validate here, given the model files that they name: {share:.0%} by use.",
        *(beside if comfyui else []),
        "",
        "Written by `python -m bench.templates DIR COMFYUI PYTHON`, DIR being the folder of the installed templates.",
        "",
        "## Classes that are missing most often",
        "",
        "| class | templates |",
        "|---|---|",
        *(f"| `{name}` | {count} |" for name, count in missed.most_common(30)),
        "",
        "## Templates, most used first",
        "",
        "| template | usage | where | what is missing here |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(head) + "\n"


def _few(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - MOST_CLASSES} more" if len(names) > MOST_CLASSES else ""
    return ", ".join(names[:MOST_CLASSES]) + more


if __name__ == "__main__":
    print(page(Path(sys.argv[1]), *sys.argv[2:]), end="")
