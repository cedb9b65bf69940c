"""Pools that are the stand-in, and graphs for them; the ComfyUI that tests of the real one are told."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from serve_app.config.comfyui import ComfyUIConfig
from serve_app.config.pool import PoolConfig

STANDIN = Path(__file__).parent / "standin"
HOME = os.environ.get("COMFYUI_HOME")
PYTHON = os.environ.get("COMFYUI_PYTHON") or f"{HOME}/venv/bin/python"
ARGUMENTS = tuple(shlex.split(os.environ.get("COMFYUI_ARGUMENTS", "--cpu")))


def standin(name: str = "comfyui", *arguments: str, directory: Path = STANDIN, **settings: Any) -> PoolConfig:
    """Return a pool whose replicas are the stand-in."""
    comfyui = ComfyUIConfig(directory=directory, python=Path(sys.executable), arguments=arguments)
    return PoolConfig(name=name, comfyui=comfyui, **settings)


def graph(seed: int = 1, **between: dict[str, Any]) -> dict[str, Any]:
    """Return a graph that saves an image, given what is to be between: node id -> its inputs, by class."""
    nodes: dict[str, Any] = {"1": {"class_type": "StandInDraw", "inputs": {"seed": seed}}}
    last = "1"
    for number, (class_type, inputs) in enumerate(between.items(), start=2):
        nodes[str(number)] = {"class_type": class_type, "inputs": {**inputs, "image": [last, 0]}}
        last = str(number)
    nodes["save"] = {"class_type": "SaveImage", "inputs": {"images": [last, 0], "filename_prefix": "pool"}}
    return nodes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def started(root: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a stand-in that is nobody's replica, in folders under `root`, as an operator would."""
    command = [sys.executable, "main.py", "--port", str(port), "--listen", "127.0.0.1"]
    for name in ("input", "output", "user"):
        (root / name).mkdir(parents=True, exist_ok=True)
        command += [f"--{name}-directory", str(root / name)]
    process = await asyncio.create_subprocess_exec(
        *command, "--temp-directory", str(root), cwd=STANDIN, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
