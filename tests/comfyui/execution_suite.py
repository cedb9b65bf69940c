"""ComfyUI's own execution suite over this server: `python tests/comfyui/execution_suite.py [--pool | --direct]`.

COMFYUI_HOME names the installation and COMFYUI_PYTHON its Python, which needs pytest and websocket-client. Further
arguments are pytest's. The suite's pack runs in pools of this server's own; with --pool in one that is that ComfyUI,
and with --direct the suite runs over the ComfyUI itself, for comparison.

The suite starts its servers as `python main.py ARGUMENTS`. This file, also its pytest plugin, starts `serve-app up` in
their place and waits until that answers. Tests of previews ask a server that is there: it is started too, with tiny
files under the names that they give. The standard library only: the suite runs in ComfyUI's Python.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("input", "output", "temp", "user", "models")
START_S = 300.0
SERVER = "EXECUTION_SUITE_SERVER"
"""The environment variable with the command, as JSON, that takes the arguments of main.py."""
WAYS = ("--own", "--pool", "--direct")
OWN_POOL = {"name": "own", "num_cpus": 1}
A_CLASS = "StubImage"
"""A class of the suite's own pack: once it is there, so is all that tests need."""


def main(arguments: Sequence[str]) -> int:
    """Run the suite; return pytest's exit status."""
    home, python = os.environ["COMFYUI_HOME"], os.environ.get("COMFYUI_PYTHON", sys.executable)
    way = next((argument for argument in arguments if argument in WAYS), "--own")
    command = [python, "main.py"] if way == "--direct" else [sys.executable, __file__, "--serve", way]
    with tempfile.TemporaryDirectory(prefix="suite-") as root:
        port, previews = free_port(), free_port()
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "TMPDIR": root,
            SERVER: json.dumps(command),
            "COMFYUI_SERVER": f"http://127.0.0.1:{previews}",
        }
        suite = [python, "-m", "pytest", "-p", Path(__file__).stem, "-p", "no:cacheprovider", "-o", "addopts="]
        suite += ["--port", str(port), "--output_dir", f"{root}/direct"]
        given = [argument for argument in arguments if argument not in WAYS]
        files = [] if any(argument.startswith("tests/") for argument in given) else ["tests/execution"]
        with shown(previews, environment, Path(home)) if way == "--own" else contextlib.nullcontext():
            return subprocess.run([*suite, *files, *given], cwd=home, env=environment).returncode


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def shown(port: int, environment: Mapping[str, str], home: Path) -> Iterator[None]:
    """Have a server for the tests of previews, which look for it before they begin."""
    arguments = ["--listen", "127.0.0.1", "--port", str(port), "--output-directory", tempfile.mkdtemp()]
    arguments += ["--extra-model-paths-config", "tests/execution/extra_model_paths.yaml"]
    command = [*json.loads(environment[SERVER]), *arguments]
    own = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(command, cwd=home, env=own)
    try:
        wait_for(server, f"http://127.0.0.1:{port}/object_info/{A_CLASS}")
        yield
    finally:
        server.terminate()
        server.wait()


def serve(arguments: Sequence[str]) -> None:
    """Become `serve-app up`; arguments: the way, and main.py's."""
    way, *arguments = arguments
    given = dict(itertools.pairwise([*arguments, ""]))
    root = Path(tempfile.mkdtemp())
    for name in FOLDERS:
        (root / name).mkdir()
    own = way == "--own"
    settings = {"pools": [OWN_POOL] if own else [comfyui_pool(arguments)]}
    application = {"name": "serve-app", "import_path": "serve_app.deployments.build:build", "args": settings}
    (root / "config.yaml").write_text(json.dumps({"applications": [application]}))
    command = [sys.executable, "-m", "serve_app.cli", "up", "--config", str(root / "config.yaml")]
    command += ["--root-dialect", "comfy", "--host", given["--listen"], "--port", given["--port"]]
    for name in FOLDERS:
        command += [f"--{name}-dir", str(root / name)]
    command += ["--database-url", f"sqlite:///{root}/jobs.sqlite"]
    if own:
        packs = Path(given["--extra-model-paths-config"]).absolute().parent / "testing_nodes"
        command += ["--custom-nodes-dir", str(packs), "--cache", cache(given)]
        sys.path.insert(0, str(REPOSITORY))
        tiny_files(root / "models", Path("tests/inference/graphs/default_graph_sdxl1_0.json").absolute())
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    os.chdir(root)
    os.execv(sys.executable, command)


def comfyui_pool(arguments: Sequence[str]) -> dict[str, Any]:
    """Return a pool that is the ComfyUI, with the arguments that are not the server's."""
    ours = {"--listen", "--port", "--output-directory"}
    passed = [a for before, a in zip(["", *arguments], arguments, strict=False) if not {before, a} & ours]
    comfyui = {
        "directory": os.environ["COMFYUI_HOME"],
        "python": os.environ.get("COMFYUI_PYTHON", sys.executable),
        "arguments": passed,
    }
    return {"name": "comfyui", "comfyui": comfyui, "num_cpus": 0}


def cache(given: Mapping[str, str]) -> str:
    """Return what `serve-app up --cache` is told for main.py's arguments."""
    if "--cache-none" in given:
        return "none"
    return f"lru:{given['--cache-lru']}" if "--cache-lru" in given else "classic"


def tiny_files(models: Path, graph: Path) -> None:
    """Write small files under the names that a workflow gives its models."""
    from serve_app.nodes.registry import specs
    from tests.templates import tiny

    tiny.write(models, json.loads(graph.read_text()), specs())


def wait_for(server: subprocess.Popen[Any], url: str) -> None:
    """Return once a server knows a class. Errors: RuntimeError where it does not come to."""
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url) as answer:
            if A_CLASS in json.load(answer):
                return
        time.sleep(0.5)
    server.terminate()
    raise RuntimeError(f"what is started as {server.args!r} does not answer")


class Popen(subprocess.Popen[Any]):
    """As before, but for `python main.py`: another server takes its arguments, and answers once this is made."""

    def __init__(self, args: Any, **settings: Any) -> None:
        self._is_server = isinstance(args, list) and args[:2] == ["python", "main.py"]
        if self._is_server:
            settings["env"] = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            super().__init__([*json.loads(os.environ[SERVER]), *args[2:]], **settings)
            given = dict(itertools.pairwise(args))
            wait_for(self, f"http://{given['--listen']}:{given['--port']}/object_info/{A_CLASS}")
        else:
            super().__init__(args, **settings)

    def kill(self) -> None:
        """End a server with all that it has started, so that its port is free."""
        if not self._is_server:
            return super().kill()
        self.terminate()
        self.wait()


def pytest_configure() -> None:
    """Let the suite start our servers."""
    subprocess.Popen = Popen  # type: ignore[assignment, misc]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
    raise SystemExit(main(sys.argv[1:]))
