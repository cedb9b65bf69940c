"""Makes golden/layers.npz: what ComfyUI composes of the stacks of `layer_cases`, and how it tells layers apart.

COMFYUI_DIR=… python tests/parity/layers_figures.py        # in ComfyUI's environment
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.parity.layer_cases import STACKS  # noqa: E402


def drawn(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item with its picture and its mask."""
    generator = torch.Generator().manual_seed(item["seed"])
    image = torch.rand(item["shape"], generator=generator)
    made = {**item, "type": "raster", "image": image.round() if item.get("rounded") else image}
    if "mask" in item:
        made["mask"] = torch.rand(item["mask"], generator=generator)
    return {name: value for name, value in made.items() if name not in ("seed", "shape", "rounded")}


def main() -> None:
    sys.path.insert(0, os.environ["COMFYUI_DIR"])
    sys.argv = ["main.py", "--cpu"]
    import comfy.options  # type: ignore[import-not-found]

    comfy.options.enable_args_parsing()
    from comfy_extras import nodes_compositor as compositor  # type: ignore[import-not-found]

    arrays: dict[str, Any] = {}
    for name, case in STACKS.items():
        document = {"version": 1, "layers": list(map(drawn, case["items"]))}
        if "canvas" in case:
            document["canvas"] = case["canvas"]
        frames = compositor.expand_item_frames(compositor.document_items(document))
        tensors = [frame["tensor"] for frame in frames]
        alphas = [compositor.frame_alpha(frame["tensor"], frame["mask"]) for frame in frames]
        digests = compositor.input_fingerprints(frames, alphas)
        if "state" in case:
            state = compositor.parse_layer_state(json.dumps({**case["state"], "inputs": digests}))
        else:
            canvas = compositor.document_canvas(document) or compositor.canvas_extent(frames)
            state = compositor.state_from_items(frames, canvas)
        image, mask = compositor.composite_outputs(compositor.composite_from_state(tensors, state, alphas))
        arrays |= {f"{name}|image": image.numpy(), f"{name}|mask": mask.numpy(), f"{name}|digests": np.array(digests)}
    np.savez_compressed(HERE / "golden" / "layers.npz", **arrays)


if __name__ == "__main__":
    main()
