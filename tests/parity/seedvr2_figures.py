"""Make golden/seedvr2.npz and golden/seedvr2_keys.json: what ComfyUI's modules and nodes of SeedVR2 answer.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/seedvr2_figures.py.
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

import comfy.ldm.seedvr.model as modules  # noqa: E402
import comfy.ldm.seedvr.vae as vae_modules  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy_extras.nodes_seedvr as seedvr  # noqa: E402
import nodes  # noqa: E402

from tests.parity import seedvr2_cases as cases  # noqa: E402
from tests.parity.dit_cases import noise  # noqa: E402
from tests.parity.figures import thinned  # noqa: E402

CPU = torch.device("cpu")


def network(name: str, keys: dict[str, Any]) -> Any:
    """Return a base model with weights drawn from their names, of which the shapes are kept."""
    config = comfy.supported_models.SeedVR2({**cases.NETS[name], "dtype": torch.float32})
    base = comfy.model_base.SeedVR2(config)
    net = base.diffusion_model
    for role, tokens in cases.TEXTS.items():
        setattr(net, f"{role}_conditioning", torch.empty(tokens, cases.TEXT))
    state = net.state_dict()
    turning = [key for key in state if key.endswith("rope.freqs")]
    keys[name] = {key: list(value.shape) for key, value in state.items() if key not in turning}
    faster = cases.FASTER if name == "3b" else 1.0
    net.load_state_dict(cases.weights(keys[name]) | {key: state[key] * faster for key in turning})
    net.eval()
    return base


def autoencoder(keys: dict[str, Any]) -> Any:
    """Return ComfyUI's VAE with weights drawn from their names."""
    vae_modules.BYTEDANCE_BLOCK_OUT_CHANNELS = cases.WIDTHS
    shapes = vae_modules.VideoAutoencoderKLWrapper().state_dict()
    keys["vae"] = {key: list(value.shape) for key, value in shapes.items()}
    return comfy.sd.VAE(sd=cases.weights(keys["vae"]), dtype=torch.float32)


def result(made: Any) -> Any:
    return made.result if hasattr(made, "result") else made


@torch.inference_mode()
def main() -> None:
    modules.SEEDVR2_7B_VID_DIM = cases.LARGE_WIDTH
    figures: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    models = {name: network(name, keys) for name in cases.NETS}
    x, condition, text = cases.asked()
    for name, base in models.items():
        # One by one: of several texts in a batch the smaller network reads the first's queries and keys for all.
        made = [
            base.diffusion_model(
                x[i : i + 1],
                torch.tensor([level]),
                text[i : i + 1],
                condition=condition[i : i + 1],
                transformer_options={"cond_or_uncond": [0]},
            )
            for i, level in enumerate((300.0, 900.0))
        ]
        figures[name] = thinned(torch.cat(made).numpy())
    vae = autoencoder(keys)
    images = (noise("pixels", (9, 32, 48, 3)).sigmoid() * 0.8 + 0.1).contiguous()
    latents = vae.encode(images)
    figures["encoded"] = thinned(latents.numpy())
    figures["decoded"] = thinned(vae.decode(latents).numpy())
    figures["decoded image"] = thinned(vae.decode(latents[:, :, :1]).numpy())
    original = cases.video()
    [prepared] = result(seedvr.SeedVR2Preprocess.execute(original))
    figures["prepared"] = thinned(prepared.numpy())
    [encoded] = nodes.VAEEncodeTiled().encode(vae, prepared, cases.TILE, cases.SHARED, 64, 8)
    figures["encoded in tiles"] = thinned(encoded["samples"].numpy())
    manual = {"chunking_mode": "manual", "frames_per_chunk": cases.CHUNK}
    parts, shared = result(seedvr.SeedVR2TemporalChunk.execute(encoded, cases.OVERLAP, manual))
    patcher = comfy.model_patcher.ModelPatcher(models["3b"], CPU, CPU)
    sampled = []
    for part in parts:
        positive, negative = result(seedvr.SeedVR2Conditioning.execute(patcher, part))
        drawn = comfy.sample.prepare_noise(part["samples"], cases.SEED)
        asked = (patcher, drawn, cases.STEPS, cases.CFG, "euler", "simple", positive, negative, part["samples"])
        sampled.append({"samples": comfy.sample.sample(*asked, seed=cases.SEED)})
    [merged] = result(seedvr.SeedVR2TemporalMerge.execute(sampled, [shared]))
    figures["sampled"] = merged["samples"].numpy()
    [decoded] = nodes.VAEDecodeTiled().decode(vae, merged, cases.TILE, cases.SHARED, 64, 8)
    figures["decoded in tiles"] = thinned(decoded.numpy())
    for method in ("lab", "wavelet", "adain", "none"):
        [made] = result(seedvr.SeedVR2PostProcessing.execute(decoded, original, method))
        figures[method] = thinned(made.numpy())
    (GOLDEN / "seedvr2_keys.json").write_text(json.dumps(keys, indent=0) + "\n")
    np.savez_compressed(GOLDEN / "seedvr2.npz", **figures)


main()
