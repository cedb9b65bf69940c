"""The subgraphs of a saved workflow, with node ids made unique over the file.

The page gives a new id to a node of a subgraph whose id the workflow or an earlier subgraph has, behind the last one.
Rules: those of ComfyUI's frontend 1.58.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

JsonObject: TypeAlias = Mapping[str, Any]


def with_unique_ids(workflow: JsonObject) -> tuple[JsonObject, dict[str, JsonObject]]:
    """Return the workflow and its subgraphs by id, the nodes of each under ids of their own."""
    used = {str(node["id"]) for node in workflow["nodes"]}
    numbers = [int(node_id) for node_id in used if node_id.isdecimal()]
    last = max([*numbers, last_id(workflow)])
    renamed: dict[str, dict[str, str]] = {}
    graphs: dict[str, JsonObject] = {}
    for graph in _definitions(workflow):
        ids: dict[str, str] = {}
        for own in (str(node["id"]) for node in graph["nodes"]):
            if own in used:
                last += 1
                ids[own] = str(last)
            elif own.isdecimal():
                last = max(last, int(own))
            used.add(ids.get(own, own))
        graphs[str(graph["id"])] = _renamed(graph, ids) if ids else graph
        renamed[str(graph["id"])] = ids
    if not any(renamed.values()):
        return workflow, graphs
    return _with_hosts(workflow, renamed), {name: _with_hosts(graph, renamed) for name, graph in graphs.items()}


def last_id(workflow: JsonObject) -> int:
    """Return the highest number that a node of the workflow has had, as it is saved; 0 if it is not."""
    saved = workflow.get("last_node_id") or (workflow.get("state") or {}).get("lastNodeId")
    return int(saved) if isinstance(saved, int) else 0


def _definitions(workflow: JsonObject) -> Iterator[JsonObject]:
    for subgraph in (workflow.get("definitions") or {}).get("subgraphs") or ():
        yield subgraph
        yield from _definitions(subgraph)


def _renamed(graph: JsonObject, ids: Mapping[str, str]) -> JsonObject:
    ends = ("origin_id", "target_id")
    links = [
        {**link, **{end: ids.get(str(link.get(end)), link.get(end)) for end in ends}}
        for link in graph.get("links") or ()
        if isinstance(link, Mapping)
    ]
    nodes = [{**node, "id": ids.get(str(node["id"]), node["id"])} for node in graph["nodes"]]
    return {**graph, "nodes": nodes, "links": links}


def _with_hosts(graph: JsonObject, renamed: Mapping[str, Mapping[str, str]]) -> JsonObject:
    """Return a graph whose hosts name the widgets that they show by their nodes' new ids."""
    return {**graph, "nodes": [_host(node, renamed.get(str(node.get("type")), {})) for node in graph["nodes"]]}


def _host(node: JsonObject, ids: Mapping[str, str]) -> JsonObject:
    proxies: Sequence[Any] | None = (node.get("properties") or {}).get("proxyWidgets")
    if not ids or not isinstance(proxies, list):
        return node
    shown = [[ids.get(str(owner), owner), *names] for owner, *names in proxies]
    return {**node, "properties": {**node["properties"], "proxyWidgets": shown}}
