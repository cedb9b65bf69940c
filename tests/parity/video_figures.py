"""Make golden/videos.npz and golden/video_keys.json: what ComfyUI's VAE nodes make of the cases of `video_cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/video_figures.py.
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
sys.path[:0] = [str(HERE.parents[1]), os.environ["COMFYUI_DIR"]]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.latent_formats  # noqa: E402
import comfy.ldm.wan.vae  # noqa: E402
import comfy.ldm.wan.vae2_2  # noqa: E402
import comfy.sd  # noqa: E402
import comfy_extras.nodes_post_processing  # noqa: E402, F401
import nodes  # noqa: E402
from comfy_extras import nodes_latent  # noqa: E402

from tests.parity.dit_cases import noise, weights  # noqa: E402
from tests.parity.figures import GOLDEN, thinned  # noqa: E402
from tests.parity.video_cases import CASES, OPERATIONS, WAN21, WAN22  # noqa: E402

MODULES = {"wan21": (comfy.ldm.wan.vae, WAN21), "wan22": (comfy.ldm.wan.vae2_2, WAN22)}


def loaded(module: Any, arguments: dict[str, Any]) -> Any:
    """Return a VAE as its loader makes one. It takes Wan 2.2's for one of the published size."""
    network = module.WanVAE
    shapes = {key: value.shape for key, value in network(**arguments).state_dict().items()}
    module.WanVAE = lambda **given: network(**given | arguments)
    return comfy.sd.VAE(sd=weights(shapes)), {key: list(shape) for key, shape in shapes.items()}


@torch.inference_mode()
def main() -> None:
    figures: dict[str, Any] = {}
    keys = {}
    for net, (module, arguments) in MODULES.items():
        vae, keys[net] = loaded(module, arguments)
        for case in CASES:
            node = nodes.NODE_CLASS_MAPPINGS[case.node]()
            (made,) = getattr(node, node.FUNCTION)(vae=vae, **case.given(net))
            tensor = made["samples"] if isinstance(made, dict) else made
            if isinstance(made, dict) and "noise_mask" in made:
                figures[f"{net} {case.name} mask"] = made["noise_mask"].numpy()
            figures[f"{net} {case.name} shape"] = np.array(tensor.shape)
            figures[f"{net} {case.name}"] = thinned(tensor.numpy())
    for name, inputs in OPERATIONS:
        if newer := getattr(nodes_latent, name, None):
            made = newer.execute(**inputs).result[0]
        else:
            older = nodes.NODE_CLASS_MAPPINGS[name]()
            (made,) = getattr(older, older.FUNCTION)(**inputs)
        figures[name] = made["samples"].numpy()
    for name, known in {"wan21": comfy.latent_formats.Wan21(), "wan22": comfy.latent_formats.Wan22()}.items():
        figures[f"{name} format"] = known.process_in(
            noise(f"{name} format", (1, known.latent_channels, 2, 1, 1))
        ).numpy()
    (GOLDEN / "video_keys.json").write_text(json.dumps(keys, indent=0))
    np.savez_compressed(GOLDEN / "videos.npz", **figures)


main()
