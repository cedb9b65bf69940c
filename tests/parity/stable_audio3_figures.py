"""Make golden/stable_audio3.npz and golden/stable_audio3_keys.json: what ComfyUI's modules of Stable Audio 3 answer.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/stable_audio3_figures.py.
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

import comfy.ldm.audio.vae_sa3 as vae_modules  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.text_encoders.sa3 as text_modules  # noqa: E402

from tests.parity import stable_audio3_cases as cases  # noqa: E402
from tests.parity.dit_cases import noise  # noqa: E402
from tests.parity.figures import thinned  # noqa: E402

CPU = torch.device("cpu")


def network(keys: dict[str, Any]) -> Any:
    """Return the base model with weights drawn from their names, of which the shapes are kept."""
    lengths = {"weight": [cases.TEXT, 256], "bias": [cases.TEXT]}
    beside = {f"seconds_total.embedder.embedding.1.{name}": shape for name, shape in lengths.items()}
    beside["prompt.padding_embedding"] = [cases.TEXT]
    keys["conditioners"] = beside
    made = cases.weights(beside)
    config = comfy.supported_models.StableAudio3({**cases.NET, "dtype": torch.float32})
    state = {f"conditioner.conditioners.{name}": tensor for name, tensor in made.items()}
    base = config.get_model(state)
    net = base.diffusion_model
    turning = "transformer.rotary_pos_emb.inv_freq"
    shapes = net.state_dict()
    keys["net"] = {key: list(value.shape) for key, value in shapes.items() if key != turning}
    width = shapes[turning].numel() * 2
    inverse = 1.0 / 10000 ** (torch.arange(0, width, 2).float() / width)
    net.load_state_dict(cases.weights(keys["net"]) | {turning: inverse})
    keys["net"][turning] = list(inverse.shape)
    net.eval()
    return base


def autoencoder(keys: dict[str, Any]) -> Any:
    """Return the autoencoder with drawn weights; the noise that it adds before it decodes is left out."""
    vae = vae_modules.SA3AudioVAE(**cases.VAE)
    state = vae.state_dict()
    keys["vae"] = {key: list(value.shape) for key, value in state.items() if not key.endswith("inv_freq")}
    width = 64 // 2
    inverse = 1.0 / 10000 ** (torch.arange(0, width, 2).float() / width)
    turning = {key: inverse for key in state if key.endswith("inv_freq")}
    vae.load_state_dict(cases.weights(keys["vae"]) | turning)
    vae.bottleneck.noise_regularize = False
    return vae.eval()


def text_encoder(keys: dict[str, Any]) -> Any:
    """Return the text encoder's network with drawn weights."""
    config = text_modules.T5GemmaEncoderConfig()
    for name, value in cases.TEXT_SIZES.items():
        setattr(config, name, value)
    operations = comfy.ops.disable_weight_init
    body = text_modules.T5GemmaBody(config, CPU, torch.float32, operations)
    keys["text"] = {key: list(value.shape) for key, value in body.state_dict().items()}
    body.load_state_dict(cases.weights(keys["text"]))
    return body.eval().encoder


@torch.inference_mode()
def main() -> None:
    figures: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    base = network(keys)
    x, levels = noise("x", (2, 256, cases.LENGTH)), torch.tensor([0.3, 0.9])
    texts = {"positive": noise("positive", (1, 6, cases.TEXT)), "negative": noise("negative", (1, 1, cases.TEXT)) * 0}
    told = base.extra_conds(noise=x, device=CPU, cross_attn=texts["positive"].repeat(2, 1, 1))
    given = {name: value.cond for name, value in told.items()}
    context = given.pop("c_crossattn")
    figures["net"] = thinned(base.diffusion_model(x, levels, context=context, **given).numpy())
    patcher = comfy.model_patcher.ModelPatcher(base, CPU, CPU)
    for figure in cases.RUNS:
        sampler, schedule, denoise = figure.split("|")
        length = round((cases.SECONDS * 44100 / 2048) / 2) * 2
        empty = torch.zeros(1, 64, length)
        latent = comfy.sample.fix_empty_latent_channels(patcher, empty, None, 2048)
        if float(denoise) < 1:
            latent = noise("sound", latent.shape)
        conds = [[[text, {}]] for text in texts.values()]
        drawn = comfy.sample.prepare_noise(latent, cases.SEED)
        asked = (patcher, drawn, cases.STEPS, cases.CFG, sampler, schedule, *conds, latent)
        mask = None if float(denoise) == 1 else (torch.arange(latent.shape[2]) > 4).float()[None, None]
        options = {"denoise": float(denoise), "noise_mask": mask, "seed": cases.SEED}
        figures[figure] = comfy.sample.sample(*asked, **options).numpy()
    vae = autoencoder(keys)
    figures["decoded"] = thinned(vae.decode(noise("latents", (1, 256, 5))).numpy())
    figures["encoded"] = vae.encode(noise("sound of some length", (1, 2, 3 * 4096)).sigmoid() - 0.5).numpy()
    encoder = text_encoder(keys)
    tokens = torch.tensor(cases.TOKENS)
    mask = (tokens != 0).float()
    states, _ = encoder(tokens, attention_mask=mask, dtype=torch.float32)
    figures["text"] = (states * mask[..., None]).numpy()
    (GOLDEN / "stable_audio3_keys.json").write_text(json.dumps(keys, indent=0) + "\n")
    np.savez_compressed(GOLDEN / "stable_audio3.npz", **figures)


main()
