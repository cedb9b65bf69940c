"""The nodes that save CONDITIONING to a file and load it, in the layout of ComfyUI's `SaveConditioning`.

Safetensors: the tensor "conditioning", the options that are tensors by their names, those of lists as NAME.INDEX; the
others as JSON in the metadata.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Annotated, Any

import safetensors.torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.nodes.declare import node
from serve_app.nodes.image.images import at, save_together
from serve_app.nodes.inputs import Combo, Text
from serve_app.nodes.sockets import CONDITIONING, RUNTIME, STORE
from serve_app.values import Conditioning

COND = "conditioning"
OPTIONS = "conditioning_options"


@node(
    "SaveConditioning",
    "Save Conditioning",
    category="model/conditioning",
    function="save",
    output_node=True,
    skips_blocked=True,
    description="Saves a conditioning to the output folder; in models/embeddings, Load Conditioning finds it.",
    search_aliases=("export conditioning", "cache text encoder output"),
)
async def save_conditioning(
    conditioning: list[CONDITIONING],
    filename_prefix: list[Annotated[str, Text("conditioning/ComfyUI", multiline=False)]],
    store: list[STORE],
) -> dict[str, Any]:
    """One entry to a file, for each of a list.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names. Errors:
    NodeError for several entries in one, and for options that no file holds, such as a ControlNet.
    """
    files = []
    for i, one in enumerate(conditioning):
        files.append((at(filename_prefix, i), (0, 0), await asyncio.to_thread(_file, one)))
    return {"ui": {"conditioning": await save_together(store[0], "output", ".safetensors", files)}}


def _file(conditioning: Conditioning) -> bytes:
    if len(conditioning) != 1:
        raise NodeError(f"the conditioning has {len(conditioning)} entries; one is saved, before they are combined")
    [(cond, options)] = conditioning
    tensors, values = {COND: cond}, {}
    for name, value in options.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, list | tuple) and all(isinstance(member, Tensor) for member in value):
            tensors |= {f"{name}.{index}": member for index, member in enumerate(value)}
        elif isinstance(value, bool | int | float | str):
            values[name] = value
        elif value is not None:
            raise NodeError(f"the conditioning has {name!r}, a {type(value).__name__}, which no file holds")
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data: bytes = safetensors.torch.save(held, {OPTIONS: json.dumps(values)})
    return data


@node(
    "ConditioningLoader",
    "Load Conditioning",
    category="model/loaders",
    function="load",
    description="Loads a conditioning from the embeddings folder, in place of a text and its encoder.",
)
async def conditioning_loader(
    conditioning_name: Annotated[str, Combo(FolderChoice("embeddings"))], runtime: RUNTIME
) -> CONDITIONING:
    """A file to a conditioning of one entry. Return the entry. Errors: NodeError for a file of another kind."""
    tensors, metadata = await runtime.saved_conditioning(conditioning_name)
    return [_entry(conditioning_name, dict(tensors), metadata)]


def _entry(name: str, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> tuple[Tensor, dict[str, Any]]:
    try:
        cond, options = tensors.pop(COND), json.loads(metadata.get(OPTIONS, "{}"))
    except (KeyError, ValueError) as error:
        raise NodeError(f"{name!r} is no saved conditioning: {error}") from error
    lists: dict[str, dict[int, Tensor]] = {}
    for key, tensor in tensors.items():
        of, _, index = key.rpartition(".")
        if index.isdecimal():
            lists.setdefault(of, {})[int(index)] = tensor
        else:
            options[key] = tensor
    return cond, options | {of: [members[i] for i in sorted(members)] for of, members in lists.items()}
