"""Files that a workflow names by a folder or an area ("sub/x.png", "x.png [output]") and that are not there.

Known before the workflow is accepted. Each is asked for by itself: listing a folder of outputs takes as long
as there are files in it. Knows no files: `exists` does.
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
    """Return it without the outputs that need files which are not there. exists: whether there is a file of a name."""
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
            # What no list is declared for, such as a painter's mask, its node looks for itself, as in ComfyUI.
            listed = declared.folder == "input" and declared.type == "COMBO"
            if listed and isinstance(name, str) and is_path(name):
                yield node, declared, name
