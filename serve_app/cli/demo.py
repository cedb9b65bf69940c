"""`serve-app demo`: start a server, render an image with the included checkpoint, print its path, stop the server."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serve_app.cli.lines import print_line
from serve_app.cli.server import ServerClient
from serve_app.cli.submit import submit_job
from serve_app.errors import ServeAppError, ServerUnreachableError
from serve_app.models.shipped import CHECKPOINT, provide

MODELS = Path("models")
OUTPUT = Path("output")
START_S = 120.0

WISH = "a large red circle on the left, blue background"
WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": WISH, "clip": ["1", 1]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 96, "height": 96, "batch_size": 1}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
            "seed": 1,
            "steps": 20,
            "cfg": 5.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {
        "class_type": "ImageScale",
        "inputs": {"image": ["6", 0], "upscale_method": "bicubic", "width": 384, "height": 384, "crop": "disabled"},
    },
    "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "demo"}},
}
"""What the demonstration submits: the checkpoint draws cards of 96 × 96 pixels, which are shown four times as large."""


def run_demo() -> int:
    """Run the demonstration in the current directory. Returns the exit status."""
    provide(MODELS)
    port = _free_port()
    log = Path("demo.log")
    print_line(f"starting a server on port {port}; its log is {log.absolute()}")
    with _running(port, log), ServerClient(f"http://127.0.0.1:{port}", START_S) as server:
        status = submit_job(server, {"prompt": WORKFLOW}, OUTPUT)
    if status == 0:
        print_line(
            f"that file shows: {WISH}. To keep a server: serve-app up; to use it: serve-app submit workflow.json"
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
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
