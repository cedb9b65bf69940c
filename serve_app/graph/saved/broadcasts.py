"""Nodes of the pack "Use Everywhere" (cg-use-everywhere), which send their inputs to every matching input.

A broadcast is one value on its way: from an output, by a controller, to inputs of its type that have no link. An input
takes the broadcast of the highest priority; two of the same priority leave it empty, as they do on the page. Rules:
those of the pack's 7.8. Nodes of older files send by them too, which today's pack empties as it loads them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from serve_app.graph.saved.saved_links import SavedLink

JsonObject: TypeAlias = Mapping[str, Any]
Title: TypeAlias = Callable[[JsonObject], str]
"""What the page writes over a node."""

KINDS = frozenset(
    {"Anything Everywhere", "Anything Everywhere3", "Anything Everywhere?", "Prompts Everywhere", "Seed Everywhere"}
)
"""The pack's classes that send; their own functions do nothing."""
REGEXES = ("title", "input", "group")
SEED_INPUTS = "seed"
"""What an input's name has in it that takes the number of a Seed Everywhere which names none."""
TITLE_HEIGHT = 30
"""How far above its place the page begins a node, in the units of `pos`."""
MUTED = (2, 4)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """One value that a controller sends. rule: whether an input may have it by its name or its node's, None for any.

    only: the ids of the nodes that may have it, None for all.
    """

    origin: str
    slot: int
    type: str
    priority: int
    settings: JsonObject
    only: frozenset[str] | None
    rule: Callable[[str, str], bool] | None

    def reaches(self, node: JsonObject, slot: JsonObject, title: str) -> bool:
        """Whether an input may have it, apart from its priority."""
        fits = self.type == slot["type"] or (
            (slot["type"] == "*" and bool(self.settings.get("send_to_any")))
            or (self.type == "STRING" and slot["type"] == "COMBO" and bool(self.settings.get("string_to_combo")))
        )
        name = str(slot.get("label") or slot["name"])
        return (
            fits
            and self.origin != str(node["id"])
            and (self.only is None or str(node["id"]) in self.only)
            and _matches(self.settings, "title", title)
            and _matches(self.settings, "input", name)
            and (self.rule is None or self.rule(name, title))
        )


def broadcast(nodes: Sequence[JsonObject], graph: JsonObject, title: Title) -> list[JsonObject]:
    """Return a graph's nodes with the links that its broadcasts make.

    nodes: those of `saved_links.linked`. graph: as it is saved, for its groups and the types of its links.
    """
    sent = list(_sent(nodes, graph))
    return [_receiving(node, sent, title(node)) for node in nodes] if sent else list(nodes)


def _receiving(node: JsonObject, sent: Sequence[Broadcast], title: str) -> JsonObject:
    if node["type"] in KINDS or _properties(node).get("rejects_ue_links"):
        return node
    slots = []
    for place, slot in enumerate(node["inputs"]):
        found = _chosen([one for one in sent if one.reaches(node, slot, title)])
        if slot["link"] is None and found is not None and _open(node, slot):
            slot = {**slot, "link": SavedLink(None, found.origin, found.slot, str(node["id"]), place)}
        slots.append(slot)
    return {**node, "inputs": slots}


def _chosen(fitting: Sequence[Broadcast]) -> Broadcast | None:
    highest = max((one.priority for one in fitting), default=0)
    best = [one for one in fitting if one.priority == highest]
    return best[0] if len(best) == 1 else None


def _open(node: JsonObject, slot: JsonObject) -> bool:
    """Whether an input takes broadcasts: a socket unless it was closed, a widget if it was opened.

    Files from before widgets had inputs save an input of those alone that were made into one.
    """
    settings = _properties(node).get("ue_properties") or {}
    if not slot.get("widget"):
        return not (settings.get("input_ue_unconnectable") or {}).get(slot["name"])
    opened = settings.get("widget_ue_connectable") or _properties(node).get("widget_ue_connectable")
    return bool(slot.get("saved") if opened is None else opened.get(slot["name"]))


def _sent(nodes: Sequence[JsonObject], graph: JsonObject) -> Iterator[Broadcast]:
    by_id = {str(node["id"]): node for node in nodes}
    for node in nodes:
        if node.get("mode") in MUTED or not (node["type"] in KINDS or _properties(node).get("ue_convert")):
            continue
        settings, values = _settings(node), list(_values(node, by_id, graph))
        repeated = {kind for kind, count in Counter(kind for _, _, kind, _ in values).items() if count > 1}
        only = _restricted(node, settings, nodes, graph)
        priority = settings.get("priority") or _priority(node, settings, bool(repeated))
        for origin, slot, kind, name in values:
            if origin in by_id and by_id[origin].get("mode") in MUTED:
                continue
            named = kind in repeated or settings.get("apply_to_unrepeated")
            rule = _rule(settings.get("repeated_type_rule") or 0, name) if named else None
            yield Broadcast(origin, slot, kind, priority, settings, only, rule)


def _settings(node: JsonObject) -> JsonObject:
    """Return what a controller restricts, as 7.0 and later save it; older ones save it in widgets and properties."""
    properties, values = _properties(node), node.get("widgets_values") or ()
    settings = properties.get("ue_properties") or {}
    if settings.get("version"):
        return {"input_regex": SEED_INPUTS, **settings} if node["type"] == "Seed Everywhere" else settings
    old = {f"{kind}_restricted": properties.get(f"{kind}_restricted") for kind in ("group", "color")}
    if node["type"] == "Anything Everywhere?":
        old |= {f"{name}_regex": value for name, value in zip(REGEXES, values, strict=False)}
    return old | ({"input_regex": SEED_INPUTS} if node["type"] == "Seed Everywhere" else {})


def _values(
    node: JsonObject, by_id: Mapping[str, JsonObject], graph: JsonObject
) -> Iterator[tuple[str, int, str, str]]:
    """Yield (origin, slot, type, name) of all that a controller sends."""
    if node["type"] == "Seed Everywhere":
        yield str(node["id"]), 0, "INT", "seed"
        return
    if _properties(node).get("ue_convert"):
        closed = (_properties(node).get("ue_properties") or {}).get("output_not_broadcasting") or {}
        for place, made in enumerate(node.get("outputs") or ()):
            if not closed.get(made["name"]):
                yield str(node["id"]), place, made["type"], str(made.get("label") or made["name"])
        return
    types = {str(_field(link, 0, "id")): _field(link, 5, "type") for link in graph.get("links") or () if link}
    prompts = ("positive", "negative") if node["type"] == "Prompts Everywhere" else ()
    for place, slot in enumerate(node["inputs"]):
        if (link := _past_bypassed(slot["link"], by_id)) is None:
            continue
        kind = types.get(str(link.id), "*")
        if kind == "*" and link.origin in by_id:
            kind = by_id[link.origin]["outputs"][link.slot]["type"]
        name = prompts[place] if place < len(prompts) else str(slot.get("label") or slot["name"])
        yield link.origin, link.slot, kind, name


def _past_bypassed(link: SavedLink | None, by_id: Mapping[str, JsonObject]) -> SavedLink | None:
    seen = set()
    while link is not None and link not in seen and by_id.get(link.origin, {}).get("mode") == MUTED[1]:
        seen.add(link)
        node = by_id[link.origin]
        kind, slots = node["outputs"][link.slot]["type"], node["inputs"]
        same = [slot for slot in slots[link.slot : link.slot + 1] if slot["type"] == kind]
        link = next((slot["link"] for slot in [*same, *slots] if slot["type"] == kind), None)
    return link


def _restricted(
    node: JsonObject, settings: JsonObject, nodes: Sequence[JsonObject], graph: JsonObject
) -> frozenset[str] | None:
    """Return the ids of the nodes that a controller may send to by its groups and colour, None for all."""
    allowed = {str(other["id"]): other for other in nodes}
    groups = [(str(group.get("title")), _inside(group, nodes)) for group in graph.get("groups") or ()]
    tests: list[Callable[[str, JsonObject], bool]] = []
    mine = {found for _, inside in groups if str(node["id"]) in inside for found in inside}
    if (way := settings.get("group_restricted")) in (1, 2):
        tests.append(lambda node_id, _: (node_id in mine) == (way == 1))
    if (colour := settings.get("color_restricted")) in (1, 2):
        tests.append(lambda _, other: (other.get("color") == node.get("color")) == (colour == 1))
    if _regex(settings, "group") is not None:
        named = {found for title, inside in groups if _matches(settings, "group", title) for found in inside}
        tests.append(lambda node_id, _: node_id in named)
    if not tests:
        return None
    return frozenset(node_id for node_id, other in allowed.items() if all(test(node_id, other) for test in tests))


def _inside(group: JsonObject, nodes: Sequence[JsonObject]) -> set[str]:
    """Return the ids of the nodes whose middle a group encloses."""
    left, top, width, height = group["bounding"][:4]
    found = set()
    for node in nodes:
        (x, y), (wide, high) = (_pair(node.get(key)) for key in ("pos", "size"))
        if (node.get("flags") or {}).get("collapsed"):
            high = 0
        middle = x + wide / 2, y - TITLE_HEIGHT + (high + TITLE_HEIGHT) / 2
        if left <= middle[0] < left + width and top <= middle[1] < top + height:
            found.add(str(node["id"]))
    return found


def _priority(node: JsonObject, settings: JsonObject, repeated: bool) -> int:
    """Return the priority of a controller that was given none: the more it restricts, the higher."""
    regex = repeated or any(_regex(settings, name) is not None for name in REGEXES)
    groups, colours = (bool(settings.get(f"{kind}_restricted")) for kind in ("group", "color"))
    prompts = bool(node["type"] == "Prompts Everywhere")
    return 10 + 10 * prompts + 20 * regex + 3 * groups + 6 * colours


def _rule(number: int, name: str) -> Callable[[str, str], bool]:
    """Return which inputs may have one of several values of a type, by the input's name and its node's title."""
    rules: Sequence[Callable[[str, str], bool]] = (
        lambda target, _: target == name,
        lambda target, _: target.startswith(name) or name.startswith(target),
        lambda target, _: target.endswith(name) or name.endswith(target),
        lambda _, title: title == name,
        lambda target, _: (pattern := _pattern(name)) is not None and pattern.search(target) is not None,
    )
    return rules[number] if 0 <= number < len(rules) else lambda target, title: True


def _regex(settings: JsonObject, name: str) -> re.Pattern[str] | None:
    """Return what a controller restricts by, None for nothing; what is no pattern restricts nothing, as on the page."""
    given = settings.get(f"{name}_regex")
    return _pattern(str(given)) if given and given != ".*" else None


def _matches(settings: JsonObject, name: str, text: str) -> bool:
    wanted = _regex(settings, name)
    return wanted is None or (wanted.search(text) is not None) != bool(settings.get(f"{name}_regex_invert"))


def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text)
    except re.error:
        return None


def _properties(node: JsonObject) -> JsonObject:
    return node.get("properties") or {}


def _field(link: Any, place: int, key: str) -> Any:
    return link.get(key) if isinstance(link, Mapping) else link[place] if place < len(link) else None


def _pair(value: Any) -> tuple[float, float]:
    """Return a place or a size, which older files save as an object."""
    if isinstance(value, Mapping):
        value = [value.get("0"), value.get("1")]
    pair = [*value, 0, 0] if isinstance(value, list) else [0, 0]
    return float(pair[0] or 0), float(pair[1] or 0)
