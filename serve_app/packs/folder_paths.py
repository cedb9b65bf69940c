"""`folder_paths` for node packs: the directories of models, inputs and outputs, set by `place` before any pack is
loaded.

Source: the facts of ComfyUI 0.3.64's module of this name.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.store.files.store import Area
from serve_app.store.models.catalog import FOLDERS, OLD_NAMES, SUFFIXES
from serve_app.store.models.extra_paths import ExtraPath

supported_pt_extensions = {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"}
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}
base_path = models_dir = output_directory = temp_directory = input_directory = user_directory = ""


def place(models: Path, areas: Mapping[Area, Path], packs: Path, extra: Iterable[ExtraPath] = ()) -> None:
    """Set the directories. packs: the folder of node packs; extra: further directories of models."""
    global base_path, models_dir, output_directory, temp_directory, input_directory, user_directory
    base_path, models_dir = str(packs.parent), str(models)
    output_directory, temp_directory, input_directory = (str(areas[area]) for area in ("output", "temp", "input"))
    user_directory = str(packs.parent / "user")
    for folder, parts in FOLDERS.items():
        folder_names_and_paths[folder] = ([str(models / part) for part in parts], supported_pt_extensions)
    folder_names_and_paths["custom_nodes"] = ([str(packs)], set())
    for path in extra:
        add_model_folder_path(path.folder, str(path.directory), path.first)


def map_legacy(folder_name: str) -> str:
    """Return today's name of a folder."""
    return OLD_NAMES.get(folder_name, folder_name)


def add_model_folder_path(folder_name: str, full_folder_path: str, is_default: bool = False) -> None:
    """Let a folder also look there; first, if it is the default."""
    paths, _ = folder_names_and_paths.setdefault(map_legacy(folder_name), ([], set()))
    if full_folder_path in paths:
        paths.remove(full_folder_path)
    paths.insert(0 if is_default else len(paths), full_folder_path)


def get_folder_paths(folder_name: str) -> list[str]:
    """Return the directories of a folder. Errors: KeyError for an unknown one."""
    return list(folder_names_and_paths[map_legacy(folder_name)][0])


def get_filename_list(folder_name: str) -> list[str]:
    """Return the names of a folder's files, sorted, subfolders with forward slashes."""
    folder = map_legacy(folder_name)
    directories, extensions = folder_names_and_paths[folder]
    found: set[str] = set()
    for directory in directories:
        names = recursive_search(directory)[0]
        found |= set(filter_files_extensions(names, extensions))
    names = sorted(found)
    # As a choice that names its folder, the list that a client may choose from is read whenever it is needed.
    return FolderChoice(folder, names) if folder in FOLDERS and all(n.endswith(SUFFIXES) for n in names) else names


def recursive_search(directory: str, excluded_dir_names: list[str] | None = None) -> tuple[list[str], dict[str, float]]:
    """Return the files below a directory, relative to it, and the times of its folders."""
    names: list[str] = []
    times: dict[str, float] = {}
    for current, folders, files in os.walk(directory, followlinks=True):
        folders[:] = [name for name in folders if name not in (excluded_dir_names or ())]
        times[current] = os.path.getmtime(current)
        names += [os.path.relpath(os.path.join(current, name), directory) for name in files]
    return names, times


def filter_files_extensions(files: Iterable[str], extensions: Iterable[str]) -> list[str]:
    """Return the names with one of the extensions, sorted; all for none."""
    wanted = set(extensions)
    return sorted(name for name in files if not wanted or os.path.splitext(name)[1].lower() in wanted)


def get_full_path(folder_name: str, filename: str) -> str | None:
    """Return where a file of a folder is, or None."""
    name = os.path.relpath(os.path.join("/", filename), "/")
    found = (os.path.join(directory, name) for directory in get_folder_paths(folder_name))
    return next((path for path in found if os.path.isfile(path)), None)


def get_full_path_or_raise(folder_name: str, filename: str) -> str:
    """Return where a file of a folder is. Errors: FileNotFoundError."""
    found = get_full_path(folder_name, filename)
    if found is None:
        raise FileNotFoundError(f"there is no {filename!r} in the folder {folder_name!r} of model files")
    return found


def get_output_directory() -> str:
    """Return the directory of saved files."""
    return output_directory


def get_temp_directory() -> str:
    """Return the directory of previews."""
    return temp_directory


def get_input_directory() -> str:
    """Return the directory of uploads."""
    return input_directory


def get_user_directory() -> str:
    """Return a directory for what packs keep."""
    return user_directory


def get_directory_by_type(type_name: str) -> str | None:
    """Return the directory of an area, or None."""
    return {"output": output_directory, "temp": temp_directory, "input": input_directory}.get(type_name)


def annotated_filepath(name: str) -> tuple[str, str | None]:
    """Split "name [output]" into the name and the area's directory, None without an area."""
    found = re.fullmatch(r"(.*?) ?\[(output|input|temp)\]", name)
    return (found[1], get_directory_by_type(found[2])) if found else (name, None)


def get_annotated_filepath(name: str, default_dir: str | None = None) -> str:
    """Return where an uploaded file is, or one of the area it names."""
    plain, directory = annotated_filepath(name)
    return os.path.join(directory or default_dir or input_directory, plain)


def exists_annotated_filepath(name: str) -> bool:
    """Whether that file is there."""
    return os.path.exists(get_annotated_filepath(name))


def get_save_image_path(
    filename_prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
) -> tuple[str, str, int, str, str]:
    """Return (folder, file name, next counter, subfolder, prefix) for PREFIX_00001_. Errors: NodeError outside it."""
    at = time.localtime()
    tokens = {"width": image_width, "height": image_height, "year": at.tm_year}
    two = {"month": at.tm_mon, "day": at.tm_mday, "hour": at.tm_hour, "minute": at.tm_min, "second": at.tm_sec}
    for name, number in tokens.items():
        filename_prefix = filename_prefix.replace(f"%{name}%", str(number))
    for name, number in two.items():
        filename_prefix = filename_prefix.replace(f"%{name}%", f"{number:02}")
    subfolder, filename = os.path.split(os.path.normpath(filename_prefix))
    folder = os.path.join(output_dir, subfolder)
    if os.path.commonpath((output_dir, os.path.abspath(folder))) != os.path.abspath(output_dir):
        raise NodeError(f"filename_prefix {filename_prefix[:300]!r} leaves the folder that files are saved to")
    os.makedirs(folder, exist_ok=True)
    pattern = re.compile(re.escape(filename) + r"_([0-9]+)_?")
    counters = [int(found[1]) for name in os.listdir(folder) if (found := pattern.match(name))]
    return folder, filename, max(counters, default=0) + 1, subfolder, filename_prefix
