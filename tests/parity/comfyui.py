"""A ComfyUI beside us, asked what it makes of something.

It runs by its own interpreter, in its directory, and knows nothing of ours: `comfyui_side` runs workflows,
`comfyui_nodes` single nodes, `comfyui_samplers` samplers without a network, `comfyui_texts` text encoders.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.cases import Case

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class ComfyUI:
    """A ComfyUI's directory and the interpreter that it runs with."""

    directory: Path
    python: Path

    def run(self, script: str, asked: Any, *more: Path) -> dict[str, np.ndarray]:
        """Return the arrays that one of its side's scripts makes of what it is asked."""
        with tempfile.TemporaryDirectory() as directory:
            question, answer = Path(directory) / "asked.json", Path(directory) / "answered.npz"
            question.write_text(json.dumps(asked))
            command = [self.python, HERE / script, question, *more, answer]
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            subprocess.run(command, cwd=self.directory, env=environment, check=True)
            return dict(np.load(answer))

    def workflows(self, cases: Mapping[str, Case], models: Path) -> dict[str, np.ndarray]:
        """Return what it makes of each case that it can run. models: a directory of model files."""
        return self.run("comfyui_side.py", {name: case.as_json() for name, case in cases.items()}, models)

    def nodes(self, cases: Sequence[tuple[str, dict[str, Any]]]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the leaves of what its nodes make, as case.slot.member, and what all of them declare."""
        arrays = self.run("comfyui_nodes.py", cases)
        declared: dict[str, Any] = json.loads(str(arrays.pop("object_info")))
        return arrays, declared

    def samplers(self, cases: Sequence[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
        """Return what its samplers make of each case on the analytic denoiser."""
        arrays = self.run("comfyui_samplers.py", cases)
        parts = ("sigmas", "out", "denoised", "evaluations")
        return [{part: arrays[f"{i}|{part}"] for part in parts} for i in range(len(cases))]

    def texts(self, cases: Mapping[str, Any], models: Path) -> dict[str, np.ndarray]:
        """Return what its text encoders make of each case. models: a directory with their files and embeddings."""
        return self.run("comfyui_texts.py", cases, models)
