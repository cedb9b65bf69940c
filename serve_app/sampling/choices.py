"""A table of named choices whose errors suggest the nearest name. SAMPLERS and SCHEDULES are two of them."""

from __future__ import annotations

from typing import Generic, NoReturn, TypeVar

from serve_app.errors import NodeError, did_you_mean

T = TypeVar("T")


class Choices(dict[str, T], Generic[T]):
    """A dict by name, in the order clients list the names. An unknown name raises NodeError, with the nearest one.

    kind: what a name stands for, in the singular ("sampler").
    """

    def __init__(self, kind: str, entries: dict[str, T]) -> None:
        super().__init__(entries)
        self.kind = kind

    def __missing__(self, name: str) -> NoReturn:
        hint = did_you_mean(name, self) or f"; known are {', '.join(self)}"
        raise NodeError(f"{self.kind} {name!r} is unknown{hint}")
