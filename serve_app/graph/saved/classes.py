"""The node classes that a workflow needs, in the format that the web page saves or in API format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.errors import WorkflowFileError
from serve_app.graph.saved.page_nodes import PAGE_ONLY

NOT_RUN = (2, 4)
"""The modes of nodes that are muted or bypassed."""


def needed_classes(workflow: Any) -> frozenset[str]:
    """Return the classes of the nodes that run, those in subgraphs too. Errors: WorkflowFileError."""
    if not isinstance(workflow, Mapping):
        raise WorkflowFileError("it is no workflow")
    if not isinstance(workflow.get("nodes"), list):
        nodes = (node for node in workflow.values() if isinstance(node, Mapping))
        return frozenset(str(node["class_type"]) for node in nodes if "class_type" in node)
    names = {str(found.get("id")) for found in _definitions(workflow)}
    used = {str(node.get("type")) for node in _nodes(workflow) if node.get("mode") not in NOT_RUN}
    return frozenset(used - names - PAGE_ONLY)


def _definitions(workflow: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for subgraph in (workflow.get("definitions") or {}).get("subgraphs") or ():
        yield subgraph
        yield from _definitions(subgraph)


def _nodes(workflow: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from workflow.get("nodes") or ()
    for subgraph in _definitions(workflow):
        yield from subgraph.get("nodes") or ()
