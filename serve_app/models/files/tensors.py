"""The tensors of a model file as names and shapes, and what the names say when the family is not one we know. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from serve_app.errors import ModelFileError
from serve_app.store.models.kinds import looks_like

Shape: TypeAlias = tuple[int, ...]


class Tensors:
    """The tensors of one part: names without the part's prefix, with shapes, and where they come from for errors."""

    def __init__(self, shapes: Mapping[str, Shape], where: str) -> None:
        self.shapes = shapes
        self.where = where
        self._prefixes = {name[: i + 1] for name in shapes for i, char in enumerate(name) if char == "."}

    def within(self, prefix: str) -> Tensors:
        """Return the tensors whose names start with a prefix, without it."""
        if not prefix:
            return self
        shapes = {name[len(prefix) :]: shape for name, shape in self.shapes.items() if name.startswith(prefix)}
        return Tensors(shapes, self.where)

    def has(self, prefix: str) -> bool:
        """Whether any name starts with the prefix, which ends with a dot."""
        return prefix in self._prefixes

    def count(self, prefix: str) -> int:
        """Return how many of prefix0., prefix1., … there are without a gap."""
        number = 0
        while self.has(f"{prefix}{number}."):
            number += 1
        return number

    def shape(self, name: str) -> Shape:
        """Return a tensor's shape. Errors: ModelFileError if it is absent, naming the family it looks like."""
        if name in self.shapes:
            return self.shapes[name]
        raise self.unsupported(f"holds no tensor '{name}'{self.family()}")

    def unsupported(self, found: str) -> ModelFileError:
        """Return the error that says where what was found that is not supported."""
        return ModelFileError(f"{self.where} {found}")

    def family(self) -> str:
        """Return " (it looks like …)" when the names are known as those of something, else ""."""
        looks = looks_like(self.shapes)
        return f" (it looks like {looks})" if looks else ""
