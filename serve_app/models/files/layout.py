"""Where the tensors of a file go in a network: tables of names, and what is done to a tensor on the way.

A table maps names of the file to places in the network, longest first: of whole tensors, or of modules, and what
follows a module's name is then the same on both sides. Families write the tables; nothing here knows one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Place(NamedTuple):
    """Where a tensor of the file goes, and which part of it.

    rows: (first, end) of its first dimension, None for all. swapped: the second half of those rows comes first.
    transposed: rows become columns. shape: what it is then reshaped to.
    """

    name: str
    rows: tuple[int, int] | None = None
    swapped: bool = False
    transposed: bool = False
    shape: tuple[int, ...] | None = None


Table: TypeAlias = Mapping[str, "str | tuple[Place, ...]"]
"""Names in the file, of modules (without a trailing dot) or of tensors, to the network's; several for a fused one."""


def places(name: str, table: Table) -> tuple[Place, ...]:
    """Return where a tensor of the file goes by a table; () if nowhere."""
    for end in _ends(name):
        found = table.get(name[:end])
        if found is not None:
            rest = name[end:]
            return (Place(found + rest),) if isinstance(found, str) else tuple(_at(place, rest) for place in found)
    return ()


def placed(tensor: Tensor, place: Place) -> Tensor:
    """Return what of a tensor goes to a place, as a view where it can be one."""
    if place.rows is not None:
        tensor = tensor[slice(*place.rows)]
    if place.swapped:
        tensor = tensor.roll(tensor.shape[0] // 2, 0)
    if place.transposed:
        tensor = tensor.t()
    return tensor if place.shape is None else tensor.reshape(place.shape)


def translate(name: str, names: Mapping[str, str]) -> str | None:
    """Return the name with its longest known beginning replaced, or None if none is known."""
    for end in _ends(name):
        if (found := names.get(name[:end])) is not None:
            return found + name[end:]
    return None


def reverse(table: Table) -> dict[str, str]:
    """Return the network's names -> the file's, for what goes from one to the other as it is."""
    return {ours: theirs for theirs, ours in table.items() if isinstance(ours, str)}


def origins(names: Iterable[str], table: Table) -> dict[str, list[Place]]:
    """Return which tensors of a file a network's make up: undo `places`.

    names: the network's. Returns the file's names -> where each part goes, by rows. Of several names that a table has
    for one place the last counts; what it has none for is left out.
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
    """Return the tensor of a file that parts in a network's places make up, by rows: undo `placed`.

    What was reshaped on the way becomes a row of numbers, as files have it.
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
    """Yield where a name and each of its modules' names end, longest first."""
    end = len(name)
    while end > 0:
        yield end
        end = name.rfind(".", 0, end)


def _at(place: Place, rest: str) -> Place:
    return place._replace(name=place.name + rest) if rest else place
