"""Error messages for node classes that a workflow uses and that this server lacks, grouped by pack.

A node names its pack by the name in ComfyUI's registry (`cnr_id`) or by its repository (`aux_id`): in its properties if
the page saved it, in `_meta` if the page queued it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from serve_app.errors import Problem

JsonObject: TypeAlias = Mapping[str, Any]

_FORMS = {
    "cnr_id": re.compile(r"[\w.-]{1,100}", re.ASCII),
    "aux_id": re.compile(r"[\w-]{1,39}/[\w.-]{1,100}", re.ASCII),
    "ver": re.compile(r"unknown|[0-9a-fA-F]{4,40}|\d+\.\d+\.\d+([-+][\w.+-]+)?", re.ASCII),
}
"""The keys of a node's pack, name, repository, and version or commit, with their forms."""
CORE = "comfy-core"
"""The pack that nodes of ComfyUI itself name."""
GROUPS, CLASSES, NODES = 10, 8, 5
"""How many packs, classes of one, and nodes of a class are named before the others are counted."""


@dataclass(frozen=True, slots=True)
class MissingClass:
    """A missing class and its nodes. pack: None if unknown. reason: a sentence."""

    name: str
    nodes: Sequence[str]
    pack: str | None
    reason: str


def pack_properties(says: Any) -> dict[str, str]:
    """Return the well-formed pack keys of a node's properties or `_meta`."""
    if not isinstance(says, Mapping):
        return {}
    given = {key: value if isinstance(value := says.get(key), str) else "" for key in _FORMS}
    given["ver"] = given["ver"].removeprefix("v")
    return {key: given[key] for key, form in _FORMS.items() if form.fullmatch(given[key])}


def pack_of(says: Any) -> str | None:
    """Return the pack that a node names, None for ComfyUI's own classes and if there is none."""
    said = pack_properties(says)
    pack = said.get("cnr_id") or said.get("aux_id")
    return None if pack == CORE else pack


def describe_missing(missing: Sequence[MissingClass]) -> str:
    """Return the message: classes of one pack together, any others by their reasons."""
    packs: dict[str | None, list[MissingClass]] = {}
    for one in missing:
        packs.setdefault(one.pack, []).append(one)
    several = {pack: found for pack, found in packs.items() if pack is not None and len(found) > 1}
    parts = [f"{_nodes(one.nodes)}: {one.reason}" for one in missing if one.pack not in several]
    parts += [
        f"not installed, of the pack {pack!r}: "
        + _few([f"{one.name} ({_nodes(one.nodes)})" for one in found], CLASSES, "classes")
        for pack, found in several.items()
    ]
    return _few(parts, GROUPS, "packs or classes", "; ")


def with_packs(problems: Iterable[Problem], prompt: JsonObject) -> list[Problem]:
    """Return the problems of a prompt, those of missing classes with the packs that their nodes name."""
    return [_with_pack(problem, prompt.get(problem.node_id or "")) for problem in problems]


def of_pack(pack: str | None) -> str:
    """Return the end of a sentence about a missing class."""
    return "" if pack is None else f"; it is of the pack {pack!r}"


def _with_pack(problem: Problem, node: Any) -> Problem:
    if problem.type != "missing_node_type" or not isinstance(node, Mapping):
        return problem
    return replace(problem, message=f"{problem.message}{of_pack(pack_of(node.get('_meta')))}")


def _nodes(nodes: Sequence[str]) -> str:
    return f"{'nodes' if nodes[1:] else 'node'} {_few(nodes, NODES, 'nodes')}"


def _few(parts: Sequence[str], most: int, what: str, separator: str = ", ") -> str:
    shown, more = parts[:most], len(parts) - most
    return separator.join(shown) + (f"{separator}and {more} more {what}" if more > 0 else "")
