"""Pools that are the stand-in, and graphs for them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from serve_app.config import ComfyUIConfig, PoolConfig

STANDIN = Path(__file__).parent / "standin"


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
