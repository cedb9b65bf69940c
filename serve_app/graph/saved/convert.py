"""Converts a workflow that the web page saved to API format, as the page itself does before it queues a job.

Pure JSON to JSON; knows the classes as /object_info describes them, because a saved node lists its widgets' values by
position only. Rules: those of ComfyUI's frontend 1.58 (muted nodes go, bypassed ones pass on what fits their output's
type, the page's own nodes dissolve, subgraphs unfold into nodes named HOST:NODE). What the page draws by chance when it
queues, `{red|blue}` in a text, stays as it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeAlias

from serve_app.errors import WorkflowFileError, did_you_mean
from serve_app.graph.missing_classes import MissingClass, describe_missing, of_pack, pack_of, pack_properties
from serve_app.graph.parse import WRAPPED
from serve_app.graph.saved import broadcasts
from serve_app.graph.saved.file_names import file_name
from serve_app.graph.saved.group_nodes import PREFIXES, unfold_groups
from serve_app.graph.saved.page_nodes import GETTERS, PAGE_ONLY, PRIMITIVE, REROUTE
from serve_app.graph.saved.saved_links import SavedLink, links_of, with_links
from serve_app.graph.saved.subgraphs import with_unique_ids
from serve_app.graph.saved.widgets import CUSTOM_COMBO, page_inputs, place_in_list, widget_values
from serve_app.graph.validate import unknown_class

NEVER, BYPASS = 2, 4
"""The modes of a muted node and of a bypassed one."""
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = "-10", "-20"
"""The ids of the two ends of a subgraph in its own links."""
CALLED = "Node name for S&R"
"""The property of a node by which names of files refer to it."""
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

    nodes: as saved and in that order, their inputs as the page has them, each with its `link` as a Link or None.
    path: the ids of the hosts around it. entries: the names of its inputs, of which a saved host may hold fewer.
    ends: an output's position -> the link to it. shown: an input's name -> the value that the host shows for it.
    widgets: an input's name -> (node id, widget) of the first widget inside that it is linked to, whose value it has
    where the host has none of its own. overrides: (node id, widget) -> the value that the host shows instead.
    """

    nodes: Mapping[str, JsonObject]
    path: tuple[str, ...] = ()
    host: JsonObject | None = None
    outer: Level | None = None
    entries: Sequence[str] = ()
    ends: Mapping[int, SavedLink] = field(default_factory=dict)
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
    now: datetime | None = None,
) -> dict[str, Any]:
    """Return the workflow in API format.

    classes: what /object_info answers. unsupported: why there is no such class, as of `validate`, whose words these
    are too. now: the local time that names of files may have in them, if not the present one.
    Errors: WorkflowFileError naming the nodes of unknown classes, or what in the file leads nowhere.
    """
    try:
        return _Conversion(workflow, classes, unsupported, now or datetime.now()).result()
    except (AttributeError, TypeError, ValueError, LookupError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise WorkflowFileError(f"the workflow is not as the web page saves one: {reason}") from error


class _Conversion:
    def __init__(
        self, workflow: JsonObject, classes: Mapping[str, JsonObject], unsupported: Mapping[str, str], now: datetime
    ) -> None:
        self._classes, self._unsupported, self._now = classes, unsupported, now
        workflow, self._subgraphs = with_unique_ids(unfold_groups(workflow, classes))
        self._in_subgraphs = [graph["nodes"] for graph in self._subgraphs.values()]
        self._inner: dict[tuple[str, ...], Level] = {}
        self._top = self._level(workflow)

    def result(self) -> dict[str, Any]:
        found = list(self._running(self._top))
        unknown: dict[str, list[tuple[Level, str, JsonObject]]] = {}
        for one in found:
            if (kind := one[2]["type"]) not in self._classes:
                unknown.setdefault(kind, []).append(one)
        if unknown:
            raise WorkflowFileError(describe_missing([self._missing(kind, nodes) for kind, nodes in unknown.items()]))
        return {level.name(node_id): self._rendered(level, node_id, node) for level, node_id, node in found}

    def _missing(self, kind: str, found: Sequence[tuple[Level, str, JsonObject]]) -> MissingClass:
        packs = (pack_of(node.get("properties")) for _, _, node in found)
        pack = next((pack for pack in packs if pack is not None), None)
        reason = unknown_class(kind, self._unsupported.get(kind), lambda: did_you_mean(kind, self._classes))
        return MissingClass(kind, [level.name(node_id) for level, node_id, _ in found], pack, reason + of_pack(pack))

    def _running(self, level: Level) -> Iterator[tuple[Level, str, JsonObject]]:
        for node_id, node in sorted(level.nodes.items(), key=lambda item: _rank(item[0])):
            kind = node["type"]
            if node.get("mode") in (NEVER, BYPASS) or kind in PAGE_ONLY or self._only_sends(kind):
                continue
            if kind.startswith(PREFIXES):
                where = f"node {level.name(node_id)} is the group node {kind!r}"
                raise WorkflowFileError(f"{where}, which the file does not define under extra.groupNodes")
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
            self._inner[path] = self._level(definition, path, host, outer)
        return self._inner[path]

    def _rendered(self, level: Level, node_id: str, node: JsonObject) -> dict[str, Any]:
        info = self._classes[node["type"]]
        inputs = widget_values(node, info)
        inputs |= {name: value for (owner, name), value in level.overrides.items() if owner == node_id}
        inputs = {name: {WRAPPED: value} if isinstance(value, list) else value for name, value in inputs.items()}
        for index, given in enumerate(node["inputs"]):
            source = self._source(level, node_id, index, given["type"])
            if isinstance(source, Constant):
                inputs[given["name"]] = {WRAPPED: source.value} if isinstance(source.value, list) else source.value
            elif source is not None:
                inputs[given["name"]] = list(source)
        if isinstance(prefix := inputs.get("filename_prefix"), str):
            inputs["filename_prefix"] = file_name(node["type"], prefix, self._now, self._widget)
        if node["type"] == CUSTOM_COMBO:
            inputs["index"] = place_in_list(inputs)
        meta = {"title": self._title(node), **pack_properties(node.get("properties"))}
        return {"inputs": inputs, "class_type": node["type"], "_meta": meta}

    def _only_sends(self, kind: str) -> bool:
        """Whether a node's class only broadcasts, and is not a class of this server."""
        return kind in broadcasts.KINDS and kind not in self._classes

    def _source(self, level: Level, node_id: str, index: int, wanted: str, seen: Seen = frozenset()) -> Source:
        """Follow the link into an input. wanted: the type that what passes it on has to fit."""
        inputs = level.nodes[node_id]["inputs"]
        if index >= len(inputs) or inputs[index]["link"] is None:
            return None
        link: SavedLink = inputs[index]["link"]
        if link.origin != SUBGRAPH_INPUT or level.host is None or level.outer is None:
            return self._output(level, link.origin, link.slot, wanted, seen)
        if link.slot >= len(level.entries):
            return None
        name = level.entries[link.slot]
        for position, outside in enumerate(level.host["inputs"]):
            if outside["name"] == name and outside["link"] is not None:
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
        node = level.nodes.get(node_id)
        if node is None or node.get("mode") == NEVER:
            return None
        kind = node["type"]
        if node.get("mode") == BYPASS:
            index = _passed_on(node, slot, wanted)
            passed = seen | {place}
            return None if index is None else self._source(level, node_id, index, node["inputs"][index]["type"], passed)
        if kind == PRIMITIVE or self._only_sends(kind):
            values = node.get("widgets_values")
            return Constant(values[0]) if values and _written(level, seen) else None
        seen |= {place}
        if kind in GETTERS:
            return self._named(level, node, slot, wanted, seen)
        if kind in PAGE_ONLY:
            return self._source(level, node_id, slot, wanted, seen)
        if kind in self._subgraphs:
            inner = self._inside(level, node_id)
            end = inner.ends.get(slot)
            return None if end is None else self._output(inner, end.origin, end.slot, wanted, seen)
        return level.name(node_id), slot

    def _named(self, level: Level, getter: JsonObject, slot: int, wanted: str, seen: Seen) -> Source:
        """Return what a node gives by the name of another one, in its own graph or in one around that."""
        name, around = (getter.get("widgets_values") or [""])[0], level
        while name:
            for node_id, node in around.nodes.items():
                if node["type"] == GETTERS[getter["type"]] and (node.get("widgets_values") or [None])[0] == name:
                    return self._source(around, node_id, slot, wanted, seen)
            if around.outer is None:
                break
            around = around.outer
        return None

    def _level(
        self,
        graph: JsonObject,
        path: tuple[str, ...] = (),
        host: JsonObject | None = None,
        outer: Level | None = None,
    ) -> Level:
        nodes = broadcasts.broadcast(with_links(graph, self._inputs), graph, self._title)
        by_id: dict[str, JsonObject] = {}
        for node in nodes:
            by_id.setdefault(str(node["id"]), node)
        entries = [] if host is None else [entry["name"] for entry in graph.get("inputs") or ()]
        widgets = {} if host is None else _widgets(graph, nodes, entries)
        promoted = [] if host is None else list(_promoted(host, widgets))
        return Level(
            by_id,
            path,
            host,
            outer,
            entries,
            {link.target_slot: link for link in links_of(graph) if link.target == SUBGRAPH_OUTPUT},
            {name: value for owner, name, value in promoted if owner == OWN},
            widgets,
            {(owner, name): value for owner, name, value in promoted if owner != OWN},
        )

    def _inputs(self, node: JsonObject) -> Sequence[JsonObject]:
        """Return a saved node's inputs as the page has them: its class's or its subgraph's, then what else is saved."""
        saved = [slot for slot in node.get("inputs") or () if slot]
        if node["type"] in self._subgraphs:
            own = list(self._subgraphs[node["type"]].get("inputs") or ())
        elif node["type"] in self._classes:
            own = page_inputs(self._classes[node["type"]])
        else:
            return saved
        by_name = {slot["name"]: {**slot, "saved": True} for slot in saved}
        kept = [{**slot, **by_name.pop(slot["name"], {}), "type": slot.get("type", "*")} for slot in own]
        return [*kept, *by_name.values()]

    def _widget(self, name: str, widget: str) -> Any:
        """Return the value of a widget of the first node that is called so. Errors: LookupError."""
        nodes = [node for graph in (self._top.nodes.values(), *self._in_subgraphs) for node in graph]
        called = [n for n in nodes if (n.get("properties") or {}).get(CALLED, n["type"]) == name]
        node = (called or [n for n in nodes if self._title(n) == name])[0]
        if node["type"] == PRIMITIVE:
            return (node.get("widgets_values") or [])[0]
        return widget_values(node, self._classes[node["type"]])[widget]

    def _title(self, node: JsonObject) -> str:
        info = self._classes.get(node["type"], {})
        return str(node.get("title") or info.get("display_name") or node["type"])


def _written(level: Level, seen: Seen) -> bool:
    """Whether a value that went through these outputs reaches its widget: it does through core reroutes alone."""
    return all(path == level.path and level.nodes[node_id]["type"] == REROUTE for path, node_id, _ in seen)


def _rank(node_id: str) -> tuple[bool, int]:
    """Return an order as of a JavaScript object: whole numbers first, ascending."""
    return not node_id.isdecimal(), int(node_id) if node_id.isdecimal() else 0


def _passed_on(node: JsonObject, slot: int, wanted: str) -> int | None:
    """Return which input a bypassed node passes on as one of its outputs, None for none that fits."""
    types = [given["type"] for given in node["inputs"]]
    outputs = node.get("outputs") or ()
    made = outputs[slot]["type"] if slot < len(outputs) else "*"
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


def _promoted(host: JsonObject, widgets: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, str, Any]]:
    """Yield (node id inside or OWN, widget, value) for the widgets that a subgraph's host shows.

    widgets: those of the subgraph. A host saves a value of each, in this order. It may leave inputs out, but no value.
    """
    proxies = (host.get("properties") or {}).get("proxyWidgets")
    if proxies is None:
        proxies = [(OWN, name) for name in widgets]
    # Without values of its own a host shows those of the nodes inside.
    for (owner, name, *_), value in zip(proxies, host.get("widgets_values") or (), strict=False):
        if value is not None:
            yield str(owner), str(name), value


def _widgets(graph: JsonObject, nodes: Sequence[JsonObject], entries: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the first widget inside, (node id, name), of each input of a subgraph that is linked to any."""
    linked_to = {
        slot["link"]: (str(node["id"]), slot["widget"].get("name", slot["name"]))
        for node in nodes
        for slot in node["inputs"]
        if slot["link"] is not None and slot.get("widget")
    }
    found: dict[int, tuple[str, str]] = {}
    for link in links_of(graph):
        if link.origin == SUBGRAPH_INPUT and link in linked_to:
            found.setdefault(link.slot, linked_to[link])
    return {name: found[slot] for slot, name in enumerate(entries) if slot in found}
