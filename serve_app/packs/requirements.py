"""The Python packages that a folder of node packs needs, as one lock file: written once, and compared at each start.

A pack says what it needs in requirements.txt or pyproject.toml. Their sum is solved together, under the versions that
this installation has, so that no pack changes what the server or another pack runs on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from serve_app.errors import ConfigError

LOCK = "requirements.lock"
"""The lock's name in the folder of packs."""

_PLATFORM = ("nvidia-", "triton")
"""Packages that come with torch as its build wants them, under no version of ours."""


def requirements(packs_dir: Path) -> dict[str, list[Requirement]]:
    """Return what each pack of a folder needs, by its name. Lines that name no package, as options do, are left out."""
    found = {}
    for pack in sorted(packs_dir.iterdir()):
        if pack.is_dir() and not pack.name.startswith(".") and not pack.name.endswith(".disabled"):
            lines = list(_lines(pack))
            if lines:
                found[pack.name] = lines
    return found


def _lines(pack: Path) -> Iterator[Requirement]:
    texts: list[str] = []
    if (plain := pack / "requirements.txt").is_file():
        texts += plain.read_text(errors="replace").splitlines()
    elif (project := pack / "pyproject.toml").is_file():
        try:
            texts += tomllib.loads(project.read_text(errors="replace")).get("project", {}).get("dependencies", [])
        except tomllib.TOMLDecodeError:
            return
    for text in texts:
        try:
            yield Requirement(text.partition(" #")[0].strip())
        except InvalidRequirement:
            continue


def write_lock(packs_dir: Path) -> Path:
    """Compile what all packs need into the folder's lock, and return it. Asks the package index.

    Errors: ConfigError without uv, or where the packs' needs exclude each other or the server's, in uv's words.
    """
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        raise ConfigError("the lock of node packs is compiled by uv, which is not installed: pip install uv")
    lock = packs_dir / LOCK
    installed = [
        f"{dist.name}=={dist.version.partition('+')[0]}"
        for dist in metadata.distributions()
        if dist.name and not canonicalize_name(dist.name).startswith(_PLATFORM)
    ]
    with tempfile.TemporaryDirectory() as work:
        wanted, constraints = Path(work, "requirements.in"), Path(work, "constraints.txt")
        lines = [str(line) for needs in requirements(packs_dir).values() for line in needs]
        wanted.write_text("\n".join(dict.fromkeys(lines)) + "\n")
        constraints.write_text("\n".join(sorted(set(installed))) + "\n")
        command = [uv, "pip", "compile", str(wanted), "--constraint", str(constraints), "--python", sys.executable]
        command += ["--no-annotate", "--no-header", "--quiet", "--output-file", str(lock)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"the needs of these node packs cannot be met together: {done.stderr.strip()}")
    return lock


def unmet(packs_dir: Path) -> list[str]:
    """Return what a folder's lock asks for and this installation has not, as "name==version (… installed)".

    [] without a lock. Errors: ConfigError for a lock that cannot be read.
    """
    try:
        text = (packs_dir / LOCK).read_text()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the lock {LOCK} of the folder of node packs cannot be read: {error}") from error
    missing = []
    for line in text.splitlines():
        stripped = line.partition("#")[0].strip().removesuffix("\\").strip()
        if not stripped or stripped.startswith("-"):
            continue
        try:
            wanted = Requirement(stripped)
        except InvalidRequirement as error:
            raise ConfigError(f"the lock {LOCK} of the folder of node packs has no requirement in {line!r}") from error
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            missing.append(f"{wanted.name}{wanted.specifier} (not installed)")
            continue
        if not wanted.specifier.contains(version.partition("+")[0], prereleases=True):
            missing.append(f"{wanted.name}{wanted.specifier} ({version} is installed)")
    return missing


def check_lock(packs_dir: Path) -> None:
    """Errors: ConfigError that names every package a folder's lock asks for and this installation has not."""
    if missing := unmet(packs_dir):
        raise ConfigError(
            f"the lock {LOCK} of the folder of node packs is not met: {', '.join(missing)}; "
            f"install it with: pip install -r {LOCK}"
        )
