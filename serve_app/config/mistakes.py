"""Turns pydantic's errors of a configuration into sentences that name the key and, for a misspelt one, the nearest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import pydantic

from serve_app.errors import did_you_mean


def mistakes(model: type[pydantic.BaseModel], error: pydantic.ValidationError) -> Iterator[str]:
    """Yield a sentence for each mistake. Wrong lengths that follow from wrong members are left out."""
    found = error.errors()
    for each in found:
        place = each["loc"]
        if each["type"] == "too_short" and any(len(e["loc"]) > len(place) == _shared(e["loc"], place) for e in found):
            continue
        where = ".".join(map(str, place)) or "configuration"
        if each["type"] == "extra_forbidden":
            known = sorted(_keys(model, place[:-1]))
            hint = did_you_mean(place[-1], known) or f"; keys are {', '.join(known)}"
            yield f"{where}: there is no such key{hint if known else ''}"
        else:
            yield f"{where}: {each['msg'].removeprefix('Value error, ')}"


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the length of the beginning that two places have in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _keys(model: type[pydantic.BaseModel], place: Sequence[int | str]) -> set[str]:
    """Return the keys of the section at a place: of all kinds that it may be, if there are several."""
    models = {model}
    for step in place:
        # A step that is no key is an index, a name of a mapping, or the kind of a section.
        fields = [each.model_fields[step] for each in models if step in each.model_fields]
        if fields:
            models = {found for field in fields for found in _models(field.annotation)}
    return {name for each in models for name in each.model_fields}


def _models(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
