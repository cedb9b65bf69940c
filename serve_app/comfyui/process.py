"""One ComfyUI process: started with folders and a port of its own, supervised, and killed with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from serve_app import log
from serve_app.comfyui import guard
from serve_app.comfyui.models import LinkedModels, ModelMirror
from serve_app.errors import ComfyUIError, StoreError
from serve_app.store.files.store import AREAS, Area

_log = log.get("comfyui")

LAST_LINES = 20
"""How many lines of its log an error contains."""
KEPT_LINES = 200
LINE_CHARACTERS = 2000
MAX_UPLOAD_MB = 1_000_000
"""Its limit of one input file: clients are limited by the ingress."""

_HIDDEN = ("RAY_", "AWS_", "PG", "PYTHON", "OMP_", "MKL_", "VIRTUAL_ENV", "SERVE_APP_DATABASE")
"""Prefixes of environment variables that are removed: this server's secrets, and settings of its Python."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FAILED_PACK = re.compile(r"\(IMPORT FAILED\):\s*(\S.*)$")
_NO_MODULE = re.compile(r"(?:ModuleNotFound|Import)Error: No module named '([\w.]+)'$")
_TAKEN = re.compile(r"(?:address|port \d+ is) already in use|\[Errno 98\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Installation:
    """A ComfyUI on this host. python None: that of a virtual environment in the directory.

    models_dir: model files beside its own, and those that the files extra_model_paths name; mirror: those of a bucket.
    scratch_dir: where the folders of its processes are made.
    """

    directory: Path
    python: Path | None = None
    arguments: tuple[str, ...] = ()
    models_dir: Path | None = None
    extra_model_paths: tuple[Path, ...] = ()
    mirror: ModelMirror | None = None
    scratch_dir: Path | None = None

    def command(self) -> list[str]:
        """Return the command line to start it. Errors: ComfyUIError for a missing file."""
        if not (self.directory / "main.py").is_file():
            raise ComfyUIError(f"comfyui.directory {self.directory} has no main.py, so no ComfyUI is installed there")
        places = [self.directory / name / "bin" / "python" for name in ("venv", ".venv")]
        python = self.python or next((path for path in places if path.exists()), None)
        if python is None:
            looked = " nor ".join(map(str, places))
            raise ComfyUIError(f"comfyui.python is not given, and there is neither {looked}")
        if not os.access(python, os.X_OK) or python.is_dir():
            raise ComfyUIError(f"comfyui.python {python} is no program that can be run")
        return [str(python), "main.py"]


class Process:
    """A started process; await `ended` for its end."""

    def __init__(
        self,
        installation: Installation,
        folder: Path,
        port: int,
        process: asyncio.subprocess.Process,
        holding: int,
        models: LinkedModels | None,
    ) -> None:
        self._installation = installation
        self.folder = folder
        self.port = port
        self.models = models
        """Model files of a bucket, if there is one."""
        self._process = process
        self._holding: int | None = holding
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.failed_packs: list[str] = []
        """Names of node packs that it could not import."""
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, installation: Installation) -> Process:
        """Start a process.

        Errors: ComfyUIError for a missing file; OSError if no folder can be made; StoreError of the mirror.
        """
        command = installation.command()
        folder = Path(tempfile.mkdtemp(prefix="comfyui-", dir=installation.scratch_dir))
        for name in ("input", "output", "temp", "user", "tmp"):
            (folder / name).mkdir()
        try:
            linked = await asyncio.to_thread(_linked, installation.mirror, folder)
        except (OSError, StoreError):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        port = _free_port()
        command += ["--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
        command += ["--input-directory", str(folder / "input"), "--output-directory", str(folder / "output")]
        # It makes a folder of the name "temp" in this one.
        command += ["--temp-directory", str(folder), "--user-directory", str(folder / "user")]
        command += ["--database-url", f"sqlite:///{folder}/user/comfyui.db", "--max-upload-size", str(MAX_UPLOAD_MB)]
        models = model_folders(linked.folder if linked else installation.models_dir, folder)
        for paths in (*([] if models is None else [models]), *installation.extra_model_paths):
            command += ["--extra-model-paths-config", str(paths)]
        held, holding = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-S", "-E", guard.__file__, str(held), str(folder)),
                *command,
                *installation.arguments,
                pass_fds=[held],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=installation.directory,
                env=environment_of(os.environ, folder / "tmp"),
                start_new_session=True,
            )
        except OSError:
            os.close(holding)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(held)
        return cls(installation, folder, port, process, holding, linked)

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def areas(self) -> Mapping[Area, Path]:
        """The folders of its files."""
        return {area: self.folder / area for area in AREAS}

    @property
    def pid(self) -> int:
        """The pid of its guard, which ends with the process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def ended(self) -> str:
        """Wait for its end; return its exit status in words, with the end of its log."""
        status = await self._process.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reading), 2.0)
        log_end = self.log_end()
        signal = -status if status < 0 else 256 - status if status > 128 else 0
        how = f"was ended by signal {signal}" if signal else f"ended with status {status}"
        reason = "" if signal else self._reason(log_end)
        return f"the ComfyUI of {self._installation.directory} {how}{reason}; its log ends:\n{log_end}"

    def log_end(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(list(self._lines)[-LAST_LINES:])

    async def end(self) -> None:
        """Kill it and its descendants, and remove its folders."""
        if self._holding is not None:
            os.close(self._holding)
            self._holding = None
        await self._process.wait()
        self._reading.cancel()
        # In case the guard itself was killed.
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    def _reason(self, log_end: str) -> str:
        # The fatal error is the last line; earlier ones are of packs or optional parts.
        if missing := _NO_MODULE.match(log_end.rpartition("\n")[2]):
            return f": its Python {self._installation.command()[0]} has no module {missing[1]}"
        return f": port {self.port} is taken" if _TAKEN.search(log_end) else ""

    async def _read(self) -> None:
        assert self._process.stdout is not None
        left = b""
        while chunk := await self._process.stdout.read(1 << 16):
            # Bars of progress end with a carriage return.
            *lines, left = (left + chunk).replace(b"\r", b"\n").split(b"\n")
            left = left[-LINE_CHARACTERS:]
            for line in lines:
                self._note(line)
        self._note(left)

    def _note(self, line: bytes) -> None:
        text = _COLOURS.sub("", line[:LINE_CHARACTERS].decode(errors="replace")).rstrip()
        if not text:
            return
        self._lines.append(text)
        _log.info("%s", text)
        if failed := _FAILED_PACK.search(text):
            self.failed_packs.append(Path(failed[1]).name)


def _free_port() -> int:
    """Return a free port; if another process takes it first, ours exits and is started again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment_of(own: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """Return the environment of a process: ours without our secrets and variables for our Python."""
    kept = {name: value for name, value in own.items() if not name.startswith(_HIDDEN)}
    return {**kept, "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)}


def _linked(mirror: ModelMirror | None, folder: Path) -> LinkedModels | None:
    """Make the links to the model files of a bucket."""
    if mirror is None:
        return None
    linked = LinkedModels(mirror, folder / "models")
    linked.refresh()
    return linked


def model_folders(models_dir: Path | None, folder: Path) -> Path | None:
    """Write ComfyUI's extra_model_paths file for our model files; None without any."""
    if models_dir is None or not models_dir.is_dir():
        return None
    names = sorted(path.name for path in models_dir.iterdir() if path.is_dir())
    if not names:
        return None
    file = folder / "models.yaml"
    file.write_text(yaml.safe_dump({"serve_app": {"base_path": str(models_dir), **{n: n for n in names}}}))
    return file
