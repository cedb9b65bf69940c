"""`serve-app demo`: start a server, render an image with the included checkpoint, print its path, stop the server."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from serve_app.cli import examples
from serve_app.cli.lines import print_line
from serve_app.cli.server import ServerClient
from serve_app.cli.submit import submit_job
from serve_app.errors import ServeAppError, ServerUnreachableError
from serve_app.models.shipped import provide

MODELS = Path("models")
OUTPUT = Path("output")
START_S = 120.0
STOP_S = 60.0
"""How long the server may take to stop, which gives its own parts 8 s."""


def run_demo() -> int:
    """Run the demonstration in the current directory. Returns the exit status."""
    graph = examples.read(examples.DEMO)
    provide(MODELS)
    port = _free_port()
    log = Path("demo.log")
    print_line(f"starting a server on port {port}; its log is {log.absolute()}")
    with _running(port, log), ServerClient(f"http://127.0.0.1:{port}", START_S) as server:
        status = submit_job(server, {"prompt": graph}, OUTPUT)
    if status == 0:
        print_line(
            f"that file shows: {examples.wish(graph)}. A server that stays: serve-app up; workflows: serve-app examples"
        )
    return status


@contextlib.contextmanager
def _running(port: int, log: Path) -> Iterator[None]:
    """Run `serve-app up` inside the context. Errors: UnreachableError with the end of its log if it cannot start."""
    command = [sys.executable, "-m", "serve_app.cli", "up", "--port", str(port)]
    directories = ["--models-dir", str(MODELS), "--output-dir", str(OUTPUT)]
    with log.open("w") as output:
        server = subprocess.Popen([*command, *directories], stdout=output, stderr=subprocess.STDOUT)
    try:
        yield
    except ServeAppError:
        if server.poll() is not None:
            raise ServerUnreachableError(f"the server did not start:\n{log.read_text()[-2000:]}") from None
        raise
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()  # what it has started notices, and ends


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
