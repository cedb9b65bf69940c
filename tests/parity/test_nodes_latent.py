"""The nodes for latents, masks and compositing against ComfyUI's own, on random inputs of odd shapes.

Figures: each case of nodes_latent.json was run by calling the node's function in ComfyUI (CPU, float32, torch 2.13,
kornia 0.9 for Morphology). Inputs are numpy's `default_rng(seed)`: standard_normal or random, in float32. Tensors of
the result are in nodes_latent.npz as case.slot.member, its lists of numbers beside the case. Nodes with a VAE had one
that crops to the middle and takes means of 8×8 pixels, as `Means` does; or one of videos that takes means of four
images as well, as `MeansOfVideos`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.nodes.registry import BUILTIN
from serve_app.values import ClipVisionOutput
from tests.parity.figures import GOLDEN

CASES: list[dict[str, Any]] = json.loads((GOLDEN / "nodes_latent.json").read_text())
TENSORS = np.load(GOLDEN / "nodes_latent.npz")


class Means:
    """A VAE that takes the means of 8×8 pixels."""

    latent_channels, factor, frames = 4, 8, 0

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[1:3]
        top, left = height % 8 // 2, width % 8 // 2
        middle = images[:, top : top + height // 8 * 8, left : left + width // 8 * 8].movedim(-1, 1)
        means = torch.nn.functional.avg_pool2d(middle, 8)
        return torch.cat([means, means[:, :1]], dim=1)


@dataclass(frozen=True)
class MeansOfVideos:
    """A VAE of videos that takes the means of factor×factor pixels, of the first image and of every four after it."""

    latent_channels: int
    factor: int
    frames = 4

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        means = torch.nn.functional.avg_pool2d(images[..., :3].movedim(-1, 1), self.factor)
        parts = [means[:1], *(part for part in means[1:].split(4) if len(part) == 4)]
        colours = torch.stack([part.mean(dim=0) for part in parts], dim=1)
        return colours[None, torch.arange(self.latent_channels) % 3]


class Runtime:
    """A runtime of VAEs that are passed as themselves."""

    async def family(self, vae: Any) -> Any:
        return vae

    async def encode(self, vae: Any, images: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = vae.encode(images)
        return latents


def built(value: Any) -> Any:
    """Return the input that a case describes."""
    match value:
        case {"normal": shape, "seed": seed}:
            return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
        case {"uniform": shape, "seed": seed}:
            return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))
        case {"latent": members}:
            return {key: built(member) for key, member in members.items()}
        case {"list": values}:
            return [built(item) for item in values]
        case {"operation": node, "inputs": inputs}:
            return run(node, inputs)[0]
        case {"vae": "videos", "channels": channels, "factor": factor}:
            return MeansOfVideos(channels, factor)
        case {"seen": shape, "seed": seed}:
            states = built({"normal": shape, "seed": seed})
            return ClipVisionOutput(states, states, states[:, 0])
        case {"conditioning": cond, "pooled": pooled}:
            return [(built(cond), {"pooled_output": built(pooled)})]
    return value


def run(node: str, inputs: dict[str, Any]) -> Any:
    """Return what the node's function makes, having seen that it leaves its inputs as they were."""
    arguments = {name: built(value) for name, value in inputs.items()}
    function = getattr(BUILTIN[node](), BUILTIN[node].FUNCTION)  # type: ignore[attr-defined]
    with torch.inference_mode():
        if inspect.iscoroutinefunction(function):
            out = asyncio.run(function(**{"vae": Means(), **arguments}, runtime=Runtime()))
        else:
            out = function(**arguments)
    for name, value in inputs.items():
        if "operation" not in inputs:
            assert same(leaves(arguments[name]), leaves(built(value))), name
    return out


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every tensor and every list of numbers in a value, by where it is."""
    match value:
        case dict():
            for key, member in value.items():
                yield from leaves(member, f"{name}.{key}")
        case list() | tuple() if not all(isinstance(item, int) for item in value):
            for index, item in enumerate(value):
                yield from leaves(item, f"{name}.{index}")
        case ClipVisionOutput():
            yield f"{name}.penultimate_hidden_states", value.penultimate_hidden_states
        case float():
            yield name, torch.tensor(value, dtype=torch.float64)
        case _:
            yield name, value


def same(a: Iterator[tuple[str, Any]], b: Iterator[tuple[str, Any]]) -> bool:
    first, second = dict(a), dict(b)
    tensors = {name for name, value in first.items() if isinstance(value, torch.Tensor)}
    plain = {name: value for name, value in first.items() if name not in tensors}
    return (
        first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in tensors)
        and plain == {name: value for name, value in second.items() if name not in tensors}
    )


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{CASES[i]['node']}-{i}")
def test_a_node_gives_comfyuis_values(index: int) -> None:
    case = CASES[index]
    ours = dict(leaves(run(case["node"], case["inputs"]), str(index)))
    tensors = {name for name in TENSORS.files if name.split(".")[0] == str(index)}
    lists = case.get("lists", {})
    assert ours.keys() == tensors | lists.keys()
    for name in tensors:
        theirs = torch.from_numpy(TENSORS[name])
        torch.testing.assert_close(ours[name], theirs, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert {name: ours[name] for name in lists} == lists
