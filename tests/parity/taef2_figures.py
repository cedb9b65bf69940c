"""Make golden/taef2.npz: what ComfyUI's TAESD of Flux.2 makes of weights and inputs drawn from names.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/taef2_figures.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), os.environ["COMFYUI_DIR"]]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.taesd.taesd  # noqa: E402

from tests.parity.dit_cases import noise, weights  # noqa: E402


def main() -> None:
    vae = comfy.taesd.taesd.TAESD(latent_channels=128).eval()
    names = {key: value.shape for key, value in vae.state_dict().items() if key.startswith("taesd_")}
    drawn = weights({key.removeprefix("taesd_"): shape for key, shape in names.items()})
    vae.load_state_dict({f"taesd_{key}": value for key, value in drawn.items()}, strict=False)
    with torch.inference_mode():
        decoded = vae.decode(noise("taef2 latents", (2, 128, 2, 3)))
        encoded = vae.encode(noise("taef2 pixels", (2, 3, 32, 16)))
    np.savez_compressed(HERE / "golden" / "taef2.npz", decoded=decoded.numpy(), encoded=encoded.numpy())


main()
