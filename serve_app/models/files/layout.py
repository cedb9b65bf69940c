"""Maps tensors of a file into a network: tables of names, and the transformations on the way.

A table maps names of tensors or modules in the file to the network's; the longest match applies, and what follows a
module's name is the same on both sides. Families write the tables; nothing here knows one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Place(NamedTuple):
    """The destination of a tensor of the file, or of a part of it.

    rows: (first, end) of its first dimension, None for all. swapped: the two halves of those rows change places.
    transposed: rows become columns. shape: to reshape to afterwards.
    """

    name: str
    rows: tuple[int, int] | None = None
    swapped: bool = False
    transposed: bool = False
    shape: tuple[int, ...] | None = None


Table: TypeAlias = Mapping[str, "str | tuple[Place, ...]"]
"""Names in the file, of modules (without a trailing dot) or tensors, to the network's; several for a fused tensor."""


def cut(prefix: str, names: Sequence[str], sizes: Sequence[int]) -> tuple[Place, ...]:
    """Return the destinations of a fused tensor, by how many of its rows each has. prefix: of the names."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    rows = ((end - size, end) for size, end in zip(sizes, ends, strict=True))
    return tuple(Place(prefix + name, rows=of_name) for name, of_name in zip(names, rows, strict=True))


def places(name: str, table: Table) -> tuple[Place, ...]:
    """Return the destinations of a tensor of the file by a table; () if none."""
    for end in _ends(name):
        found = table.get(name[:end])
        if found is not None:
            rest = name[end:]
            return (Place(found + rest),) if isinstance(found, str) else tuple(_at(place, rest) for place in found)
    return ()


def placed(tensor: Tensor, place: Place) -> Tensor:
    """Return the part of a tensor for a place, as a view where possible."""
    if place.rows is not None:
        tensor = tensor[slice(*place.rows)]
    if place.swapped:
        tensor = tensor.roll(tensor.shape[0] // 2, 0)
    if place.transposed:
        tensor = tensor.t()
    return tensor if place.shape is None else tensor.reshape(place.shape)


def translate(name: str, names: Mapping[str, str]) -> str | None:
    """Return the name with its longest known prefix replaced, or None if no prefix is known."""
    for end in _ends(name):
        if (found := names.get(name[:end])) is not None:
            return found + name[end:]
    return None


def reverse(table: Table) -> dict[str, str]:
    """Return the network's names -> the file's, for tensors that are copied unchanged."""
    return {ours: theirs for theirs, ours in table.items() if isinstance(ours, str)}


def origins(names: Iterable[str], table: Table) -> dict[str, list[Place]]:
    """Return the tensors of a file that make up a network's: the inverse of `places`.

    names: the network's. Returns the file's names -> the destination of each part, by rows. Of several names with one
    destination the last applies; unmapped names are left out.
    """
    back: dict[str, tuple[str, Place]] = {}
    for theirs, there in table.items():
        for place in (Place(there),) if isinstance(there, str) else there:
            back[place.name] = (theirs, place)
    found: dict[str, list[Place]] = {}
    for name in names:
        for end in _ends(name):
            if name[:end] in back:
                theirs, place = back[name[:end]]
                found.setdefault(theirs + name[end:], []).append(_at(place, name[end:]))
                break
    return {theirs: sorted(parts, key=lambda place: place.rows or (0, 0)) for theirs, parts in found.items()}


def joined(parts: Sequence[tuple[Tensor, Place]]) -> Tensor:
    """Return a file's tensor from its parts in a network's places, by rows: the inverse of `placed`.

    A part that was reshaped is flattened, as files have it.
    """
    made: list[Tensor] = []
    for tensor, place in parts:
        back = tensor if place.shape is None else tensor.flatten()
        back = back.t() if place.transposed else back
        made.append(back.roll(back.shape[0] // 2, 0) if place.swapped else back)
    return made[0] if len(made) == 1 else torch.cat(made)


def inside(file: str, network: str, children: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield a module's names on both sides, and those of its children."""
    yield file, network
    for theirs, ours in children.items():
        yield f"{file}.{theirs}", f"{network}.{ours}"


def _ends(name: str) -> Iterator[int]:
    """Yield the ends of a name and of each of its modules' names, longest first."""
    end = len(name)
    while end > 0:
        yield end
        end = name.rfind(".", 0, end)


def _at(place: Place, rest: str) -> Place:
    return place._replace(name=place.name + rest) if rest else place
