"""The nodes that save CONDITIONING to a file and load it, in the layout of ComfyUI's `SaveConditioning`.

Safetensors: the tensor "conditioning", the options that are tensors by their names, those of lists as NAME.INDEX; the
others as JSON in the metadata.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.execution.runtime import Files, Runtime
from serve_app.values import Conditioning

COND = "conditioning"
OPTIONS = "conditioning_options"


class SaveConditioning:
    """One entry to a file."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = "model/conditioning"
    DESCRIPTION = "Saves a conditioning to the output folder; in models/embeddings, Load Conditioning finds it."
    SEARCH_ALIASES = ("export conditioning", "cache text encoder output")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        prefix = ("STRING", {"default": "conditioning/ComfyUI", "multiline": False})
        return {
            "required": {"conditioning": ("CONDITIONING", {}), "filename_prefix": prefix},
            "hidden": {"store": "STORE"},
        }

    async def save(self, conditioning: Conditioning, filename_prefix: str, store: Files) -> dict[str, Any]:
        """Store the entry. Errors: NodeError for several, and for options that no file holds, such as a ControlNet."""
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
        data = await asyncio.to_thread(safetensors.torch.save, held, {OPTIONS: json.dumps(values)})
        return {"ui": {"conditioning": await store.save("output", filename_prefix, ".safetensors", [data])}}


class ConditioningLoader:
    """A file to a conditioning of one entry."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "load"
    CATEGORY = "model/loaders"
    DESCRIPTION = "Loads a conditioning from the embeddings folder, in place of a text and its encoder."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        chosen = ("COMBO", {"multiselect": False, "options": FolderChoice("embeddings")})
        return {"required": {"conditioning_name": chosen}, "hidden": {"runtime": "RUNTIME"}}

    async def load(self, conditioning_name: str, runtime: Runtime) -> tuple[Conditioning]:
        """Return the entry. Errors: NodeError for a file of another kind."""
        tensors, metadata = await runtime.saved_conditioning(conditioning_name)
        return ([_entry(conditioning_name, dict(tensors), metadata)],)


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


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "SaveConditioning": SaveConditioning,
    "ConditioningLoader": ConditioningLoader,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "SaveConditioning": "Save Conditioning",
    "ConditioningLoader": "Load Conditioning",
}
