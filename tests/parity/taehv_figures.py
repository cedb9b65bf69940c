"""Make golden/taehv.npz: what ComfyUI's tiny autoencoders of videos make of the cases of `taehv_cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/taehv_figures.py.
"""

from __future__ import annotations

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

import comfy.sd  # noqa: E402
import comfy.taesd.taehv  # noqa: E402

from tests.parity.figures import GOLDEN, thinned  # noqa: E402
from tests.parity.taehv_cases import LAYOUTS, tensors  # noqa: E402


@torch.inference_mode()
def main() -> None:
    figures: dict[str, Any] = {}
    for name, layout in LAYOUTS.items():
        shapes = {key: t.shape for key, t in comfy.taesd.taehv.TAEHV(layout.channels).state_dict().items()}
        vae = comfy.sd.VAE(sd=tensors(layout, shapes))
        for frames in (1, layout.latent_frames):
            # What is beyond black and white is cut here, and at the end of a workflow there.
            images = vae.decode(layout.latents(frames))
            cut = float(((images < 0) | (images > 1)).float().mean())
            print(f"{name} {frames}: {tuple(images.shape)}, {cut:.1%} beyond black and white", flush=True)
            figures[f"{name} decoded {frames} shape"] = np.array(images.shape)
            figures[f"{name} decoded {frames}"] = thinned(images.clamp(0, 1).numpy())
        for count in (1, layout.images):
            latents = vae.encode(layout.pixels(count))
            figures[f"{name} encoded {count} shape"] = np.array(latents.shape)
            figures[f"{name} encoded {count}"] = thinned(latents.numpy())
    np.savez_compressed(GOLDEN / "taehv.npz", **figures)


main()
