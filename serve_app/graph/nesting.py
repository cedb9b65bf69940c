"""Converts a node's inputs with dotted names to its function's arguments: nested dicts and lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Nesting:
    """The nesting of a node's dotted inputs.

    paths: the path of each input's value. containers: containers that exist even when empty, outer ones first: a dict,
    or a number of dicts in a list.
    """

    paths: Mapping[str, Path]
    containers: tuple[tuple[Path, int | None], ...] = ()

    def nested(self, values: Mapping[str, Any], *, named: bool = False) -> dict[str, Any]:
        """Return the function's arguments; a missing input is None in its dict.

        named: with (value, dotted name) in place of values, for check_lazy_status, which returns names.
        """
        made: dict[str, Any] = {name: value for name, value in values.items() if name not in self.paths}
        for path, rows in self.containers:
            _put(made, path, {} if rows is None else [{} for _ in range(rows)])
        for name, path in self.paths.items():
            value = values.get(name)
            _put(made, path, (value, name) if named else value)
        return made


def _put(made: dict[str, Any], path: Path, value: Any) -> None:
    current: Any = made
    for part in path[:-1]:
        current = current.setdefault(part, {}) if isinstance(current, dict) else current[part]
    current[path[-1]] = value
