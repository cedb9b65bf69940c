"""Make golden/ltx.npz and golden/ltx_keys.json: what ComfyUI's modules of LTX-2 answer in the cases of `ltx_cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/ltx_figures.py.
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

import comfy.ldm.lightricks.av_model  # noqa: E402
import comfy.ldm.lightricks.latent_upsampler  # noqa: E402
import comfy.ldm.lightricks.vae.audio_vae  # noqa: E402
import comfy.ldm.lightricks.vae.causal_video_autoencoder  # noqa: E402
import comfy.ldm.lightricks.vae.na_diffusion_decoder  # noqa: E402
import comfy.ops  # noqa: E402

from tests.parity import ltx_cases  # noqa: E402
from tests.parity.dit_cases import noise  # noqa: E402
from tests.parity.figures import thinned  # noqa: E402

Shapes = dict[str, list[int]]


def loaded(network: Any, keys: dict[str, Shapes], name: str) -> Any:
    """Return a network with weights drawn from their names, of which the shapes are kept."""
    keys[name] = {key: list(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict(ltx_cases.autoencoder_weights(keys[name]))
    return network.eval()


def transformers(figures: dict[str, Any], keys: dict[str, Shapes]) -> None:
    """Make the figures of the transformers."""
    where = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
    module = comfy.ldm.lightricks.av_model.LTXAVModel
    nets = {name: loaded(module(**given, **where), keys, name) for name, given in ltx_cases.NETS.items()}
    for case in ltx_cases.CASES:
        net, asked, level = nets[case.net], ltx_cases.asked(case), ltx_cases.levels(case)
        options: dict[str, Any] = {}
        times: Any = level
        if asked.masks is not None:
            video, sound = asked.masks
            of_video = net.patchifier.patchify((video * level.view(-1, 1, 1, 1, 1))[:, :1])[0]
            of_sound = net.a_patchifier.patchify((sound * level.view(-1, 1, 1, 1))[:, :1, :, :1])[0]
            times, options = (of_video, of_sound), {"denoise_mask": video, "audio_denoise_mask": sound}
        text = net.preprocess_text_embeds(asked.text, unprocessed=True)
        x = [asked.video.clone(), asked.sound.clone()] if case.sound else [asked.video.clone()]
        given = {name: value for name, value in case.options().items() if name != "frame_rate"}
        made = net(x, times, text, None, case.frame_rate, **options, **given)
        for part, tensor in zip(("video", "sound"), made if isinstance(made, list) else [made], strict=False):
            figures[f"{case.name} {part}"] = tensor.numpy()


def autoencoders(figures: dict[str, Any], keys: dict[str, Shapes]) -> None:
    """Make the figures of the autoencoders of videos and of sounds, by `comfy.sd.VAE`."""
    modules = {
        "vae": comfy.ldm.lightricks.vae.causal_video_autoencoder.VideoVAE,
        "vae 2.5": comfy.ldm.lightricks.vae.na_diffusion_decoder.CausalDiffusionVAE,
    }
    for name, module in modules.items():
        vae = loaded(module(config=ltx_cases.VAES[name]), keys, name)
        for count in ltx_cases.LATENT_FRAMES:
            images = noise(f"images {count}", (1, 3, 8 * count - 7, 32, 64)).sigmoid() * 2 - 1
            figures[f"{name} {count} encoded"] = vae.encode(images).numpy()
            decoded = vae.decode(noise(f"latents {count}", (1, 128, count, 2, 3)))
            figures[f"{name} {count} decoded"] = thinned(decoded.numpy())
    for net in ltx_cases.VOCODERS:
        metadata = ltx_cases.metadata(net)
        sounds = loaded(comfy.ldm.lightricks.vae.audio_vae.AudioVAE(metadata), keys, f"{net} sounds")
        figures[f"{net} heard"] = thinned(sounds.decode(noise("sound latents", (1, 8, 3, 16))).numpy())
    made, _ = sounds.autoencoder.encode(noise("spectra", ltx_cases.SPECTRA)).chunk(2, dim=1)
    figures["spectra encoded"] = sounds.normalizer.normalize(made).numpy()


def upscalers(figures: dict[str, Any], keys: dict[str, Shapes]) -> None:
    """Make the figures of latent upscalers."""
    module = comfy.ldm.lightricks.latent_upsampler.LatentUpsampler
    for name, config in ltx_cases.UPSCALERS.items():
        network = loaded(module.from_config(config, comfy.ops.disable_weight_init), keys, f"upscaler of {name}")
        figures[f"{name} enlarged"] = thinned(network(noise("small", (1, 128, 2, 2, 3))).numpy())


@torch.inference_mode()
def main() -> None:
    figures: dict[str, Any] = {}
    keys: dict[str, Shapes] = {}
    transformers(figures, keys)
    autoencoders(figures, keys)
    upscalers(figures, keys)
    (GOLDEN / "ltx_keys.json").write_text(json.dumps(keys, indent=0) + "\n")
    np.savez_compressed(GOLDEN / "ltx.npz", **figures)


main()
