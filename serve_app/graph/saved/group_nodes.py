"""Expansion of group nodes of older files into the nodes that they contain.

The page turns each into a subgraph when it loads the file; the nodes in it get new ids behind the workflow's last one,
then the subgraph does. A group node shows, one node inside after the other, the widgets that are no inputs, the inputs
that nothing inside is linked to and the outputs that go nowhere inside; what it has saved is for those, by position.
Rules: those of ComfyUI's frontend 1.58.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from serve_app.graph.saved.page_nodes import PRIMITIVE, REROUTE
from serve_app.graph.saved.saved_links import links_of
from serve_app.graph.saved.subgraphs import last_id
from serve_app.graph.saved.widgets import page_inputs, widget_names, widget_values

JsonObject: TypeAlias = Mapping[str, Any]

PREFIXES = ("workflow>", "workflow/")
CONTROLS = {"INT": 1, "COMBO": 2}
"""How many widgets change the value of a primitive of a type by themselves."""


def unfold_groups(workflow: JsonObject, classes: Mapping[str, JsonObject]) -> JsonObject:
    """Return a workflow with the nodes inside in place of its group nodes, each under the id SUBGRAPH:NODE.

    A group node that the file does not define stays as it is.
    """
    groups = (workflow.get("extra") or {}).get("groupNodes") or {}
    hosts = [node for node in workflow["nodes"] if _name(node) in groups]
    if not hosts:
        return workflow
    numbers = [node["id"] for node in workflow["nodes"] if isinstance(node["id"], int)]
    last = max([*numbers, last_id(workflow)])
    links = {link.id: [link.id, link.origin, link.slot, link.target, link.target_slot] for link in links_of(workflow)}
    nodes = [node for node in workflow["nodes"] if _name(node) not in groups]
    for host in hosts:
        inside = _Inside(host, groups[_name(host)], classes, last)
        last += len(inside.nodes) + 1
        nodes += inside.linked(links)
    types = {link[0]: link[5] for link in workflow.get("links") or () if isinstance(link, list) and len(link) > 5}
    saved = [[*link, types.get(link[0], "*")] for link in links.values()]
    return {**workflow, "nodes": nodes, "links": saved}


def _name(node: JsonObject) -> str | None:
    """Return the name of a group node's definition, None for any other node."""
    kind = str(node.get("type"))
    return kind[len(PREFIXES[0]) :] if kind.startswith(PREFIXES) else None


class _Inside:
    """The nodes that one group node stands for, with new ids and the values that it shows for them."""

    def __init__(self, host: JsonObject, group: JsonObject, classes: Mapping[str, JsonObject], last: int) -> None:
        self._host, self._config, self._classes = host, group.get("config") or {}, classes
        self._links = [link for link in group.get("links") or () if None not in link[:4]]
        self._outside = {(given[0], given[1]) for given in group.get("external") or () if isinstance(given[0], int)}
        host_id = last + len(group["nodes"]) + 1
        self.nodes = [
            {**node, "id": f"{host_id}:{last + place}", "inputs": [{**slot, "link": None} for slot in _slots(node)]}
            for place, node in enumerate(group["nodes"], 1)
        ]
        self._give_values(iter(host.get("widgets_values") or ()))

    def linked(self, links: dict[Any, list[Any]]) -> Sequence[JsonObject]:
        """Return the nodes, linked to one another and to what the group node was. links: the workflow's, changed."""
        for origin, slot, target, place, *_ in self._links:
            self._join(links, f"{self.nodes[target]['id']}.{place}", origin, int(slot), target, int(place))
        for given, (place, name) in zip(_slots(self._host), self._entries(), strict=False):
            if (link := links.get(given.get("link"))) is not None and link[3] == str(self._host["id"]):
                link[3], link[4] = self.nodes[place]["id"], self._slot(place, name)
                self.nodes[place]["inputs"][link[4]]["link"] = link[0]
        exits = list(self._exits())
        for link in links.values():
            if link[1] == str(self._host["id"]):
                place, slot = exits[link[2]] if link[2] < len(exits) else (None, 0)
                link[1:3] = ["" if place is None else self.nodes[place]["id"], slot]
        return self.nodes

    def _join(self, links: dict[Any, list[Any]], key: str, origin: int, slot: int, target: int, place: int) -> None:
        links[key] = [key, self.nodes[origin]["id"], slot, self.nodes[target]["id"], place]
        if place < len(slots := self.nodes[target]["inputs"]):
            slots[place]["link"] = key

    def _slot(self, place: int, name: str) -> int:
        """Return which of a node's inputs has a name; it is added if the file does not mention it."""
        slots = self.nodes[place]["inputs"]
        names = [slot["name"] for slot in slots]
        if name not in names:
            slots.append({"name": name, "type": "*"})
        return names.index(name) if name in names else len(names)

    def _give_values(self, shown: Iterator[Any]) -> None:
        """Give the nodes what the group node has saved: of widgets first, then of those that were made into inputs."""
        taken = {(link[2], link[3]) for link in self._links}
        given: list[dict[str, Any]] = [{} for _ in self.nodes]
        for of_inputs in (False, True):
            for place, node in enumerate(self.nodes):
                inputs = self._made_into_inputs(node)
                for name, controls in self._widgets(node):
                    if (name in inputs) == of_inputs and (place, inputs.get(name)) not in taken:
                        value, *_ = [next(shown, None) for _ in range(1 + controls)]
                        given[place] |= {} if value is None else {name: value}
        for node, values in zip(self.nodes, given, strict=True):
            if node["type"] == PRIMITIVE:
                node["widgets_values"] = list(values.values()) or node.get("widgets_values")
            elif (info := self._classes.get(node["type"])) is not None:
                node["widgets_values"] = widget_values(node, info) | values

    def _widgets(self, node: JsonObject) -> list[tuple[str, int]]:
        """Return the widgets of a node inside, each with how many behind it change its value by themselves."""
        if node["type"] == PRIMITIVE and node.get("outputs"):
            return [("value", CONTROLS.get(node["outputs"][0]["type"], 0))]
        found: list[tuple[str, int]] = []
        info = self._classes.get(node["type"])
        for name in [] if info is None else widget_names(node, info):
            if name is not None:
                found.append((name, 0))
            elif found:
                found[-1] = (found[-1][0], found[-1][1] + 1)
        return found

    def _made_into_inputs(self, node: JsonObject) -> dict[str, int]:
        """Return the widgets of a node that its user made into inputs, with their places; newer pages make all so."""
        names = {name for name, _ in self._widgets(node)}
        inputs = {slot["name"]: place for place, slot in enumerate(node["inputs"]) if slot.get("widget")}
        return {} if names <= inputs.keys() else inputs

    def _entries(self) -> Iterator[tuple[int, str]]:
        """Yield (place of the node, name) of the inputs that the group node shows: all sockets, then all widgets."""
        taken = {(link[2], link[3]) for link in self._links}
        for widgets in (False, True):
            for place, node in enumerate(self.nodes):
                for name in self._inputs(place, node, widgets):
                    saved = next((i for i, slot in enumerate(node["inputs"]) if slot["name"] == name), None)
                    visible = self._visible(place, "input", name, True)
                    if visible and (place, saved) not in taken:
                        yield place, name

    def _inputs(self, place: int, node: JsonObject, widgets: bool) -> list[str]:
        if widgets:
            return [slot["name"] for slot in node["inputs"] if slot.get("widget")]
        if node["type"] in self._classes:
            return [slot["name"] for slot in page_inputs(self._classes[node["type"]]) if "widget" not in slot]
        passes = node["type"] == REROUTE and (place, 0) not in {(link[2], link[3]) for link in self._links}
        return [slot["name"] for slot in node["inputs"]] if passes else []

    def _exits(self) -> Iterator[tuple[int, int]]:
        """Yield (place of the node, slot) of the outputs that the group node shows."""
        used = {(link[0], link[1]) for link in self._links}
        for place, node in enumerate(self.nodes):
            info = self._classes.get(node["type"])
            count = len(info.get("output") or ()) if info is not None else len(node.get("outputs") or ())
            for slot in range(count):
                inside = (place, slot) in used and (place, slot) not in self._outside
                if self._visible(place, "output", str(slot), not inside):
                    yield place, slot

    def _visible(self, place: int, side: str, name: str, otherwise: bool) -> bool:
        own = ((self._config.get(str(place)) or {}).get(side) or {}).get(name) or {}
        return bool(own.get("visible", otherwise))


def _slots(node: JsonObject) -> Sequence[JsonObject]:
    return [slot for slot in node.get("inputs") or () if slot]
