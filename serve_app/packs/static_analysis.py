"""Static analysis of a pack's class: the missing names and models that its bytecode can use.

It follows the class's methods, the packs' functions and classes that they reference, imports, and attributes of
modules. The result is an upper bound: a branch that is never taken counts.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import getattr_static
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from serve_app.packs.library import needs_models
from serve_app.packs.missing import MODULES, missing_member, missing_name

_UNKNOWN = object()
"""The value of an expression that is not followed."""


@dataclass(frozen=True, slots=True)
class ClassAnalysis:
    """The result for a class. lacks: missing names, sorted. models: whether it uses nodes of the server that need
    RUNTIME.
    """

    lacks: tuple[str, ...]
    models: bool


def analyse(node_class: type, packs_dir: Path) -> ClassAnalysis:
    """Analyse a class. packs_dir: only code of files beneath it is followed."""
    walk = _Walk(str(packs_dir))
    # A V3 class is what its V1 form runs.
    walk.see(getattr(node_class, "V3", node_class))
    walk.run()
    return ClassAnalysis(tuple(sorted(walk.names)), walk.models)


class _Walk:
    """One analysis: code still to read, code that was read, and missing names found."""

    def __init__(self, packs_dir: str) -> None:
        self._packs_dir = packs_dir
        self._waiting: list[FunctionType | type] = []
        self._seen: set[int] = set()
        self.names: set[str] = set()
        self.models = False

    def see(self, value: Any) -> None:
        """Handle a referenced value: note a missing name, queue a function or class of a pack."""
        if (name := missing_name(value)) is not None:
            self.names.add(name)
        self.models = self.models or needs_models(value)
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        found: Any = getattr(value, "__wrapped__", value) if isinstance(value, FunctionType) else value
        if isinstance(found, FunctionType | type) and id(found) not in self._seen and self._ours(found):
            self._seen.add(id(found))
            self._waiting.append(found)

    def run(self) -> None:
        """Read all queued code."""
        while self._waiting:
            value = self._waiting.pop()
            if isinstance(value, FunctionType):
                cells = (value.__closure__ or ()) if value.__closure__ else ()
                free = dict(zip(value.__code__.co_freevars, cells, strict=False))
                self._read(value.__code__, value.__globals__, {name: _held(cell) for name, cell in free.items()})
            else:
                for base in value.__bases__:
                    self.see(base)
                for member in vars(value).values():
                    parts = (member.fget, member.fset, member.fdel) if isinstance(member, property) else (member,)
                    for part in parts:
                        self.see(part)

    def _ours(self, value: FunctionType | type) -> bool:
        if isinstance(value, FunctionType):
            return value.__code__.co_filename.startswith(self._packs_dir)
        file = getattr(sys.modules.get(value.__module__), "__file__", None)
        return file is not None and file.startswith(self._packs_dir)

    def _read(self, code: CodeType, names: dict[str, Any], free: dict[str, Any]) -> None:
        """Follow the names of one function's code, and of the functions made in it."""
        local: dict[str, Any] = {}
        for value in _named(code, names, free, local):
            self.see(value)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._read(constant, names, {**free, **local})


def _named(code: CodeType, names: dict[str, Any], free: dict[str, Any], local: dict[str, Any]) -> Iterator[Any]:
    """Yield the value of each attribute chain a.b.c, as far as it is known. local: filled with names that imports
    bind.
    """
    here: Any = _UNKNOWN
    imported: Any = _UNKNOWN
    constants: list[Any] = []
    for step in dis.get_instructions(code):
        match step.opname:
            case "LOAD_GLOBAL" | "LOAD_NAME":
                here = names.get(step.argval, _UNKNOWN)
            case "LOAD_DEREF" | "LOAD_CLASSDEREF":
                here = local.get(step.argval, free.get(step.argval, _UNKNOWN))
            case "LOAD_FAST" | "LOAD_FAST_CHECK":
                here = local.get(step.argval, _UNKNOWN)
            case "LOAD_ATTR" | "LOAD_METHOD":
                here = _member(here, step.argval)
            case "LOAD_CONST":
                constants = [*constants[-1:], step.argval]
                continue
            case "IMPORT_NAME":
                level, members = constants if len(constants) == 2 else (0, None)
                here = imported = _module(step.argval, level, members, names)
            case "IMPORT_FROM":
                here = _member(imported, step.argval)
            case "STORE_FAST" | "STORE_DEREF":
                local[step.argval] = here
                here = _UNKNOWN
            case "CACHE" | "PRECALL" | "EXTENDED_ARG" | "PUSH_NULL" | "SWAP" | "POP_TOP":
                continue
            case _:
                here = _UNKNOWN
        if here is not _UNKNOWN:
            yield here


def _member(value: Any, name: str) -> Any:
    """Return a member of a module or class, else _UNKNOWN.

    A module's own `__getattr__` is not called, as it imports much in some packages, except for missing names.
    """
    if missing_name(value) is not None or not isinstance(value, ModuleType | type):
        return _UNKNOWN
    found = getattr_static(value, name, _UNKNOWN)
    return missing_member(value, name, _UNKNOWN) if found is _UNKNOWN and isinstance(value, ModuleType) else found


def _module(name: str, level: int, members: Any, names: dict[str, Any]) -> Any:
    """Return the module that an import statement in a function would bind, where it is loaded or ComfyUI's."""
    package = str(names.get("__package__") or names.get("__name__", ""))
    if level:
        parts = package.split(".")[: len(package.split(".")) - (level - 1)]
        name = ".".join([*parts, name] if name else parts)
    root = name.partition(".")[0]
    # This runs no code: the found module is either loaded or empty.
    if name not in sys.modules and name in MODULES:
        __import__(name)
    return sys.modules.get(name if members else root, _UNKNOWN)


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return _UNKNOWN
