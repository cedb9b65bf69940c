"""ComfyUI's own execution suite over a pool that is that ComfyUI: `python tests/comfyui/execution_suite.py [--direct]`.

COMFYUI_HOME names the installation and COMFYUI_PYTHON its Python, which needs pytest and websocket-client. Further
arguments are pytest's. With --direct the suite runs over the ComfyUI itself, for comparison.

The suite starts its servers as `python main.py ARGUMENTS`. This file, also its pytest plugin, starts `serve-app up` in
their place, with one pool that has these arguments, and waits until that answers. The standard library only: the suite
runs in ComfyUI's Python.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("input", "output", "temp", "user", "models")
START_S = 300.0
SERVER = "EXECUTION_SUITE_SERVER"
"""The environment variable with the command, as JSON, that takes the arguments of main.py."""
A_CLASS = "StubImage"
"""A class of the suite's own pack: once it is there, so is all that tests need."""


def main(arguments: Sequence[str]) -> int:
    """Run the suite; return pytest's exit status."""
    home, python = os.environ["COMFYUI_HOME"], os.environ.get("COMFYUI_PYTHON", sys.executable)
    direct = "--direct" in arguments
    command = [python, "main.py"] if direct else [sys.executable, __file__, "--serve"]
    with tempfile.TemporaryDirectory(prefix="suite-") as root, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "TMPDIR": root,
            SERVER: json.dumps(command),
        }
        suite = [python, "-m", "pytest", "-p", Path(__file__).stem, "-p", "no:cacheprovider", "-o", "addopts="]
        suite += ["--port", str(port), "--output_dir", f"{root}/direct"]
        given = [argument for argument in arguments if argument != "--direct"]
        files = [] if any(argument.startswith("tests/") for argument in given) else ["tests/execution"]
        return subprocess.run([*suite, *files, *given], cwd=home, env=environment).returncode


def serve(arguments: Sequence[str]) -> None:
    """Become `serve-app up` with one pool; arguments: of main.py."""
    given = dict(itertools.pairwise(arguments))
    ours = {"--listen", "--port", "--output-directory"}
    passed = [a for before, a in zip(["", *arguments], arguments, strict=False) if not {before, a} & ours]
    comfyui = {
        "directory": os.environ["COMFYUI_HOME"],
        "python": os.environ.get("COMFYUI_PYTHON", sys.executable),
        "arguments": passed,
    }
    root = Path(tempfile.mkdtemp())
    settings = {"pools": [{"name": "comfyui", "comfyui": comfyui, "num_cpus": 0}]}
    application = {"name": "serve-app", "import_path": "serve_app.deployments.build:build", "args": settings}
    (root / "config.yaml").write_text(json.dumps({"applications": [application]}))
    command = [sys.executable, "-m", "serve_app.cli", "up", "--config", str(root / "config.yaml")]
    command += ["--root-dialect", "comfy", "--host", given["--listen"], "--port", given["--port"]]
    for name in FOLDERS:
        (root / name).mkdir()
        command += [f"--{name}-dir", str(root / name)]
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    os.chdir(root)
    os.execv(sys.executable, [*command, "--database-url", f"sqlite:///{root}/jobs.sqlite"])


class Popen(subprocess.Popen[Any]):
    """As before, but for `python main.py`: another server takes its arguments, and answers once this is made."""

    def __init__(self, args: Any, **settings: Any) -> None:
        self._is_server = isinstance(args, list) and args[:2] == ["python", "main.py"]
        if self._is_server:
            settings["env"] = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            super().__init__([*json.loads(os.environ[SERVER]), *args[2:]], **settings)
            given = dict(itertools.pairwise(args))
            self._wait_for(f"http://{given['--listen']}:{given['--port']}/object_info/{A_CLASS}")
        else:
            super().__init__(args, **settings)

    def kill(self) -> None:
        """End a server with all that it has started, so that its port is free."""
        if not self._is_server:
            return super().kill()
        self.terminate()
        self.wait()

    def _wait_for(self, url: str) -> None:
        deadline = time.monotonic() + START_S
        while self.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url) as answer:
                if A_CLASS in json.load(answer):
                    return
            time.sleep(0.5)
        self.kill()
        raise RuntimeError(f"what is started as {self.args!r} does not answer")


def pytest_configure() -> None:
    """Let the suite start our servers."""
    subprocess.Popen = Popen  # type: ignore[assignment, misc]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
    raise SystemExit(main(sys.argv[1:]))
