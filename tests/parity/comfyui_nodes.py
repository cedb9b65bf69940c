"""What ComfyUI's nodes make of inputs, and what they declare: run by its own interpreter, in its directory.

    python comfyui_nodes.py CASES.json OUT.npz

A case is [class, inputs]; `built` says how inputs are described. Kept is every leaf of what a case makes, by its place
in the list and where it is in the value, as case.slot.member; and `object_info`, every class as clients are told of it.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CASES, OUT = sys.argv[1:3]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.clip_vision  # noqa: E402
import nodes  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402


class Means:
    """A VAE that crops to the middle and takes the means of 8×8 pixels."""

    latent_channels = 4

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[1:3]
        top, left = height % 8 // 2, width % 8 // 2
        middle = images[:, top : top + height // 8 * 8, left : left + width // 8 * 8].movedim(-1, 1)
        means = torch.nn.functional.avg_pool2d(middle, 8)
        return torch.cat([means, means[:, :1]], dim=1)

    def spacial_compression_encode(self) -> int:
        return 8


class MeansOfVideos:
    """A VAE of videos that takes the means of factor×factor pixels, of the first image and of every four after it."""

    def __init__(self, channels: int, factor: int) -> None:
        self.latent_channels, self.factor = channels, factor

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        means = torch.nn.functional.avg_pool2d(images[..., :3].movedim(-1, 1), self.factor)
        parts = [means[:1], *(part for part in means[1:].split(4) if len(part) == 4)]
        colours = torch.stack([part.mean(dim=0) for part in parts], dim=1)
        return colours[None, torch.arange(self.latent_channels) % 3]

    def spacial_compression_encode(self) -> int:
        return self.factor


def seen(states: torch.Tensor) -> Any:
    output = comfy.clip_vision.Output()
    output.penultimate_hidden_states = states
    return output


def built(value: Any) -> Any:
    match value:
        case {"normal": shape, "seed": seed}:
            return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
        case {"uniform": shape, "seed": seed}:
            return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))
        case {"values": values}:
            return torch.tensor(values)
        case {"latent": members}:
            return {key: built(member) for key, member in members.items()}
        case {"list": values}:
            return [built(item) for item in values]
        case {"operation": node, "inputs": inputs}:
            return run(node, inputs)[0]
        case {"vae": "videos", "channels": channels, "factor": factor}:
            return MeansOfVideos(channels, factor)
        case {"seen": shape, "seed": seed}:
            return seen(built({"normal": shape, "seed": seed}))
        case {"conditioning": cond, "pooled": pooled}:
            return [[built(cond), {"pooled_output": built(pooled)}]]
    return value


def run(node: str, inputs: dict[str, Any]) -> tuple[Any, ...]:
    node_class = nodes.NODE_CLASS_MAPPINGS[node]
    if hasattr(node_class, "PREPARE_CLASS_CLONE"):
        # A class of the newer kind reads its hidden inputs off a copy of itself.
        node_class = node_class.PREPARE_CLASS_CLONE(None)
    function = getattr(node_class(), node_class.FUNCTION)
    arguments = {name: built(value) for name, value in inputs.items()}
    if "vae" not in arguments and "vae" in inspect.signature(getattr(node_class, "execute", function)).parameters:
        arguments["vae"] = Means()
    result = function(**arguments)
    result = getattr(result, "result", result)
    return tuple(result.get("result", ()) if isinstance(result, dict) else result)


def leaves(value: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    match value:
        case torch.Tensor():
            yield name, value.numpy()
        case dict():
            for key, member in value.items():
                yield from leaves(member, f"{name}.{key}")
        case list() | tuple() if not all(isinstance(item, int) for item in value):
            for index, item in enumerate(value):
                yield from leaves(item, f"{name}.{index}")
        case comfy.clip_vision.Output():
            yield f"{name}.penultimate_hidden_states", value.penultimate_hidden_states.numpy()
        case _:
            yield name, np.array(value)


def info(name: str, node_class: Any) -> dict[str, Any]:
    if hasattr(node_class, "GET_NODE_INFO_V1"):
        told: dict[str, Any] = node_class.GET_NODE_INFO_V1()
        return told
    outputs = list(node_class.RETURN_TYPES)
    return {
        "input": node_class.INPUT_TYPES(),
        "output": outputs,
        "output_name": list(getattr(node_class, "RETURN_NAMES", outputs)),
        "output_is_list": list(getattr(node_class, "OUTPUT_IS_LIST", [False] * len(outputs))),
        "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(name, name),
        "category": node_class.CATEGORY,
        "output_node": bool(getattr(node_class, "OUTPUT_NODE", False)),
        "deprecated": bool(getattr(node_class, "DEPRECATED", False)),
        "experimental": bool(getattr(node_class, "EXPERIMENTAL", False)),
        "api_node": bool(getattr(node_class, "API_NODE", False)),
        "python_module": getattr(node_class, "RELATIVE_PYTHON_MODULE", "nodes"),
    }


def main() -> None:
    import server  # type: ignore[import-not-found]

    # Some extras register routes as they load.
    server.PromptServer(asyncio.new_event_loop())
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=True))
    classes = {name: info(name, node_class) for name, node_class in nodes.NODE_CLASS_MAPPINGS.items()}
    arrays: dict[str, Any] = {"object_info": np.array(json.dumps(classes, default=str))}
    with torch.inference_mode():
        for i, (node, inputs) in enumerate(json.loads(Path(CASES).read_text())):
            for slot, value in enumerate(run(node, inputs)):
                arrays |= dict(leaves(value, f"{i}.{slot}"))
    np.savez(OUT, **arrays)


main()
