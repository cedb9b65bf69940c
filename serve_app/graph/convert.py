"""A workflow as the web page saves it, turned into API format: what the page itself does before it queues a job.

Pure JSON to JSON; knows the classes as /object_info describes them, because a saved node lists its widgets' values by
position only. Rules: those of ComfyUI's frontend 1.58 (muted nodes go, bypassed ones pass on what fits their output's
type, the page's own nodes dissolve, subgraphs unfold into nodes named HOST:NODE). What the page draws by chance when it
queues, `{red|blue}` in a text, stays as it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from serve_app.errors import WorkflowFileError, did_you_mean
from serve_app.graph.parse import WRAPPED
from serve_app.graph.validate import unknown_class
from serve_app.graph.widgets import CUSTOM_COMBO, place_in_list, widget_values

NEVER, BYPASS = 2, 4
"""The modes of a muted node and of a bypassed one."""
PAGE_ONLY = frozenset({"Reroute", "PrimitiveNode", "Note", "MarkdownNote"})
"""Node types that exist in the page alone."""
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = "-10", "-20"
"""The ids of the two ends of a subgraph in its own links."""
OWN = "-1"
"""In `proxyWidgets`: the host's own input, not a widget of a node inside."""

JsonObject: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Constant:
    """What an input is given by a primitive node, or by a widget of the subgraph around it."""

    value: Any


Seen: TypeAlias = frozenset[tuple[tuple[str, ...], str, int]]
"""The outputs a link has been followed through: (path, node id, slot)."""
Source: TypeAlias = tuple[str, int] | Constant | None
"""Where an input's value comes from: (node id, slot), a constant, or nothing."""


@dataclass(frozen=True, slots=True)
class Level:
    """One graph on the page: the workflow itself, or one use of a subgraph.

    links: id -> (origin id, slot). path: the ids of the hosts around it. entries: the names of its inputs, of which a
    saved host may hold fewer. ends: an output's position -> the link to it.
    shown: an input's name -> the value that the host shows for it. widgets: an input's name -> (node id, widget) of the
    first widget inside that it is linked to, whose value it has where the host has none of its own.
    overrides: (node id, widget) -> the value that the host shows instead.
    """

    nodes: Mapping[str, JsonObject]
    links: Mapping[Any, tuple[str, int]]
    path: tuple[str, ...] = ()
    host: JsonObject | None = None
    outer: Level | None = None
    entries: Sequence[str] = ()
    ends: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    shown: Mapping[str, Any] = field(default_factory=dict)
    widgets: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    overrides: Mapping[tuple[str, str], Any] = field(default_factory=dict)

    def name(self, node_id: str) -> str:
        """Return the id that a node of this level has in API format."""
        return ":".join((*self.path, node_id))


def is_saved_by_page(workflow: Any) -> bool:
    """Whether a JSON value is a workflow as the page saves it, and not one in API format."""
    return isinstance(workflow, Mapping) and isinstance(workflow.get("nodes"), list)


def convert(
    workflow: JsonObject,
    classes: Mapping[str, JsonObject],
    unsupported: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the workflow in API format.

    classes: what /object_info answers. unsupported: why there is no such class, as of `validate`, whose words these
    are too. Errors: WorkflowFileError naming the nodes of unknown classes, or what in the file leads nowhere.
    """
    try:
        return _Conversion(workflow, classes, unsupported).result()
    except (AttributeError, TypeError, ValueError, LookupError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise WorkflowFileError(f"the workflow is not as the web page saves one: {reason}") from error


class _Conversion:
    def __init__(self, workflow: JsonObject, classes: Mapping[str, JsonObject], unsupported: Mapping[str, str]) -> None:
        self._classes, self._unsupported = classes, unsupported
        self._subgraphs = {str(found["id"]): found for found in _definitions(workflow)}
        self._inner: dict[tuple[str, ...], Level] = {}
        self._top = _level(workflow)

    def result(self) -> dict[str, Any]:
        found = list(self._running(self._top))
        unknown: dict[str, list[str]] = {}
        for level, node_id, node in found:
            if (kind := node["type"]) not in self._classes:
                unknown.setdefault(kind, []).append(level.name(node_id))
        if unknown:
            raise WorkflowFileError("; ".join(self._missing(kind, nodes) for kind, nodes in unknown.items()))
        return {level.name(node_id): self._rendered(level, node_id, node) for level, node_id, node in found}

    def _missing(self, kind: str, nodes: list[str]) -> str:
        reason = unknown_class(kind, self._unsupported.get(kind), lambda: did_you_mean(kind, self._classes))
        return f"{'nodes' if nodes[1:] else 'node'} {', '.join(nodes)}: {reason}"

    def _running(self, level: Level) -> Iterator[tuple[Level, str, JsonObject]]:
        for node_id, node in level.nodes.items():
            kind = node["type"]
            if node.get("mode") in (NEVER, BYPASS) or kind in PAGE_ONLY:
                continue
            if kind.startswith(("workflow/", "workflow>")):
                where = f"node {level.name(node_id)} is the group node {kind!r}"
                raise WorkflowFileError(f"{where}; open the workflow in the web page and convert it to a subgraph")
            if kind in self._subgraphs:
                yield from self._running(self._inside(level, node_id))
            else:
                yield level, node_id, node

    def _inside(self, outer: Level, node_id: str) -> Level:
        """Return the level that a subgraph's host stands for."""
        path, host = (*outer.path, node_id), outer.nodes[node_id]
        if path not in self._inner:
            definition = self._subgraphs[host["type"]]
            around: Level | None = outer
            while around is not None:
                if around.host is not None and around.host["type"] == host["type"]:
                    raise WorkflowFileError(f"node {outer.name(node_id)} is a subgraph that holds itself")
                around = around.outer
            self._inner[path] = _level(definition, path, host, outer)
        return self._inner[path]

    def _rendered(self, level: Level, node_id: str, node: JsonObject) -> dict[str, Any]:
        info = self._classes[node["type"]]
        inputs = widget_values(node, info)
        inputs |= {name: value for (owner, name), value in level.overrides.items() if owner == node_id}
        inputs = {name: {WRAPPED: value} if isinstance(value, list) else value for name, value in inputs.items()}
        for index, given in enumerate(node.get("inputs") or ()):
            source = self._source(level, node_id, index, given["type"])
            if isinstance(source, Constant):
                inputs[given["name"]] = {WRAPPED: source.value} if isinstance(source.value, list) else source.value
            elif source is not None:
                inputs[given["name"]] = list(source)
        if node["type"] == CUSTOM_COMBO:
            inputs["index"] = place_in_list(inputs)
        title = node.get("title") or info.get("display_name") or node["type"]
        return {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}

    def _source(self, level: Level, node_id: str, index: int, wanted: str, seen: Seen = frozenset()) -> Source:
        """Follow the link into an input. wanted: the type that what passes it on has to fit."""
        inputs = level.nodes[node_id].get("inputs") or ()
        if index >= len(inputs) or inputs[index].get("link") is None:
            return None
        origin, slot = level.links[inputs[index]["link"]]
        if origin != SUBGRAPH_INPUT or level.host is None or level.outer is None:
            return self._output(level, origin, slot, wanted, seen)
        name = level.entries[slot]
        for position, outside in enumerate(level.host.get("inputs") or ()):
            if outside["name"] == name and outside.get("link") is not None:
                return self._source(level.outer, level.path[-1], position, outside["type"], seen)
        return self._shown(level, name)

    def _shown(self, level: Level, name: str) -> Constant | None:
        """Return the value that a host's input has without a link, None if no widget stands for it."""
        if name in level.shown:
            return Constant(level.shown[name])
        if name not in level.widgets:
            return None
        owner, widget = level.widgets[name]
        if (owner, widget) in level.overrides:
            return Constant(level.overrides[owner, widget])
        node = level.nodes[owner]
        if node["type"] in self._subgraphs:
            return self._shown(self._inside(level, owner), widget)
        values = widget_values(node, self._classes[node["type"]]) if node["type"] in self._classes else {}
        return Constant(values[widget]) if widget in values else None

    def _output(self, level: Level, node_id: str, slot: int, wanted: str, seen: Seen) -> Source:
        """Return what runs in place of an output: itself, or whatever it passes on."""
        place = (level.path, node_id, slot)
        if place in seen:
            raise WorkflowFileError(f"node {level.name(node_id)} passes on what it is given by itself")
        seen |= {place}
        node = level.nodes[node_id]
        kind = node["type"]
        if node.get("mode") == NEVER:
            return None
        if node.get("mode") == BYPASS:
            index = _passed_on(node, slot, wanted)
            return None if index is None else self._source(level, node_id, index, node["inputs"][index]["type"], seen)
        if kind == "PrimitiveNode":
            values = node.get("widgets_values") or ()
            return Constant(values[0]) if values else None
        if kind in PAGE_ONLY:
            return self._source(level, node_id, slot, wanted, seen)
        if kind in self._subgraphs:
            inner = self._inside(level, node_id)
            return self._output(inner, *inner.ends[slot], wanted, seen) if slot in inner.ends else None
        return level.name(node_id), slot


def _definitions(workflow: JsonObject) -> Iterator[JsonObject]:
    for subgraph in (workflow.get("definitions") or {}).get("subgraphs") or ():
        yield subgraph
        yield from _definitions(subgraph)


def _level(
    graph: JsonObject, path: tuple[str, ...] = (), host: JsonObject | None = None, outer: Level | None = None
) -> Level:
    links = [_link(given) for given in graph.get("links") or ()]
    nodes = {str(node["id"]): node for node in graph["nodes"]}
    promoted = [] if host is None else list(_promoted(host, graph))
    widgets = {} if host is None else _widgets(graph)
    return Level(
        dict(sorted(nodes.items(), key=lambda item: _rank(item[0]))),
        {link: (origin, slot) for link, origin, slot, _, _ in links},
        path,
        host,
        outer,
        [] if host is None else [entry["name"] for entry in graph.get("inputs") or ()],
        {end: (origin, slot) for _, origin, slot, target, end in links if target == SUBGRAPH_OUTPUT},
        {name: value for owner, name, value in promoted if owner == OWN},
        widgets,
        {(owner, name): value for owner, name, value in promoted if owner != OWN},
    )


def _rank(node_id: str) -> tuple[bool, int]:
    """Return an order as of a JavaScript object: whole numbers first, ascending."""
    return not node_id.isdecimal(), int(node_id) if node_id.isdecimal() else 0


def _link(given: Any) -> tuple[Any, str, int, str, int]:
    """Return a link as (id, origin, slot, target, slot); it is saved as a list or, in newer files, as an object."""
    if isinstance(given, Mapping):
        given = [given[key] for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    return given[0], str(given[1]), int(given[2]), str(given[3]), int(given[4])


def _passed_on(node: JsonObject, slot: int, wanted: str) -> int | None:
    """Return which input a bypassed node passes on as one of its outputs, None for none that fits."""
    types = [given["type"] for given in node.get("inputs") or ()]
    made = node["outputs"][slot]["type"]
    if wanted in ("*", ""):
        return slot if slot < len(types) else 0 if types else None
    fitting = [index for index, kind in enumerate(types) if _fits(kind, made) and _fits(kind, wanted)]
    if slot in fitting:
        return slot
    return types.index(wanted) if wanted in types else next(iter(fitting), None)


def _fits(one: Any, other: Any) -> bool:
    """Whether a link may join two slot types; a type may be a comma list, "*" joins all."""
    ones, others = ({part.strip().lower() for part in str(kind).split(",")} for kind in (one, other))
    return bool(ones & others) or "*" in ones | others or not (one and other)


def _promoted(host: JsonObject, definition: JsonObject) -> Iterator[tuple[str, str, Any]]:
    """Yield (node id inside or OWN, widget, value) for the widgets that a subgraph's host shows."""
    proxies = (host.get("properties") or {}).get("proxyWidgets")
    if proxies is None:
        proxies = [(OWN, name) for name in _widgets(definition)]
    # Without values of its own a host shows those of the nodes inside.
    for (owner, name, *_), value in zip(proxies, host.get("widgets_values") or (), strict=False):
        if value is not None:
            yield str(owner), str(name), value


def _widgets(definition: JsonObject) -> dict[str, tuple[str, str]]:
    """Return the first widget inside, (node id, name), of each input of a subgraph that is linked to any, by its name.

    A host saves a value of each of them, in this order. It may leave inputs out, but no value.
    """
    inside = {str(node["id"]): node.get("inputs") or () for node in definition["nodes"]}
    found: dict[int, tuple[str, str]] = {}
    for _, origin, slot, target, end in map(_link, definition.get("links") or ()):
        if origin == SUBGRAPH_INPUT and end < len(inside.get(target, ())) and (at := inside[target][end]).get("widget"):
            found.setdefault(slot, (target, at["widget"].get("name", at["name"])))
    return {entry["name"]: found[slot] for slot, entry in enumerate(definition.get("inputs") or ()) if slot in found}
