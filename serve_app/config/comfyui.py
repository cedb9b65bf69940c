"""The section `comfyui` of a pool."""

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
"""Arguments of ComfyUI's main.py that a replica sets itself, or that would cut it off from its process."""


def _free_arguments(arguments: tuple[str, ...]) -> tuple[str, ...]:
    if taken := sorted({a for a in arguments if a.partition("=")[0] in OWN_ARGUMENTS}):
        raise ValueError(f"{', '.join(taken)} must be left out: each replica sets ports and folders of its own")
    return arguments


def _without_slash(url: str) -> str:
    return url.rstrip("/")


class ComfyUIConfig(Section):
    """A ComfyUI that runs a pool's jobs: an installation, which every replica starts as a process, or a running one."""

    directory: Path | None = None
    """The installation, with main.py and custom_nodes; nothing in it is changed."""
    python: Path | None = None
    """Its Python. None takes venv/bin/python or .venv/bin/python of the directory."""
    arguments: Annotated[tuple[str, ...], pydantic.AfterValidator(_free_arguments)] = ()
    """More arguments of main.py, such as --fast or --reserve-vram."""
    url: Annotated[Endpoint, pydantic.AfterValidator(_without_slash)] | None = None
    """The URL of a running ComfyUI; files are exchanged over HTTP. Nobody else may use its queue."""
    scratch_dir: Path | None = None
    """Where a replica makes the temporary folders of its process; None is the system's temporary directory."""
    start_s: Seconds = 600.0
    """How long a process may take until it answers; importing packs counts."""
    routes: bool = True
    """Whether HTTP paths without a route on this server are relayed to a replica, as its packs' pages need. Any client
    may then use them: turn it off where a pack's routes install things.
    """
    keep_bytes: Annotated[int, Field(ge=0)] = 4 * 1024**3
    """Limit of the output files that stay with its process, so that its own cache can return them again."""

    @pydantic.model_validator(mode="after")
    def _is_one_of_two(self) -> ComfyUIConfig:
        if (self.directory is None) == (self.url is None):
            raise ValueError("comfyui must have either directory or url")
        if self.url is not None and (self.python is not None or self.arguments):
            raise ValueError("python and arguments go with directory; a ComfyUI with a url runs already")
        return self

    def absolute(self) -> ComfyUIConfig:
        """Return it with absolute paths; links are not resolved, as a virtual environment's Python is found by its
        link.
        """
        paths = {"directory": self.directory, "python": self.python, "scratch_dir": self.scratch_dir}
        update = {name: path.expanduser().absolute() for name, path in paths.items() if path is not None}
        return self.model_copy(update=update)
