"""The links of a saved graph as the web page reads them, also where the file is damaged.

The graph's list of links is authoritative: an input has the link that the list has for it, whatever the input itself
names. What an input names only says which of its node's inputs that is, because classes gain and lose inputs. Rules:
those of ComfyUI's frontend 1.58.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

JsonObject: TypeAlias = Mapping[str, Any]
Inputs: TypeAlias = Callable[[JsonObject], Sequence[JsonObject]]
"""From a saved node to its inputs in the page's order."""


@dataclass(frozen=True, slots=True)
class SavedLink:
    """One link. Ids of nodes are strings, as in API format."""

    id: Any
    origin: str
    slot: int
    target: str
    target_slot: int


def links_of(graph: JsonObject) -> list[SavedLink]:
    """Return a saved graph's links: those that can be read, and one into each input.

    Of several into one input the first stays, or one whose id an input names where the first's is named by none.
    """
    named = {slot.get("link") for node in graph["nodes"] for slot in node.get("inputs") or ()} - {None}
    kept: dict[tuple[str, int], SavedLink] = {}
    for link in filter(None, map(_read, graph.get("links") or ())):
        place = link.target, link.target_slot
        other = kept.get(place)
        if other is None or (link.id in named and other.id not in named):
            kept[place] = link
    return list(kept.values())


def with_links(graph: JsonObject, inputs: Inputs) -> list[dict[str, Any]]:
    """Return a saved graph's nodes with the inputs they have on the page, each with its `link` as a Link or None."""
    into: dict[str, list[SavedLink]] = {}
    for link in links_of(graph):
        into.setdefault(link.target, []).append(link)
    return [_linked(node, inputs(node), into.get(str(node["id"]), ())) for node in graph["nodes"]]


def _linked(node: JsonObject, slots: Sequence[JsonObject], links: Sequence[SavedLink]) -> dict[str, Any]:
    places = {link.target_slot: link for link in links}
    by_id = {link.id: link for link in links}
    moved = {}
    for saved in node.get("inputs") or ():
        link = by_id.get(saved.get("link"))
        if link is None:
            continue
        named = [place for place, slot in enumerate(slots) if slot["name"] == saved["name"]]
        if named and link.target_slot not in named:
            moved[named[0]] = link
    stay = {place: link for place, link in places.items() if link not in moved.values()}
    final = stay | moved
    return {**node, "inputs": [{**slot, "link": final.get(place)} for place, slot in enumerate(slots)]}


def _read(given: Any) -> SavedLink | None:
    """Return a link, which is saved as a list or, in newer files, as an object; None for what is neither."""
    if isinstance(given, Mapping):
        given = [given.get(key) for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    if not isinstance(given, list) or len(given) < 5 or None in given[:5]:
        return None
    slots = [_whole(given[2]), _whole(given[4])]
    return None if None in slots else SavedLink(given[0], str(given[1]), slots[0], str(given[3]), slots[1])


def _whole(value: Any) -> Any:
    """Return a slot as a whole number, None for what is none."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
