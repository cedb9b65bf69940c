"""Make golden/ace_step.npz and golden/ace_step_keys.json: what ComfyUI's modules of ACE-Step 1.5 answer.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/ace_step_figures.py.
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

import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.text_encoders.ace15 as text_modules  # noqa: E402
from comfy.ldm.audio.autoencoder import AudioOobleckVAE  # noqa: E402

from tests.parity import ace_step_cases as cases  # noqa: E402
from tests.parity.dit_cases import noise  # noqa: E402
from tests.parity.figures import thinned  # noqa: E402

CPU = torch.device("cpu")


def loaded(module: Any, name: str, keys: dict[str, Any]) -> Any:
    """Return a module with weights drawn from their names, of which the shapes are kept."""
    keys[name] = {key: list(value.shape) for key, value in module.state_dict().items() if key != "logit_scale"}
    module.load_state_dict(cases.weights(keys[name]), strict=False)
    return module.eval()


def options(case: str) -> dict[str, Any]:
    """Return what a conditioning of a case says."""
    said: dict[str, Any] = {"conditioning_lyrics": noise("lyrics", (1, 9, cases.TEXT))}
    if case in ("codes", "blank"):
        said["audio_codes"] = [list(cases.CODES)]
    if case == "like":
        said["reference_audio_timbre_latents"] = [noise("reference", (1, 64, cases.REFERENCE))]
    return said


def network(keys: dict[str, Any], figures: dict[str, Any]) -> Any:
    base = comfy.supported_models.ACEStep15({**cases.NET, "dtype": torch.float32}).get_model({})
    loaded(base.diffusion_model, "net", keys)
    x = noise("x", (1, 64, cases.LENGTH))
    for case, level in cases.LEVELS.items():
        text = noise("positive", (1, 6, cases.TEXT)) * (case != "blank")
        told = base.extra_conds(noise=x, device=CPU, cross_attn=text, **options(case))
        given = {name: value.cond for name, value in told.items()}
        context = given.pop("c_crossattn")
        made = base.diffusion_model(x, torch.tensor([level]), context=context, **given)
        figures[f"net {case}"] = thinned(made.numpy())
    return base


def runs(base: Any, figures: dict[str, Any]) -> None:
    patcher = comfy.model_patcher.ModelPatcher(base, CPU, CPU)
    for figure in cases.RUNS:
        sampler, schedule, denoise = figure.split("|")
        latent = torch.zeros(1, 64, round(cases.SECONDS * 25))
        if float(denoise) < 1:
            latent = noise("sound", latent.shape)
        text = noise("positive", (1, 6, cases.TEXT))
        said = options("codes")
        blank = {**said, "conditioning_lyrics": said["conditioning_lyrics"] * 0}
        drawn = comfy.sample.prepare_noise(latent, cases.SEED)
        asked = (patcher, drawn, cases.STEPS, cases.CFG, sampler, schedule, [[text, said]], [[text * 0, blank]], latent)
        figures[figure] = comfy.sample.sample(*asked, denoise=float(denoise), seed=cases.SEED).numpy()


def texts(keys: dict[str, Any], figures: dict[str, Any]) -> None:
    """Make the figures of both text encoders: of a song's texts, and of codes drawn for it."""
    encoder = text_modules.ACE15TEModel(dtype=torch.float32, model_options={"_model_config": dict(cases.READER)})
    encoder.lm_model = "qwen3_2b"
    encoder.qwen3_2b = text_modules.Qwen3_2B_ACE15(
        dtype=torch.float32, model_options={"_model_config": dict(cases.WRITER)}
    )
    loaded(encoder.qwen3_06b.transformer, "reader", keys)
    loaded(encoder.qwen3_2b.transformer, "writer", keys)
    tokenizer = text_modules.ACE15Tokenizer()
    for name, sampling in cases.SAMPLINGS.items():
        told = {**cases.SONG, **sampling, "timesignature": 4, "seed": cases.SEED, "generate_audio_codes": True}
        tokens = tokenizer.tokenize_with_weights(cases.TAGS, lyrics=cases.LYRICS, **told)
        encoder.reset_clip_options()
        encoder.set_clip_options({"execution_device": CPU})
        text, _, said = encoder.encode_token_weights(tokens)
        figures[f"written {name}"] = np.array(said["audio_codes"])
    figures["text"], figures["lyrics"] = text.numpy(), said["conditioning_lyrics"].numpy()


@torch.inference_mode()
def main() -> None:
    figures: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    runs(network(keys, figures), figures)
    for name, strides in cases.STRIDES.items():
        vae = loaded(AudioOobleckVAE(channels=cases.WIDTH, strides=list(strides)), name, keys)
        figures[f"{name} decoded"] = thinned(vae.decode(noise("latents", (1, 64, 5))).numpy())
        sound = noise("sound of some length", (1, 2, 3 * int(np.prod(strides)))).sigmoid() - 0.5
        figures[f"{name} encoded"] = vae.encoder(sound).chunk(2, dim=1)[0].numpy()
    texts(keys, figures)
    (GOLDEN / "ace_step_keys.json").write_text(json.dumps(keys, indent=0) + "\n")
    np.savez_compressed(GOLDEN / "ace_step.npz", **figures)


main()
