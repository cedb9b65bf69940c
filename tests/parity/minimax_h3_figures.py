"""Make golden/minimax_h3.npz: what ComfyUI's modules of MiniMax H3 answer in every case of `minimax_h3_cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/minimax_h3_figures.py. golden/minimax_h3_keys.json
gets the names and shapes of each network's weights.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
sys.path[:0] = [str(HERE.parents[1]), os.environ["COMFYUI_DIR"]]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.minimax.audio_vae as audio_vae  # noqa: E402
import comfy.ldm.minimax.model as model  # noqa: E402
import comfy.ldm.minimax.vae as video_vae  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.nested_tensor  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.text_encoders.minimax as minimax  # noqa: E402
import comfy.text_encoders.qwen3vl as qwen3vl  # noqa: E402
import comfy.utils  # noqa: E402
import comfy_extras.nodes_minimax_h3 as nodes  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tests.parity.dit_cases import noise  # noqa: E402
from tests.parity.figures import thinned  # noqa: E402
from tests.parity.minimax_h3_cases import (  # noqa: E402
    AUDIO,
    CASES,
    FRAMES,
    LATENT_FRAMES,
    NETS,
    RUNS,
    SAMPLES,
    SEED,
    TEXT,
    TEXTS,
    TOWER,
    VAE,
    VAE_DECODER,
    WIDE,
    Case,
    asked,
    drawn,
    negative,
    referred,
    samples,
)

KEYS: dict[str, dict[str, list[int]]] = {}


def filled(name: str, module: Any) -> Any:
    """Return a module with drawn weights."""
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    KEYS[name] = shapes
    module.load_state_dict(drawn(shapes))
    return module.eval().requires_grad_(False)


def network(name: str) -> Any:
    """Return ComfyUI's module for a network of `NETS`."""
    where = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
    return filled(name, model.MiniMaxH3Model(**NETS[name], **where))


def answer(net: Any, case: Case) -> list[Tensor]:
    """Return what the network answers a case: the velocity of the video and of the sound."""
    a = asked(case)
    options = a.options
    keyframes, refs = options.get("minimax_keyframes", []), options.get("minimax_refs", [])
    payload = {
        "text_token_tags": options.get("minimax_token_tags"),
        "keyframes": keyframes or None,
        "refs": refs or None,
        "cond_video_latents": [one["latent"] for one in (*keyframes, *refs) if "latent" in one],
        "cond_audio_latents": [one["audio_latent"] for one in (*keyframes, *refs) if "audio_latent" in one],
        "seed": SEED,
        "audio_scale": case.shifts[0] / case.shifts[1],
    }
    masks: dict[str, Tensor] = {}
    if a.mask is not None:
        shapes = [a.video.shape, a.sound.shape]
        packed, _ = comfy.utils.pack_latents([mask.contiguous() for mask in a.mask])
        base = comfy.model_base.MiniMaxH3
        told: Any = type("Told", (), {"diffusion_model": net})()
        for method in ("_pool_masks_to_token_grid", "_token_grid_masks"):
            setattr(told, method, partial(getattr(base, method), told))
        masks = base._denoise_mask_values(told, packed, shapes)
    shifts = {"minimax_h3_sigma_shift_video": case.shifts[0], "minimax_h3_sigma_shift_audio": case.shifts[1]}
    level = torch.tensor([case.sigma * 1000])
    made: list[Tensor] = net([a.video, a.sound], level, a.text, shifts, minimax_payload=payload, **masks)
    return made


def together(parts: list[Tensor]) -> Any:
    """Return the samples of one part or of several."""
    return comfy.nested_tensor.NestedTensor(parts) if len(parts) > 1 else parts[0]


def runs(folder: Path) -> dict[str, Tensor]:
    """Return the latents that runs end with, of both parts."""
    for name in NETS:
        save_file(drawn(KEYS[name]), folder / f"{name}.safetensors")
    answers = {}
    for run in RUNS:
        net = comfy.sd.load_diffusion_model(str(folder / f"{run.case.net}.safetensors"))
        if run.shifts is not None:
            net = nodes.MiniMaxH3SigmaShift.execute(net, *run.shifts).args[0]
        a, latents = asked(run.case), together(samples(run))
        latents = comfy.sample.fix_empty_latent_channels(net, latents, 8 if run.image else None)
        mask = None if a.mask is None else together([part[:, :1] for part in a.mask])
        conds = [[[text, dict(a.options)]] for text in (a.text, negative(run))]
        made = comfy.sample.sample(
            net,
            comfy.sample.prepare_noise(latents, SEED),
            run.steps,
            run.cfg,
            run.sampler,
            run.schedule,
            *conds,
            latents,
            noise_mask=mask,
            seed=SEED,
        )
        for part, tensor in zip(("video", "sound"), made.unbind(), strict=True):
            answers[f"{run.name}|{part}"] = tensor
    return answers


def texts() -> dict[str, Tensor]:
    """Return the conditionings of texts and the kinds of their tokens."""
    for known in (qwen3vl.QWEN3VL_VISION["qwen3vl_32b"], qwen3vl.QWEN3VL_VISION_COMMON):
        known.update({key: value for key, value in TOWER.items() if key in known})
    encoder = minimax.MiniMaxH3TEModel(
        device="cpu", dtype=torch.float32, model_options={"qwen3vl_32b_model_config": TEXT}
    )
    filled("text", encoder.qwen3vl_32b.transformer)
    tokenizer = minimax.MiniMaxH3Tokenizer()
    answers = {}
    for name, (prompt, _) in TEXTS.items():
        items = [{"type": kind, "data": images} for kind, images in referred(name)]
        given = {"images": [item["data"] for item in items]} if name == "pictures" else {"minimax_ref_items": items}
        cond, _, options = encoder.encode_token_weights(tokenizer.tokenize_with_weights(prompt, **given))
        answers[f"text {name}"] = cond
        answers[f"text {name} tags"] = options["minimax_token_tags"]
    return answers


def main() -> None:
    answers: dict[str, Tensor] = {}
    with torch.no_grad():
        nets = {name: network(name) for name in NETS}
        for case in CASES:
            for part, velocity in zip(("video", "sound"), answer(nets[case.net], case), strict=True):
                answers[f"{case.name}|{part}"] = velocity
        video_vae.ViT3DDecoder = partial(video_vae.ViT3DDecoder, **VAE_DECODER)
        vae = filled("vae", video_vae.MiniMaxH3VideoVAE(**VAE))
        for frames in FRAMES:
            answers[f"vae {frames} encoded"] = vae.encode(noise("h3 pixels", (1, 3, frames, 32, 48)).tanh())
        for frames in LATENT_FRAMES:
            answers[f"vae {frames} decoded"] = vae.decode(noise("h3 latents", (1, 24, frames, 2, 3)))
        wide = noise("h3 wide", WIDE).tanh()
        answers["vae wide encoded"] = vae.encode(wide)
        answers["vae wide decoded"] = vae.decode(noise("h3 wide latents", (1, 24, 2, 2, 18)))
        sounds = filled("audio_vae", audio_vae.MiniMaxH3AudioVAE(**AUDIO))
        waveform = noise("h3 sound", (1, 2, SAMPLES)).tanh()
        answers["sound encoded"] = sounds.encode(waveform)
        answers["sound decoded"] = sounds.decode(noise("h3 sound latents", (1, 32, 2, 5)))
        answers |= texts()
        with TemporaryDirectory() as folder:
            answers |= runs(Path(folder))
    (GOLDEN / "minimax_h3_keys.json").write_text(json.dumps(KEYS, indent=0))
    arrays: Any = {
        name: tensor.numpy() if name.startswith("text ") else thinned(tensor.numpy())
        for name, tensor in answers.items()
    }
    np.savez_compressed(GOLDEN / "minimax_h3.npz", **arrays)


main()
