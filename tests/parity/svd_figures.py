"""Make golden/svd.npz and golden/svd_keys.json: what ComfyUI's modules of Stable Video Diffusion answer.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/svd_figures.py.
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
GOLDEN = HERE / "golden"
sys.path[:0] = [str(HERE.parents[1]), os.environ["COMFYUI_DIR"]]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.models.autoencoder  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy_extras.nodes_video_model as nodes  # noqa: E402

from tests.parity import svd_cases  # noqa: E402
from tests.parity.dit_cases import noise  # noqa: E402
from tests.parity.figures import thinned  # noqa: E402
from tests.parity.svd_cases import CFG, FRAMES, LOWEST, RUNS, SAID, SEED, SIZE, STEPS, UNET, VAE  # noqa: E402

CPU = torch.device("cpu")
GUIDED = {
    "plain": lambda model: model,
    "linear": lambda model: nodes.VideoLinearCFGGuidance().patch(model, LOWEST)[0],
    "triangle": lambda model: nodes.VideoTriangleCFGGuidance().patch(model, LOWEST)[0],
}


def loaded(network: Any, keys: dict[str, Any], name: str) -> Any:
    """Return a network with weights drawn from their names, of which the shapes are kept."""
    keys[name] = {key: list(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict(svd_cases.weights(keys[name]))
    return network.eval()


@torch.inference_mode()
def main() -> None:
    figures: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    config = comfy.supported_models.SVD_img2vid({**UNET, "dtype": torch.float32})
    base = comfy.model_base.SVD_img2vid(config)
    unet = loaded(base.diffusion_model, keys, "unet")
    x, levels = noise("x", (FRAMES, 8, *SIZE)), torch.full((FRAMES,), 0.7)
    seen = svd_cases.texts()["positive"].repeat(FRAMES, 1, 1)
    vector = base.encode_adm(**SAID).repeat(FRAMES, 1)
    figures["unet"] = unet(x, levels, seen, vector, num_video_frames=FRAMES).numpy()
    for figure in RUNS:
        guidance, sampler, schedule = figure.split("|")
        model = GUIDED[guidance](comfy.model_patcher.ModelPatcher(base, CPU, CPU))
        latent = torch.zeros(FRAMES, 4, *SIZE)
        conds = [
            [[text, {**SAID, "concat_latent_image": svd_cases.images()[role]}]]
            for role, text in svd_cases.texts().items()
        ]
        drawn = comfy.sample.prepare_noise(latent, SEED)
        asked = (model, drawn, STEPS, CFG, sampler, schedule, *conds, latent)
        figures[figure] = comfy.sample.sample(*asked, seed=SEED).numpy()
    vae = comfy.ldm.models.autoencoder.AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": VAE},
        decoder_config={
            "target": "comfy.ldm.modules.temporal_ae.VideoDecoder",
            "params": {**VAE, "video_kernel_size": [3, 1, 1], "alpha": 0.0},
        },
    )
    loaded(vae, keys, "vae")
    figures["decoded"] = thinned(vae.decode(noise("latents", (FRAMES, 4, *SIZE))).numpy())
    figures["encoded"] = vae.encode(noise("pixels", (2, 3, 16, 24))).numpy()
    (GOLDEN / "svd_keys.json").write_text(json.dumps(keys, indent=0) + "\n")
    np.savez_compressed(GOLDEN / "svd.npz", **figures)


main()
