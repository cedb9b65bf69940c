"""Names and shapes of a model file's tensors, and a guess at the family when it is unknown. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from serve_app.errors import ModelFileError
from serve_app.store.models.kinds import looks_like

Shape: TypeAlias = tuple[int, ...]


class Tensors:
    """The tensors of one part: names without the part's prefix, shapes, and their file for errors.

    metadata: the file's.
    """

    def __init__(
        self, shapes: Mapping[str, Shape], where: str, metadata: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.shapes = shapes
        self.where = where
        self._metadata = metadata
        self._prefixes = {name[: i + 1] for name in shapes for i, char in enumerate(name) if char == "."}

    def within(self, prefix: str) -> Tensors:
        """Return the tensors whose names start with a prefix, with it removed."""
        if not prefix:
            return self
        shapes = {name[len(prefix) :]: shape for name, shape in self.shapes.items() if name.startswith(prefix)}
        return Tensors(shapes, self.where, self._metadata)

    def has(self, prefix: str) -> bool:
        """Whether any name starts with the prefix, which ends with a dot."""
        return prefix in self._prefixes

    def config(self, section: str = "") -> Mapping[str, Any]:
        """Return a section of the configuration in the metadata, which some authors write; empty without one.

        section: "" for the whole. Errors: ModelFileError for one that is no JSON object.
        """
        try:
            whole = json.loads(self._metadata.get("config", "{}"))
            found = (whole.get(section) or {}) if section else whole
        except (ValueError, AttributeError) as error:
            raise self.unsupported(f"has a 'config' in its metadata that is no JSON object: {error}") from error
        if not isinstance(found, dict):
            whose = f" whose '{section}'" if section else " that"
            raise self.unsupported(f"has a 'config' in its metadata{whose} is no JSON object")
        return found

    def count(self, prefix: str) -> int:
        """Return the number of consecutive prefix0., prefix1., …."""
        number = 0
        while self.has(f"{prefix}{number}."):
            number += 1
        return number

    def shape(self, name: str) -> Shape:
        """Return a tensor's shape. Errors: ModelFileError if it is absent, with the family it looks like."""
        if name in self.shapes:
            return self.shapes[name]
        raise self.unsupported(f"holds no tensor '{name}'{self.family()}")

    def unsupported(self, found: str) -> ModelFileError:
        """Return the error for an unsupported feature of the file."""
        return ModelFileError(f"{self.where} {found}")

    def family(self) -> str:
        """Return " (it looks like …)" when the names are those of a known architecture, else ""."""
        looks = looks_like(self.shapes)
        return f" (it looks like {looks})" if looks else ""
