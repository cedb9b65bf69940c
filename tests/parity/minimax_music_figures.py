"""Make golden/minimax_music.npz and golden/minimax_music_keys.json: what ComfyUI's modules of MiniMax Music 3 answer.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/minimax_music_figures.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
sys.path[:0] = [str(HERE.parents[1]), os.environ["COMFYUI_DIR"]]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.minimax_music.ar as ar  # noqa: E402
import comfy.ldm.minimax_music.dav as dav  # noqa: E402
import comfy.ldm.minimax_music.dit as dit  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
from comfy.ldm.minimax_music.prompt import build_prompt  # noqa: E402
from comfy.text_encoders.minimax_music import MODEL_CONFIG  # noqa: E402

from tests.parity import minimax_music_cases as cases  # noqa: E402
from tests.parity.dit_cases import noise  # noqa: E402
from tests.parity.figures import thinned  # noqa: E402

CPU = torch.device("cpu")
GIVEN = (torch.float32, CPU, comfy.ops.disable_weight_init)


def loaded(module: Any, name: str, keys: dict[str, Any]) -> Any:
    """Return a module with weights drawn from their names, of which the shapes are kept."""
    keys[name] = {key: list(value.shape) for key, value in module.state_dict().items()}
    module.load_state_dict(cases.weights(keys[name]))
    return module.eval()


def network(keys: dict[str, Any]) -> Any:
    """Return the base model, whose network is made small."""
    config = comfy.supported_models.MiniMaxMusic3({"audio_model": "minimax_music3", "dtype": torch.float32})
    base = config.get_model({}, device=torch.device("meta"))
    net, width, fed = base.diffusion_model, cases.WIDTH, 256 + cases.TOLD
    outer, inner = net.diffusion_transformer, net.diffusion_transformer.transformer
    net.latent_conditioners = nn.Sequential(nn.Conv1d(cases.STATE, cases.TOLD, 3, padding=1))
    net.cond_layer_logits, net.cond_layer_scale = (nn.Parameter(torch.empty(count)) for count in (8, 1))
    outer.timestep_features = dit.FourierFeatures(1, 256, *GIVEN[:2])
    outer.to_timestep_embed = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
    outer.preprocess_conv = nn.Conv1d(fed, fed, 1, bias=False)
    outer.postprocess_conv = nn.Conv1d(128, 128, 1, bias=False)
    inner.project_in, inner.project_out = nn.Linear(fed, width, bias=False), nn.Linear(width, 128, bias=False)
    inner.rotary_pos_emb = dit.RotaryEmbedding(32, *GIVEN[:2])
    inner.layers = nn.ModuleList(dit.TransformerBlock(width, 64, cases.INSIDE, *GIVEN) for _ in range(cases.LAYERS))
    loaded(net, "net", keys)
    return base


def decoder(keys: dict[str, Any]) -> Any:
    """Return the decoder of sounds, made small."""
    with torch.device("meta"):
        vae = dav.MiniMaxMusic3DAV(torch.float32, torch.device("meta"), comfy.ops.disable_weight_init)
    channels = [cases.FIRST // 2**i for i in range(5)]
    blocks = [dav.DecoderBlock(channels[i], channels[i + 1], stride, *GIVEN) for i, stride in enumerate((8, 8, 4, 2))]
    ends = (
        dav._weight_norm_conv(GIVEN[2], cases.FED, cases.FIRST, kernel_size=7, padding=3),
        dav.Snake1d(channels[-1], *GIVEN[:2]),
        dav._weight_norm_conv(GIVEN[2], channels[-1], 1, kernel_size=7, padding=3),
    )
    vae.dec_in_proj = nn.Conv1d(64, cases.FED, 1)
    vae.decoder.model = nn.Sequential(ends[0], *blocks, *ends[1:], nn.Tanh())
    return loaded(vae, "vae", keys)


def language_model(keys: dict[str, Any]) -> Any:
    model = ar.MiniMaxMusic3AR({**MODEL_CONFIG, **cases.SIZES}, *GIVEN)
    del model.model.embed_tokens, model.model.lm_head
    model.model.pruned_embedding = model.model.pruned_lm_head = True
    return loaded(model, "text", keys)


@torch.inference_mode()
def main() -> None:
    figures: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    base = network(keys)
    states = noise("states", (1, cases.FRAMES, 8 * cases.STATE))
    x = noise("x", (2, 128, cases.LENGTH))
    scale = torch.ones(2, 1, 1)
    times = 1.0 - torch.tensor(cases.LEVELS)
    figures["net"] = thinned(base.diffusion_model(x, times, states.repeat(2, 1, 1), scale).numpy())
    patcher = comfy.model_patcher.ModelPatcher(base, CPU, CPU)
    for figure in cases.RUNS:
        sampler, schedule, denoise = figure.split("|")
        short = states[:, :30]
        latent = torch.zeros(1, 128, dit.latent_length(30))
        if float(denoise) < 1:
            latent = noise("sound", latent.shape)
        conds = [[[short * by, {"conditioning_scale": torch.full((1, 1, 1), by)}]] for by in (1.0, 0.0)]
        asked = (patcher, comfy.sample.prepare_noise(latent, cases.SEED), cases.STEPS, cases.CFG, sampler, schedule)
        figures[figure] = comfy.sample.sample(*asked, *conds, latent, denoise=float(denoise), seed=cases.SEED).numpy()
    vae = decoder(keys)
    latents = noise("latents", (1, 128, 19))
    figures["decoded"] = thinned(vae.decode(latents[..., :5]).numpy())
    figures["tiled"] = thinned(
        comfy.utils.tiled_scale_multidim(
            latents, vae.decode, tile=(cases.TILE,), overlap=cases.OVERLAP, upscale_amount=512, out_channels=2
        ).numpy()
    )
    model = language_model(keys)
    song = model.generate(torch.tensor([cases.TOKENS]), cases.SEED, cases.SONG_FRAMES, CPU, cases.CFG, 50)
    figures["song"] = song[None].numpy()
    for i, (caption, lyrics) in enumerate(cases.TEXTS):
        figures[f"prompt {i}"] = np.frombuffer(build_prompt(caption, lyrics).encode(), dtype=np.uint8)
    (GOLDEN / "minimax_music_keys.json").write_text(json.dumps(keys, indent=0) + "\n")
    np.savez_compressed(GOLDEN / "minimax_music.npz", **figures)


main()
