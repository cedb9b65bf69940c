"""The workflows that are compared with ComfyUI's, by name: group|what makes it differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serve_app.sampling.samplers import SAMPLERS
from serve_app.sampling.sigmas import SCHEDULES
from tests.parity.workflow import EMPTY, LINKS, Nodes, models


@dataclass(frozen=True, slots=True)
class Case:
    """A workflow and what is compared of it: the first output of its target."""

    nodes: Nodes
    target: str = "k"

    def as_json(self) -> dict[str, Any]:
        """Return it for the other side."""
        nodes = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in self.nodes.items()}
        return {"nodes": nodes, "target": self.target, "slot": 0}


def sampled(sampler: str, schedule: str, seed: int, steps: int = 4, **changes: Any) -> tuple[str, dict[str, Any]]:
    """Return a KSampler of cfg 5 connected to the usual nodes."""
    settings = {
        "sampler_name": sampler,
        "scheduler": schedule,
        "seed": seed,
        "steps": steps,
        "cfg": 5.0,
        "denoise": 1.0,
    }
    return ("KSampler", {**LINKS, **settings, **changes})


MINI15 = {**models("mini15"), **EMPTY}

CASES: dict[str, Case] = {
    f"sampler|{sampler}|{schedule}": Case({**MINI15, "k": sampled(sampler, schedule, seed=100 + i)})
    for sampler in SAMPLERS
    for i, schedule in enumerate(SCHEDULES)
}
