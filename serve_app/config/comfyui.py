"""The key `comfyui` of a pool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import Field

from serve_app.config.section import Endpoint, Seconds, Section

OWN_ARGUMENTS = frozenset(
    {"--listen", "--port", "--input-directory", "--output-directory", "--temp-directory", "--user-directory"}
    | {"--base-directory", "--database-url", "--max-upload-size", "--disable-auto-launch", "--auto-launch"}
    | {"--tls-keyfile", "--tls-certfile", "--multi-user", "--quick-test-for-ci"}
)
"""Arguments of ComfyUI's main.py that a replica gives itself, or that would keep it from reaching its process."""


def _free_arguments(arguments: tuple[str, ...]) -> tuple[str, ...]:
    if taken := sorted({a for a in arguments if a.partition("=")[0] in OWN_ARGUMENTS}):
        raise ValueError(f"{', '.join(taken)} must be left out: each replica sets ports and folders of its own")
    return arguments


def _without_slash(url: str) -> str:
    return url.rstrip("/")


class ComfyUIConfig(Section):
    """A ComfyUI that runs a pool's jobs: an installation, of which every replica starts a process, or a running one."""

    directory: Path | None = None
    """The installation, with main.py and custom_nodes; nothing in it is changed."""
    python: Path | None = None
    """Its Python. None takes venv/bin/python or .venv/bin/python of the directory."""
    arguments: Annotated[tuple[str, ...], pydantic.AfterValidator(_free_arguments)] = ()
    """More arguments of main.py, such as --fast or --reserve-vram."""
    url: Annotated[Endpoint, pydantic.AfterValidator(_without_slash)] | None = None
    """A ComfyUI that runs already; files go to it and come from it over HTTP. Nobody else may queue there."""
    scratch_dir: Path | None = None
    """Where a replica makes the folders of its process, gone with it; None is the system's temporary directory."""
    start_s: Seconds = 600.0
    """How long a process may take until it answers; importing packs counts."""
    routes: bool = True
    """Whether a replica answers for HTTP paths that this server has no route for, as its packs' pages need.

    Any client may then ask for them: leave it off where a pack's routes install things.
    """
    keep_bytes: Annotated[int, Field(ge=0)] = 4 * 1024**3
    """Files that its process has made and that may stay with it, for its own cache to show again."""

    @pydantic.model_validator(mode="after")
    def _is_one_of_two(self) -> ComfyUIConfig:
        if (self.directory is None) == (self.url is None):
            raise ValueError("comfyui must have either directory or url")
        if self.url is not None and (self.python is not None or self.arguments):
            raise ValueError("python and arguments go with directory; a ComfyUI with a url runs already")
        return self

    def absolute(self) -> ComfyUIConfig:
        """Return it with every path absolute; a link stays one, for a virtual environment's Python is found by it."""
        paths = {"directory": self.directory, "python": self.python, "scratch_dir": self.scratch_dir}
        update = {name: path.expanduser().absolute() for name, path in paths.items() if path is not None}
        return self.model_copy(update=update)
