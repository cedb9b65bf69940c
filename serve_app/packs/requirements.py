"""The lock file of a folder of node packs: their Python packages, resolved once, and checked at each start.

A pack has its requirements in requirements.txt or pyproject.toml. All are resolved together, constrained by the
versions of this installation, so that no pack changes packages of the server or of another pack.
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
    """Return each pack's requirements, by its name. Lines without a package, such as options, are left out."""
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
    """Resolve all packs' requirements to the folder's lock file, and return it. Uses the package index.

    Errors: ConfigError without uv, or for conflicting requirements, with uv's message.
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
    """Return packages of a folder's lock that this installation lacks, as "name==version (… installed)".

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
    """Errors: ConfigError that names every package of a folder's lock that this installation lacks."""
    if missing := unmet(packs_dir):
        raise ConfigError(
            f"the lock {LOCK} of the folder of node packs is not met: {', '.join(missing)}; "
            f"install it with: pip install -r {LOCK}"
        )
