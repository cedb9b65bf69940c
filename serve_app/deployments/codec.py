"""Converts values to MessagePack and back by their declared types, so that no bytes of a peer's become anything else.

`Shapes.of` reads an annotation: a dataclass or named tuple goes as the list of its fields, in a union of several with
its class's name first; only declared classes are ever made. `Any` is JSON-like data. What MessagePack cannot hold goes
as an extension: integers beyond 64 bits, text with half a surrogate pair, and the type's name of what is no data.
"""

from __future__ import annotations

import operator
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec.msgpack import Ext

TEXT, INTEGER, MAPPING, NO_DATA = 1, 2, 3, 4
"""MessagePack's extension types: text in UTF-8 with surrogates; an integer's bytes, signed, big-endian; the pairs of a
mapping that has a key of these; a type's name.
"""

Convert: TypeAlias = Callable[[Any], Any]


class UndeclaredError(TypeError):
    """A value that its declared type does not allow, or an annotation that declares no data."""


class UnsendableError(TypeError):
    """A value of a type that a connection must not carry."""


class NoData:
    """Stands for a value that is no data, by a class of the same name, which whoever renders it as JSON refuses."""

    def __reduce__(self) -> tuple[Callable[[str], NoData], tuple[str]]:
        return _no_data, (type(self).__name__,)


class Shape(NamedTuple):
    """How values of one type are converted. pack: to what MessagePack holds; None: as they are. unpack: back, checked.

    Errors of both: UndeclaredError. plain: the types of what is checked by its type alone and comes back as it is.
    """

    pack: Convert | None
    unpack: Convert
    plain: frozenset[type] | None = None


class Row:
    """How the values of fixed places are converted, to a list."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self._count = len(shapes)
        self._packs = [(i, shape.pack) for i, shape in enumerate(shapes) if shape.pack is not None]
        self._plain = [(i, shape.plain) for i, shape in enumerate(shapes) if shape.plain is not None]
        others = [(i, shape.unpack) for i, shape in enumerate(shapes) if shape.plain is None]
        self._unpacks = [(i, unpack) for i, unpack in others if unpack is not _as_it_is]

    def pack(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return the packed values, without a check of what goes as it is. Errors: UndeclaredError."""
        if not self._packs:
            return values
        packed = list(values)
        for i, pack in self._packs:
            packed[i] = pack(packed[i])
        return packed

    def unpack(self, content: Any) -> list[Any]:
        """Return the values. Errors: UndeclaredError."""
        if type(content) is not list or len(content) != self._count:
            raise UndeclaredError(f"{_shown(content)} is no list of {self._count}")
        # By type and without a call each, as most of what goes is text and numbers.
        for i, plain in self._plain:
            if type(content[i]) not in plain:
                raise _refused(type(content[i]), plain)
        for i, unpack in self._unpacks:
            content[i] = unpack(content[i])
        return content


class Shapes:
    """The shapes of annotations. names: returns what those name that only type checkers import."""

    def __init__(self, names: Callable[[], dict[str, Any]] = dict) -> None:
        self._names = names
        self._records: dict[type, _Record] = {}

    def hints(self, declared: Any) -> dict[str, Any]:
        """Return the annotations of a class or function, resolved. Errors: UndeclaredError."""
        try:
            return typing.get_type_hints(declared, include_extras=True)
        except NameError:
            try:
                return typing.get_type_hints(declared, localns=self._names(), include_extras=True)
            except NameError as error:
                raise UndeclaredError(f"{declared.__qualname__}: {error}") from error

    def of(self, kind: Any) -> Shape:
        """Return the shape of an annotation. Errors: UndeclaredError for one that declares no data."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind in (Any, object):
            return Shape(None, _as_it_is)
        if kind in (str, bytes, bool, int, float, None, type(None)):
            return _scalar([kind])
        if origin is Literal:
            return Shape(None, _one_of(frozenset(arguments)))
        if origin in (typing.Union, types.UnionType, Annotated):
            return self.union(arguments)
        if origin is tuple and ... not in arguments:
            return self._row(arguments)
        if origin in (list, tuple, frozenset, abc.Sequence):
            return _several(tuple if origin is abc.Sequence else origin, self.of(arguments[0]))
        if origin in (dict, abc.Mapping):
            return _mapping(*map(self.of, arguments))
        if is_dataclass(kind) or (isinstance(kind, type) and hasattr(kind, "_fields")):
            record = self._record(typing.cast(type, kind))
            return Shape(record.pack, record.unpack)
        raise UndeclaredError(f"{kind} declares no data")

    def union(self, members: Iterable[Any]) -> Shape:
        """Return the shape of a value of one of these types, without those that are no data, such as functions."""
        plain = [kind for kind in members if kind in _PLAIN]
        shapes = {kind: self._if_data(kind) for kind in members if kind not in _PLAIN}
        known = {kind: shape for kind, shape in shapes.items() if shape is not None}
        if len(known) > 1:
            return self._tagged(plain, known)
        if not known:
            return _scalar(plain)
        [(kind, shape)] = known.items()
        if plain in ([None], [type(None)]):
            return _optional(shape)
        raise UndeclaredError(f"{kind} or {plain} cannot be told apart")

    def _tagged(self, plain: list[Any], known: Mapping[Any, Shape]) -> Shape:
        """Return the shape of several: a list of a class's name and its value; "" for anything else that is allowed."""
        packs = {kind: (kind.__name__, shape.pack) for kind, shape in known.items() if kind is not Any}
        unpacks = {kind.__name__: shape.unpack for kind, shape in known.items() if kind is not Any}
        if Any in known:
            unpacks[""] = _as_it_is
        elif plain:
            unpacks[""] = _scalar(plain).unpack

        def pack(value: Any) -> Any:
            name, convert = packs.get(type(value), ("", None))
            if not name and "" not in unpacks:
                raise _refused(type(value), packs)
            return name, value if convert is None else convert(value)

        def unpack(content: Any) -> Any:
            if type(content) is not list or len(content) != 2 or type(content[0]) is not str:
                raise UndeclaredError(f"{_shown(content)} is no pair of a class's name and its value")
            if (convert := unpacks.get(content[0])) is None:
                raise UndeclaredError(f"{content[0]!r} is none of what is declared here: {', '.join(unpacks)}")
            return convert(content[1])

        return Shape(pack, unpack)

    def _if_data(self, kind: Any) -> Shape | None:
        try:
            return self.of(kind)
        except UndeclaredError:
            return None

    def _row(self, arguments: Iterable[Any]) -> Shape:
        """Return the shape of a tuple of fixed types."""
        row = Row(list(map(self.of, arguments)))
        return Shape(row.pack, lambda content: tuple(row.unpack(content)))

    def _record(self, kind: type) -> _Record:
        """Return the shape of a class with fields, made before theirs, which may hold it again."""
        if (known := self._records.get(kind)) is not None:
            return known
        self._records[kind] = record = _Record(kind)
        try:
            hints = self.hints(kind)
            record.row = Row([self.of(hints[name]) for name in record.names])
        except UndeclaredError as error:
            del self._records[kind]
            raise UndeclaredError(f"{kind.__name__}: {error}") from error
        return record


class _Record:
    """How the objects of one dataclass or named tuple are converted: to the list of the arguments that make them."""

    row: Row

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.names = _arguments(kind)
        self._values: Convert = operator.attrgetter(*self.names) if len(self.names) > 1 else self._few

    def pack(self, value: Any) -> Any:
        if type(value) is not self.kind:
            raise _refused(type(value), [self.kind])
        return self.row.pack(self._values(value))

    def unpack(self, content: Any) -> Any:
        try:
            return self.kind(*self.row.unpack(content))
        except UndeclaredError as error:
            raise UndeclaredError(f"{self.kind.__name__}: {error}") from error

    def _few(self, value: Any) -> Any:
        return tuple(getattr(value, name) for name in self.names)


_BASES: tuple[Any, ...] = (str, int, float, bytes, dict, list)
"""What MessagePack knows, and no class that is derived of it: such as NumPy's float."""
_BARE = (bytes, bool, int, float, type(None), Ext)
_PLAIN = (str, bytes, bool, int, float, None, type(None))
"""Types that MessagePack distinguishes by itself."""


def _arguments(kind: type) -> list[str]:
    """Return the names of what makes an object, in order. Errors: UndeclaredError if a name must be given with it."""
    if not is_dataclass(kind):
        return list(kind._fields)  # type: ignore[attr-defined]
    if any(field.kw_only for field in fields(kind)):
        raise UndeclaredError(f"{kind.__name__} has fields by name only")
    return [field.name for field in fields(kind) if field.init]


def _as_it_is(content: Any) -> Any:
    return content


def _scalar(kinds: Iterable[Any]) -> Shape:
    plain = frozenset(type(None) if kind is None else kind for kind in kinds)
    if float in plain:  # a whole number stays one
        plain |= {int}

    def unpack(content: Any) -> Any:
        if type(content) not in plain:
            raise _refused(type(content), plain)
        return content

    return Shape(None, unpack, plain)


def _one_of(allowed: frozenset[Any]) -> Convert:
    def unpack(content: Any) -> Any:
        if type(content) is not str or content not in allowed:
            raise UndeclaredError(f"{_shown(content)} is none of {', '.join(sorted(map(str, allowed)))}")
        return content

    return unpack


def _optional(shape: Shape) -> Shape:
    pack, unpack, _ = shape
    return Shape(
        None if pack is None else lambda value: None if value is None else pack(value),
        lambda content: None if content is None else unpack(content),
    )


def _several(make: Callable[[Iterable[Any]], Any], shape: Shape) -> Shape:
    pack, unpack, plain = shape

    def unpack_all(content: Any) -> Any:
        if type(content) is not list:
            raise UndeclaredError(f"{_shown(content)} is no list")
        if plain is not None:
            _check(content, plain)
        return make(content if plain is not None else map(unpack, content))

    return Shape(None if pack is None else lambda values: list(map(pack, values)), unpack_all)


def _mapping(key: Shape, value: Shape) -> Shape:
    """Return the shape of a mapping. One of any data is nodes' own, and has keys as they make them."""
    pack, unpack, plain = value
    if key.plain is None:
        raise UndeclaredError("keys must be plain")
    keys, any_data = key.plain, unpack is _as_it_is

    def pack_all(values: Mapping[Any, Any]) -> dict[Any, Any]:
        if pack is not None:
            return {k: pack(v) for k, v in values.items()}
        return values if type(values) is dict else dict(values)

    def unpack_all(content: Any) -> Any:
        if type(content) is not dict:
            raise UndeclaredError(f"{_shown(content)} is no mapping")
        if any_data:
            return content
        _check(content, keys)
        if plain is None:
            return {k: unpack(v) for k, v in content.items()}
        _check(content.values(), plain)
        return content

    return Shape(pack_all, unpack_all)


def _check(values: Iterable[Any], plain: frozenset[type]) -> None:
    for kind in set(map(type, values)) - plain:
        raise _refused(kind, plain)


def _refused(kind: type, allowed: Iterable[type]) -> UndeclaredError:
    names = ", ".join(sorted(kind.__name__ for kind in allowed))
    return UndeclaredError(f"a {kind.__name__} is none of what is declared here: {names}")


def _shown(content: Any) -> str:
    return f"a {type(content).__name__}"


class Encoder:
    """Encodes packed values. forbidden: types that must not be sent; UnsendableError for an object of one."""

    def __init__(self, forbidden: Iterable[type] = ()) -> None:
        self._forbidden = tuple(forbidden)
        self._encode = msgspec.msgpack.Encoder(enc_hook=self._other).encode

    def __call__(self, packed: Any) -> bytes:
        try:
            return self._encode(packed)
        except (UnicodeEncodeError, OverflowError):
            return self._encode(self._extended(packed))

    def _other(self, value: Any) -> Any:
        """Return what is sent for an object that MessagePack does not know."""
        if isinstance(value, self._forbidden):
            raise UnsendableError(f"a {type(value).__name__} cannot go by this connection")
        for kind in _BASES:
            if isinstance(value, kind):
                return kind(value)
        return dict(value) if isinstance(value, Mapping) else Ext(NO_DATA, type(value).__name__.encode())

    def _extended(self, value: Any) -> Any:
        """Return a value with extensions for the texts and integers in it that MessagePack cannot hold."""
        if isinstance(value, str):
            return value if _is_text(value) else Ext(TEXT, value.encode("utf-8", "surrogatepass"))
        if type(value) is int and not -(1 << 63) <= value < 1 << 64:
            return Ext(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
        if isinstance(value, Mapping):
            pairs = [(self._extended(key), self._extended(child)) for key, child in value.items()]
            return Ext(MAPPING, self._encode(pairs)) if any(type(key) is Ext for key, _ in pairs) else dict(pairs)
        if isinstance(value, list | tuple | frozenset):
            return list(map(self._extended, value))
        return value if isinstance(value, _BARE) else self._other(value)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_data(name: str) -> NoData:
    made: NoData = type(name, (NoData,), {})()
    return made


def _extension(code: int, content: memoryview) -> Any:
    if code == TEXT:
        return str(content, "utf-8", "surrogatepass")
    if code == INTEGER:
        return int.from_bytes(content, "big", signed=True)
    if code == MAPPING:
        return dict(decode(content))
    if code == NO_DATA:
        return _no_data(str(content, "utf-8"))
    raise UndeclaredError(f"extension {code} is none of those of this connection")


_DECODER = msgspec.msgpack.Decoder(ext_hook=_extension)


def decode(content: bytes | memoryview | bytearray) -> Any:
    """Return the packed value that was encoded. Errors: UndeclaredError for bytes that are none."""
    try:
        return _DECODER.decode(content)
    except (ValueError, RecursionError, TypeError) as error:  # msgspec's are kinds of ValueError
        raise UndeclaredError(f"no message: {error}") from error
