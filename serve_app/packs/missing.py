"""Stand-ins for ComfyUI's names that this server lacks: they can be imported and subclassed, and raise when used.

A pack's top names far more of ComfyUI than any one of its classes runs, and a class that runs none of what is missing
is as good here as there. So a missing name is no reason to leave a pack out; `static_analysis.py` finds the classes
that need it.

Which names there are is read from `comfyui_names.json` (made by `tests.unit.packs.comfyui_names`): what ComfyUI's
module does not hold, this server's does not either, so that `hasattr` and `except ImportError` take the branch that
they take there, and what a module there imports from elsewhere, as `server.uuid`, is had from there.
"""

from __future__ import annotations

import json
import sys
from abc import ABCMeta
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from serve_app.errors import NodeError

ROOTS = (
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
)
"""The modules of ComfyUI that packs import from, and from what is beneath them."""

NAMES_FILE = Path(__file__).with_name("comfyui_names.json")
NAMES: Mapping[str, Mapping[str, str | None]] = json.loads(NAMES_FILE.read_text())
"""What ComfyUI's modules hold: None for what a module makes, "module" or "module:name" for what it imports."""

MODULES = frozenset(
    ".".join(parts[:depth]) for parts in (name.split(".") for name in NAMES) for depth in range(1, len(parts) + 1)
)
"""ComfyUI's modules, and the packages that they lie in."""


class MissingNameError(NodeError):
    """A node uses a name of ComfyUI's that this server lacks."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} of ComfyUI is not here: models are recipes that the server's engine runs for many jobs at once; a "
            "pool that runs ComfyUI itself has it (docs/comfyui-pool.md)"
        )
        self.name = name

    def __reduce__(self) -> tuple[type[MissingNameError], tuple[str]]:
        return (type(self), (self.name,))


class MissingMemberError(MissingNameError, AttributeError):  # type: ignore[misc]
    """A stand-in for an object of ComfyUI's lacks a member; `hasattr` is False for it."""


class _Missing(ABCMeta):
    """The type of missing names, which are classes: these alone can be base, annotation and argument of isinstance."""

    missing_name: str

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        if _loading:
            return missing_stand_in(f"{cls.missing_name}()")
        raise MissingNameError(cls.missing_name)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return missing_stand_in(f"{cls.missing_name}.{name}")

    def __getitem__(cls, key: Any) -> Any:
        return missing_stand_in(f"{cls.missing_name}[{key!r}]")

    def __iter__(cls) -> Iterator[Any]:
        if _loading:
            return iter(())
        raise MissingNameError(cls.missing_name)

    def __len__(cls) -> int:
        if _loading:
            return 0
        raise MissingNameError(cls.missing_name)

    def __contains__(cls, value: object) -> bool:
        raise MissingNameError(cls.missing_name)

    def __bool__(cls) -> bool:
        return True


_loading = False


@contextmanager
def loading() -> Iterator[None]:
    """Allow stand-ins to be called and iterated inside the context, as a module's top level is no use by a job.

    A call returns another stand-in, and an iteration is empty.
    """
    global _loading
    before, _loading = _loading, True
    try:
        yield
    finally:
        _loading = before


def missing_stand_in(name: str) -> Any:
    """Return the stand-in for a missing name, given with its module."""
    return _Missing(name.rpartition(".")[2], (), {"missing_name": name, "__module__": name.rpartition(".")[0]})


def missing_name(value: object) -> str | None:
    """Return the missing name of a stand-in, or of its subclass; None for any other value."""
    return value.missing_name if isinstance(value, _Missing) else None


def fill(module: ModuleType, called: str, known: Mapping[str, Any] = MappingProxyType({})) -> ModuleType:
    """Add stand-ins for the names that a module lacks of ComfyUI's, and return it.

    called: ComfyUI's name of the module. known: members by name that take precedence over stand-ins.
    """
    names = NAMES.get(called, {})

    def absent(name: str) -> Any:
        if name == "__all__":  # asked for by `from module import *`, which takes what ComfyUI's module holds
            return sorted(public for public in {**names, **vars(module)} if not public.startswith("_"))
        if name in known:
            return known[name]
        if f"{called}.{name}" in MODULES:
            return import_module(f"{called}.{name}")
        if name not in names:
            raise AttributeError(f"module {called!r} has no attribute {name!r}")
        source = names[name]
        return missing_stand_in(f"{called}.{name}") if source is None else _imported(source, f"{called}.{name}")

    module.__getattr__ = absent  # type: ignore[method-assign]
    return module


def _imported(source: str, called: str) -> Any:
    """Return a name that a module of ComfyUI's imports; a stand-in if its package is not installed."""
    module, _, name = source.partition(":")
    try:
        found: Any = import_module(module)
        return getattr(found, name) if name else found
    except (ImportError, AttributeError):
        return missing_stand_in(called)


def missing_member(module: ModuleType, name: str, default: Any) -> Any:
    """Return a filled module's stand-in for a name; the default for any other module or name."""
    answer = vars(module).get("__getattr__")
    if answer is None or getattr(answer, "__module__", None) != __name__:
        return default
    try:
        return answer(name)
    except AttributeError:
        return default


class Finder:
    """An import finder for ComfyUI's modules that are not found otherwise; it is the last in `sys.meta_path`.

    nodes: the server's own classes by name, for modules of `comfy_extras`.
    """

    def __init__(self, nodes: Mapping[str, type]) -> None:
        self.nodes = nodes

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module without members, or None for a name that is not ComfyUI's."""
        if fullname not in MODULES:
            return None
        return ModuleSpec(fullname, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module."""
        module = ModuleType(spec.name, "A module of ComfyUI's that is not here.")
        return fill(module, spec.name, self.nodes if spec.name.startswith("comfy_extras.") else {})

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: there is nothing in it."""


def install_finder(nodes: Mapping[str, type]) -> None:
    """Install the finder of missing modules, which also have the server's own node classes."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Finder)]
    sys.meta_path.append(Finder(nodes))
