"""Checks before acceptance that files named by a path or an area ("sub/x.png", "x.png [output]") exist.

Each is looked up by itself, as listing a folder of outputs may be long. Knows no files: `exists` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

from serve_app.graph.dynamic import opened
from serve_app.graph.graph import Graph, Node
from serve_app.graph.spec import Input, NodeSpec
from serve_app.graph.validate import Validated, is_path, not_uploaded, with_findings

LOOK_UPS = 250
"""How many files of one workflow are asked for, each perhaps by a request to a bucket; of others their nodes say it."""


def with_uploads(validated: Validated, specs: Mapping[str, NodeSpec], exists: Callable[[str], bool]) -> Validated:
    """Return it without the outputs that need missing files. exists: whether a named file exists."""
    named = list(_named(validated.graph, specs))
    names = dict.fromkeys(name for _, _, name in named)
    missing = {name for name in islice(names, LOOK_UPS) if not exists(name)}
    if not missing:
        return validated
    problems = [
        replace(not_uploaded(declared, name), node_id=node.id, class_type=node.class_type)
        for node, declared, name in named
        if name in missing
    ]
    return with_findings(validated, problems, {})


def _named(graph: Graph, specs: Mapping[str, NodeSpec]) -> Iterator[tuple[Node, Input, str]]:
    for node in graph.nodes.values():
        spec = specs.get(node.class_type)
        for declared in opened(spec, node.inputs).inputs if spec else ():
            name = node.inputs.get(declared.name)
            # A file without a declared list, for example a painter's mask, is looked up by its node, as in ComfyUI.
            listed = declared.folder == "input" and declared.type == "COMBO"
            if listed and isinstance(name, str) and is_path(name):
                yield node, declared, name
