"""Loading of node packs: folders or files of third-party node classes, in processes that run nodes only.

A pack that cannot be loaded is logged and left out, and so is a class without a protocol; others are not affected. The
rules of finding and naming are those of ComfyUI 0.3.64's `nodes.py` (load_custom_node).
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from serve_app import log
from serve_app.errors import NodeError
from serve_app.execution.call import PACKS
from serve_app.execution.contained import safe_str
from serve_app.execution.protocol import spec_of
from serve_app.graph.spec import NodeSpec
from serve_app.nodes.registry import BUILTIN
from serve_app.packs import values
from serve_app.packs.comfy_api.node import adapted, is_v3
from serve_app.packs.installs import without_installs
from serve_app.packs.lasting import mark_stateful, returns_itself
from serve_app.packs.missing import loading, missing_name
from serve_app.packs.modules import install_modules
from serve_app.packs.requirements import unmet
from serve_app.packs.routes import PackRoute
from serve_app.packs.server import PromptServer
from serve_app.packs.static_analysis import analyse
from serve_app.store.files.store import Area
from serve_app.store.models.extra_paths import ExtraPath

_log = log.get("nodes.packs")


MODEL_TYPES = frozenset({"MODEL", "CLIP", "VAE", "CONTROL_NET", "GUIDER", "CLIP_VISION"})
"""Types of values that packs can ask for what only a replica with models knows."""


@dataclass(slots=True)
class Packs:
    """The loaded packs: classes and specs by name, HTTP routes by the packs' `python_module`, and reasons for failures
    by pack.

    superseded: how many of a pack's classes have the name of one of the server's own, which wins; by pack. left_out:
    reasons for single classes, by pack and class. installs: refused pip commands, by pack.
    """

    classes: dict[str, type] = field(default_factory=dict)
    specs: dict[str, NodeSpec] = field(default_factory=dict)
    routes: dict[str, tuple[PackRoute, ...]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    superseded: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    installs: dict[str, list[str]] = field(default_factory=dict)


def load_packs(
    packs_dir: Path,
    models_dir: Path,
    areas: Mapping[Area, Path],
    watched: Callable[[str], AbstractContextManager[object]] = nullcontext,
    extra: Iterable[ExtraPath] = (),
) -> Packs:
    """Load every pack of a folder. Runs their code, each inside the context `watched(name)`.

    extra: further directories of models.
    """
    install_modules(models_dir, areas, packs_dir, extra)
    for missing in unmet(packs_dir):
        _log.error("the lock of the node packs asks for %s", missing)
    found = Packs()
    paths = list(_paths(packs_dir))
    for path in paths:
        with watched(path.name), loading():
            _guarded(found, path, lambda path=path: _run_prestartup(path))  # type: ignore[misc]
    for path in paths:
        if path.stem not in found.failures:
            with watched(path.name), loading():
                _guarded(found, path, lambda path=path: _add(found, path))  # type: ignore[misc]
        routes = PromptServer.instance.registered()
        if routes and path.stem not in found.failures:
            found.routes[_python_module(path)] = routes
    sys.modules["nodes"].NODE_CLASS_MAPPINGS.update(found.classes)
    _log.info("%d classes of node packs; %d packs left out", len(found.classes), len(found.failures))
    return found


def _paths(packs_dir: Path) -> Iterator[Path]:
    for path in sorted(packs_dir.iterdir() if packs_dir.is_dir() else ()):
        hidden = path.name.startswith(".") or path.name == "__pycache__" or path.name.endswith(".disabled")
        if not hidden and (path.suffix == ".py" or (path / "__init__.py").is_file()):
            yield path


def _guarded(found: Packs, path: Path, step: Callable[[], None]) -> None:
    with without_installs() as refused:
        _tried(found, path, step)
    if refused:
        found.installs.setdefault(path.stem, []).extend(refused)
        _log.warning("node pack %s was refused to run %s", path.name, "; ".join(refused))


def _tried(found: Packs, path: Path, step: Callable[[], None]) -> None:
    try:
        step()
    # A pack may also try to exit the process, which must not affect others.
    except BaseException as error:
        found.failures[path.stem] = f"{type(error).__name__}: {safe_str(error)}"
        _log.warning("node pack %s is left out", path.name, exc_info=error)


def _run_prestartup(path: Path) -> None:
    if (script := path / "prestartup_script.py").is_file():
        _import(script, f"{_name(path)}_prestartup")


def _add(found: Packs, path: Path) -> None:
    module = _import(path / "__init__.py" if path.is_dir() else path, _name(path))
    python_module = _python_module(path)
    pack = python_module.removeprefix(PACKS)
    for class_type, node_class, title in _classes(module):
        if class_type in BUILTIN:
            found.superseded[pack] = found.superseded.get(pack, 0) + 1
            continue
        try:
            if is_v3(node_class):
                node_class = adapted(node_class, python_module)
            node_class.RELATIVE_PYTHON_MODULE = python_module  # type: ignore[attr-defined]
            node_class.VIEWS = values  # type: ignore[attr-defined]
            if returns_itself(node_class):
                mark_stateful(node_class)
            spec = spec_of(node_class, class_type, title)
            uses = analyse(node_class, path.parent)
            models = uses.models or any(kind in MODEL_TYPES for kind in (*spec.outputs, *(i.type for i in spec.inputs)))
            found.specs[class_type] = replace(spec, lacks=uses.lacks, models=models)
            found.classes[class_type] = node_class
        except BaseException as error:
            reason = _extended(node_class) or safe_str(error)
            found.left_out.setdefault(pack, {})[class_type] = reason
            _log.warning("class %s of node pack %s is left out: %s", class_type, path.name, reason)


def _extended(node_class: type) -> str:
    """Return the reason if a class extends a missing one, else ""."""
    name = missing_name(node_class)
    return f"it extends {name} of ComfyUI, which is not here" if name else ""


def _classes(module: ModuleType) -> Iterator[tuple[str, type, str]]:
    """Yield (name, class, title) of a pack: its mappings, else what its extension lists."""
    mappings = getattr(module, "NODE_CLASS_MAPPINGS", None)
    if mappings is not None:
        titles = getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", None) or {}
        yield from ((name, node_class, titles.get(name, "")) for name, node_class in mappings.items())
        return
    entrypoint = getattr(module, "comfy_entrypoint", None)
    if entrypoint is None:
        raise NodeError(f"{module.__file__} has neither NODE_CLASS_MAPPINGS nor comfy_entrypoint")

    async def listed() -> list[Any]:
        extension = await _value(entrypoint())
        await _value(extension.on_load())
        return list(await _value(extension.get_node_list()))

    for node_class in _finished(listed()):
        schema = node_class.GET_SCHEMA()
        yield schema.node_id, node_class, schema.display_name or ""


async def _value(given: Any) -> Any:
    return await given if inspect.isawaitable(given) else given


def _finished(awaitable: Awaitable[Any]) -> Any:
    """Run an awaitable in a thread of its own, as the loading thread may run a loop."""
    outcome: list[Any] = []

    async def awaited() -> Any:
        return await awaitable

    def run() -> None:
        try:
            outcome.append(asyncio.run(awaited()))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _python_module(path: Path) -> str:
    """Return the pack's name for clients and for pools."""
    return f"{PACKS}{path.stem if path.is_file() else path.name}"


def _name(path: Path) -> str:
    # Dots would make packages of it, and packs are looked up by this name.
    return str(path.with_suffix("") if path.is_file() else path).replace(".", "_x_")


def _import(file: Path, name: str) -> ModuleType:
    packages = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=packages)
    if spec is None or spec.loader is None:
        raise NodeError(f"{file} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
