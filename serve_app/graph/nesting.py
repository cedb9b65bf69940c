"""How a node's inputs with dotted names are handed to its function: as dicts and lists in one argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Nesting:
    """How a node's dotted inputs are handed to its function.

    paths: where the value of an input goes. containers: what is there even when it is empty, outer ones first: a dict,
    or that many dicts in a list.
    """

    paths: Mapping[str, Path]
    containers: tuple[tuple[Path, int | None], ...] = ()

    def nested(self, values: Mapping[str, Any], *, named: bool = False) -> dict[str, Any]:
        """Return the values as the function takes them; an input that is not given is None where its dict is made.

        named: with (value, dotted name) in a value's place, as check_lazy_status is told which name to ask for.
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
