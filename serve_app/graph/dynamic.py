"""Dynamic inputs: one declared input that expands to any number of inputs, named by dotted paths.

`images.image0`, `mode.width` and `loras.0.strength` are inputs as any other to the graph; the node's function is given
them as `images={"image0": …}`, `mode={"mode": …, "width": …}` and `loras=[{"strength": …}]`. The set depends on the
node, so a spec is opened (expanded) for one node before its inputs are validated. Source: the facts of ComfyUI 0.33's
`comfy_api/latest/_io.py`; DYNAMIC_GROUP those of ComfyUI 0.46.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from serve_app.graph.graph import Link
from serve_app.graph.nesting import Nesting, Path
from serve_app.graph.spec import SECTIONS, Input, NodeSpec

AUTOGROW = "COMFY_AUTOGROW_V3"
"""As many inputs of one kind as there are links: NAME.PREFIX0, NAME.PREFIX1, …, or NAME.<one of a list of names>."""
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
"""A choice whose options have inputs of their own: NAME, NAME.INPUT."""
DYNAMIC_SLOT = "COMFY_DYNAMICSLOT_V3"
"""A socket that adds inputs once it is linked: NAME, NAME.INPUT."""
DYNAMIC_GROUP = "COMFY_DYNAMICGROUP_V3"
"""Rows of the same inputs: NAME.0.INPUT, NAME.1.INPUT, …"""
KINDS = frozenset({AUTOGROW, DYNAMIC_COMBO, DYNAMIC_SLOT, DYNAMIC_GROUP})

ROWS_LIMIT = 100
"""How many rows a DYNAMIC_GROUP may have."""


def opened(spec: NodeSpec, given: Mapping[str, Any]) -> NodeSpec:
    """Return the spec with dynamic inputs expanded for one node, and their nesting; unchanged without dynamic ones.

    given: the node's inputs, constants and links. The choice of a DYNAMIC_COMBO becomes a COMBO, and the socket of a
    DYNAMIC_SLOT stays.
    """
    if KINDS.isdisjoint([declared.type for declared in spec.inputs]):
        return spec
    opening = _Opening(given)
    for declared in spec.inputs:
        opening.add(declared, ())
    nesting = Nesting(opening.paths, tuple(opening.containers))
    return replace(spec, inputs=tuple(opening.inputs.values()), nesting=nesting)


def strays(spec: NodeSpec, given: Mapping[str, Any]) -> Iterator[str]:
    """Yield a node's inputs that have a dynamic input's prefix, but are none of its expansion.

    Constants only of DYNAMIC_GROUP: inputs of another option of DYNAMIC_COMBO may be left over.
    """
    kinds = {declared.name: declared.type for declared in spec.inputs if declared.type in KINDS}
    if kinds:
        known = opened(spec, given)
        for name, value in given.items():
            head, dot, _ = name.partition(".")
            meant = isinstance(value, Link) or kinds.get(head) == DYNAMIC_GROUP
            if dot and head in kinds and meant and known.input(name) is None:
                yield name


class _Opening:
    """The state of one expansion. prefix: the dotted path of an input's container."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self.inputs: dict[str, Input] = {}
        self.paths: dict[str, Path] = {}
        self.containers: list[tuple[Path, int | None]] = []

    def add(self, declared: Input, prefix: Path) -> None:
        path = (*prefix, declared.name)
        name = ".".join(map(str, path))
        if declared.type == AUTOGROW:
            self._grow(declared, path)
        elif declared.type == DYNAMIC_COMBO:
            self._choose(declared, path, name)
        elif declared.type == DYNAMIC_SLOT:
            self._slot(declared, path, name)
        elif declared.type == DYNAMIC_GROUP:
            self._rows(declared, path, name)
        else:
            self.inputs[name] = replace(declared, name=name)
            if prefix:
                self.paths[name] = path

    def _grow(self, declared: Input, path: Path) -> None:
        self.containers.append((path, None))
        template = declared.options.get("template") or {}
        kind = next(iter(_declared(template.get("input") or {})), None)
        if kind is None:
            return
        names = template.get("names")
        if names is None:
            names = [f"{template.get('prefix', '')}{index}" for index in range(int(template.get("max", ROWS_LIMIT)))]
        least = int(template.get("min", 1)) if kind.section == "required" else 0
        for index, own in enumerate(names):
            name = ".".join(map(str, (*path, own)))
            if index < least or name in self._given:
                self.inputs[name] = replace(kind, name=name, section="required" if index < least else "optional")
            if name in self._given:
                self.paths[name] = (*path, own)

    def _choose(self, declared: Input, path: Path, name: str) -> None:
        options = {option["key"]: option.get("inputs") or {} for option in declared.options.get("options") or ()}
        others = {key: value for key, value in declared.options.items() if key != "options"}
        self.inputs[name] = replace(declared, name=name, type="COMBO", choices=tuple(options), options=others)
        chosen = self._given.get(name)
        if isinstance(chosen, str) and chosen in options:
            for inner in _declared(options[chosen]):
                self.add(inner, path)
            self.paths[name] = (*path, declared.name)

    def _slot(self, declared: Input, path: Path, name: str) -> None:
        kind = str(declared.options.get("slotType") or "*")
        others = {key: value for key, value in declared.options.items() if key not in ("slotType", "inputs")}
        self.inputs[name] = replace(declared, name=name, type=kind, options=others)
        if name in self._given:
            for inner in _declared(declared.options.get("inputs") or {}):
                self.add(inner, path)
            self.paths[name] = (*path, declared.name)

    def _rows(self, declared: Input, path: Path, name: str) -> None:
        fields = list(_declared(declared.options.get("template") or {}))
        heads = [given[len(name) + 1 :].split(".")[0] for given in self._given if given.startswith(f"{name}.")]
        short = [head for head in heads if len(head) <= len(str(ROWS_LIMIT))]
        indices = {int(head) for head in short if head.isascii() and head.isdecimal() and str(int(head)) == head}
        most = int(declared.options.get("max") or ROWS_LIMIT)
        rows = sorted(index for index in indices if index < ROWS_LIMIT)[:most]
        least = int(declared.options.get("min") or 0)
        # A missing input is reported by its name, as any other.
        wanted = sorted({*rows, *(range(least) if len(rows) < least else ())})
        count = max(wanted, default=-1) + 1
        self.containers.append((path, count))
        for index in range(count):
            for inner in fields:
                own = ".".join(map(str, (*path, index, inner.name)))
                if index in wanted:
                    self.inputs[own] = replace(inner, name=own)
                self.paths[own] = (*path, index, inner.name)


def _declared(sections: Mapping[str, Any]) -> Iterable[Input]:
    for section in SECTIONS:
        for name, config in (sections.get(section) or {}).items():
            yield Input.declared(str(name), section, config)
