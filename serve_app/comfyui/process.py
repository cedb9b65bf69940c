"""One ComfyUI process: started in folders and on a port of its own, watched, and ended with whoever started it."""

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
from serve_app.comfyui.models import LinkedModels, Mirror
from serve_app.errors import ComfyUIError, StoreError
from serve_app.store.files.store import AREAS, Area

_log = log.get("comfyui")

LAST_LINES = 20
"""How much of its log is told of a process that has ended or cannot start."""
KEPT_LINES = 200
LINE_CHARACTERS = 2000
MAX_UPLOAD_MB = 1_000_000
"""What it takes as one input file: the limit that clients meet is the ingress's."""

_HIDDEN = ("RAY_", "AWS_", "PG", "PYTHON", "OMP_", "MKL_", "VIRTUAL_ENV", "SERVE_APP_DATABASE")
"""Beginnings of environment variables that are this server's: its secrets, and what would change another Python."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FAILED_PACK = re.compile(r"\(IMPORT FAILED\):\s*(\S.*)$")
_NO_MODULE = re.compile(r"(?:ModuleNotFound|Import)Error: No module named '([\w.]+)'$")
_TAKEN = re.compile(r"(?:address|port \d+ is) already in use|\[Errno 98\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Installation:
    """A ComfyUI on this host. python None: that of a virtual environment in the directory.

    models_dir: model files beside its own; mirror: those of a bucket. scratch_dir: where the folders of its processes
    are made.
    """

    directory: Path
    python: Path | None = None
    arguments: tuple[str, ...] = ()
    models_dir: Path | None = None
    mirror: Mirror | None = None
    scratch_dir: Path | None = None

    def command(self) -> list[str]:
        """Return how it is started. Errors: ComfyUIError for what is not there."""
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
    """A process that has been started; `ended` once it is over."""

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

        Errors: ComfyUIError for what is not there; OSError where no folder can be made; StoreError of the mirror.
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
        if (models := _model_folders(linked.folder if linked else installation.models_dir, folder)) is not None:
            command += ["--extra-model-paths-config", str(models)]
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
                env=_environment(os.environ, folder / "tmp"),
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
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def areas(self) -> Mapping[Area, Path]:
        """The folders of its files."""
        return {area: self.folder / area for area in AREAS}

    @property
    def pid(self) -> int:
        """The guard that holds it; its end is the process's."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def ended(self) -> str:
        """Wait until it has ended; return how, with the end of its log."""
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
        """End it and all that it has started, and remove its folders."""
        if self._holding is not None:
            os.close(self._holding)
            self._holding = None
        await self._process.wait()
        self._reading.cancel()
        # Also where the guard itself was killed and could not.
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    def _reason(self, log_end: str) -> str:
        # The error that ended it is its last line; others before are of packs, or of what it can do without.
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
    """Return a port that is free now; should another process take it first, ours ends and is started anew."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(own: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """Return the environment of a process: ours without our secrets and what is meant for our Python."""
    kept = {name: value for name, value in own.items() if not name.startswith(_HIDDEN)}
    return {**kept, "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)}


def _linked(mirror: Mirror | None, folder: Path) -> LinkedModels | None:
    """Make the links to the model files of a bucket."""
    if mirror is None:
        return None
    linked = LinkedModels(mirror, folder / "models")
    linked.refresh()
    return linked


def _model_folders(models_dir: Path | None, folder: Path) -> Path | None:
    """Write where our model files are, as ComfyUI reads it; None where there are none."""
    if models_dir is None or not models_dir.is_dir():
        return None
    names = sorted(path.name for path in models_dir.iterdir() if path.is_dir())
    if not names:
        return None
    file = folder / "models.yaml"
    file.write_text(yaml.safe_dump({"serve_app": {"base_path": str(models_dir), **{n: n for n in names}}}))
    return file
