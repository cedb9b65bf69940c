"""Looks at a ComfyUI's folder, prints where its models, packs and workflows run, and writes a configuration."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from serve_app import config
from serve_app.cli.adopting.places import Classes, Found, Place, convert, models, pickles
from serve_app.cli.lines import print_json, print_line
from serve_app.errors import ConfigError, ModelFileError
from serve_app.packs.loading import Packs, load_packs
from serve_app.store.models.catalog import FOLDERS, Catalog
from serve_app.store.models.extra_paths import directories_with, read_extra_paths

PLACES: dict[Place, str] = {"here": "run here", "pool": "run in the ComfyUI pool", "nowhere": "run nowhere"}
SHOWN_CHARACTERS = 300
"""How much of a reason is printed as text."""


def adopt(folder: Path, target: Path, python: Path | None, *, converting: bool, as_json: bool, gpu: bool) -> int:
    """Look at a ComfyUI's folder, print what runs where, and write a configuration. Runs the packs' code.

    target: the configuration's file. python: of the ComfyUI; None looks for a virtual environment in the folder.
    converting: make safetensors files of pickles, beside the configuration. gpu: whether this host has one. Errors:
    ConfigError.
    """
    if not (folder / "main.py").is_file() or not (folder / "models").is_dir():
        raise ConfigError(f"{folder} is no ComfyUI: it has no main.py and no folder models")
    if target.exists():
        raise ConfigError(f"{target} is there already; name another file with --output, or remove it")
    python = python or _python(folder)
    elsewhere: Place = "nowhere" if python is None else "pool"
    extra_files = [path for path in [folder / "extra_model_paths.yaml"] if path.is_file()]
    converted = target.parent.absolute() / "converted"
    if converting:
        for failure in _convert_all(folder / "models", _directories(extra_files), converted):
            print_line(failure, error=True)
        extra_files += [converted / "extra_model_paths.yaml"] if converted.is_dir() else []
    directories = _directories(extra_files)
    packs = _loaded(folder)
    classes = Classes(packs, pool=python is not None)
    left = (name for name, _ in pickles(folder / "models", directories) if not _safe(converted, name).exists())
    found = [
        *models(Catalog(folder / "models", directories), elsewhere),
        *(
            Found("model", name, elsewhere, "a pickle; --convert makes a safetensors file of its tensors")
            for name in left
        ),
        *classes.packs(),
        *classes.workflows(folder),
    ]
    written = _configuration(folder, extra_files, python, packs, gpu=gpu)
    config.parse(written["applications"][0]["args"], str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"# Made by `serve-app adopt {folder}`.\n{yaml.safe_dump(written, sort_keys=False)}")
    if as_json:
        print_json({"configuration": str(target), "found": [asdict(each) for each in found]})
    else:
        for line in lines(found, python, target):
            print_line(line)
    return 0


def lines(found: Sequence[Found], python: Path | None, target: Path) -> Iterable[str]:
    """Yield how many of each kind run where, and each that does not run here with the reason."""
    for kind in ("model", "pack", "workflow"):
        of_kind = [each for each in found if each.kind == kind]
        counts = [(sum(each.place == place for each in of_kind), says) for place, says in PLACES.items()]
        said = ", ".join(f"{count} {says}" for count, says in counts if count)
        yield f"{kind}s: {said or 'none'}"
        for each in of_kind:
            if each.place != "here":
                yield f"  {each.name}: {PLACES[each.place].removeprefix('run ')}: {each.why[:SHOWN_CHARACTERS]}"
    if python is None and any(each.place == "nowhere" for each in found):
        yield "no Python of this ComfyUI is known: with --python FILE what runs nowhere runs in a pool that is ComfyUI"
    yield f"written: {target}"
    yield f"start it: serve-app up --config {target}"


def _directories(extra_files: Iterable[Path]) -> Mapping[str, tuple[str, ...]]:
    return directories_with(path for file in extra_files for path in read_extra_paths(file))


def _loaded(folder: Path) -> Packs:
    packs_dir = folder / "custom_nodes"
    if not packs_dir.is_dir():
        return Packs()
    with tempfile.TemporaryDirectory() as root:
        areas = {area: Path(root, area) for area in ("input", "output", "temp")}
        for area in areas.values():
            area.mkdir()
        return load_packs(packs_dir, folder / "models", areas)  # type: ignore[arg-type]


def _safe(below: Path, name: str) -> Path:
    """Return the safetensors file that is made of a pickle, which has a name as FOLDER/NAME."""
    return (below / name).with_suffix(".safetensors")


def _convert_all(root: Path, directories: Mapping[str, tuple[str, ...]], below: Path) -> list[str]:
    """Convert every pickle that is not converted yet; return why some could not be."""
    failures = []
    for name, source in pickles(root, directories):
        if not _safe(below, name).exists():
            print_line(f"converting {name}", error=True)
            try:
                convert(source, _safe(below, name))
            except ModelFileError as error:
                failures.append(str(error))
    if below.is_dir():
        section = {"base_path": ".", **{folder: folder for folder in FOLDERS if (below / folder).is_dir()}}
        (below / "extra_model_paths.yaml").write_text(yaml.safe_dump({"converted": section}, sort_keys=False))
    return failures


def _python(folder: Path) -> Path | None:
    found = (folder / venv / "bin" / "python" for venv in ("venv", ".venv"))
    return next((path for path in found if path.exists()), None)


def _configuration(
    folder: Path, extra_files: Sequence[Path], python: Path | None, packs: Packs, *, gpu: bool
) -> dict[str, Any]:
    """Return the Serve config file. Where there is a GPU, the server and the ComfyUI take half of it each."""
    share = {"num_gpus": 0.5} if gpu and python is not None else {}
    pools: list[dict[str, Any]] = [{"name": "gpu", "num_cpus": 1, **share}]
    if python is not None:
        comfyui: dict[str, Any] = {"directory": str(folder.absolute()), "python": str(python.absolute())}
        comfyui |= {} if gpu else {"arguments": ["--cpu"]}
        pools.append({"name": "comfyui", "min_replicas": 0, "comfyui": comfyui, **share})
    settings: dict[str, Any] = {
        "models_dir": str((folder / "models").absolute()),
        "extra_model_paths": [str(file.absolute()) for file in extra_files],
    }
    if packs.specs:
        settings["custom_nodes_dir"] = str((folder / "custom_nodes").absolute())
    application = {
        "name": "serve-app",
        "route_prefix": "/",
        "import_path": "serve_app.deployments.build:build",
        "args": {**settings, "pools": pools},
    }
    return {
        "http_options": {"host": "127.0.0.1", "port": 8188},
        "proxy_location": "HeadOnly",
        "applications": [application],
    }
