"""`serve-app demo`: start a server, run the contract's own example workflow on it, say where the image is, stop it."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from serve_app.cli.server import Server
from serve_app.cli.submit import submit
from serve_app.errors import ServeAppError, UnreachableError

MODELS = Path("models")
OUTPUT = Path("output")
START_S = 120.0


def demo() -> int:
    """Run the demonstration in the current directory. Returns the exit status."""
    body = _example()
    _provide_checkpoint(body)
    port = _free_port()
    log = Path("demo.log")
    print(f"starting a server on port {port}; its log is {log.absolute()}")
    with _running(port, log), Server(f"http://127.0.0.1:{port}", START_S) as server:
        status = submit(server, body, OUTPUT)
    if status == 0:
        print("that is the image above. To keep a server: serve-app up; to use it: serve-app submit workflow.json")
    return status


def _example() -> dict[str, Any]:
    """Return the contract's example submission."""
    text = resources.files("serve_app.api.contract").joinpath("openapi.json").read_text()
    content = json.loads(text)["paths"]["/prompt"]["post"]["requestBody"]["content"]["application/json"]
    body: dict[str, Any] = content["examples"]["simple_txt2img"]["value"]
    return body


def _provide_checkpoint(body: dict[str, Any]) -> None:
    """Write the sample checkpoint where the example expects one, unless there is one."""
    [name] = {n["inputs"]["ckpt_name"] for n in body["prompt"].values() if "ckpt_name" in n["inputs"]}
    path = MODELS / "checkpoints" / name
    if not path.exists():
        from serve_app.models.sample import write_sample_checkpoint

        print(f"no {path} yet: writing a small untrained one, whose pictures are coloured noise")
        write_sample_checkpoint(path)


@contextlib.contextmanager
def _running(port: int, log: Path) -> Iterator[None]:
    """Run `serve-app up` meanwhile. Errors: UnreachableError with the end of its log if it cannot start."""
    command = [sys.executable, "-m", "serve_app.cli", "up", "--port", str(port)]
    directories = ["--models-dir", str(MODELS), "--output-dir", str(OUTPUT)]
    with log.open("w") as output:
        server = subprocess.Popen([*command, *directories], stdout=output, stderr=subprocess.STDOUT)
    try:
        yield
    except ServeAppError:
        if server.poll() is not None:
            raise UnreachableError(f"the server did not start:\n{log.read_text()[-2000:]}") from None
        raise
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
