"""Make golden/minimax_h3_control.npz: what ComfyUI's MiniMax H3 answers under its ControlNet.

Run it in the environment of ComfyUI 0.33.0, which has no such ControlNet: CONTROLNET is a copy of a later one's
comfy/ldm/minimax/controlnet.py that imports `comfy.ldm.minimax.model` by its whole name. COMFYUI_DIR=… python
tests/parity/minimax_h3_control_figures.py CONTROLNET. golden/minimax_h3_control_keys.json gets its weights' shapes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
CONTROLNET = sys.argv[1]
sys.path[:0] = [str(HERE.parents[1]), os.environ["COMFYUI_DIR"]]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.minimax.model as model  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.utils  # noqa: E402

from tests.parity.figures import thinned  # noqa: E402
from tests.parity.minimax_h3_cases import NETS, SEED, asked, drawn  # noqa: E402
from tests.parity.minimax_h3_control_cases import CASE_OF, CONTROLLED, CONTROLS, Controlled, hint, sizes  # noqa: E402

WHERE = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}


def filled(module: Any) -> Any:
    """Return a module with drawn weights."""
    module.load_state_dict(drawn({key: list(value.shape) for key, value in module.state_dict().items()}))
    return module.eval().requires_grad_(False)


def answer(net: Any, control: Any, controlled: Controlled) -> list[Tensor]:
    """Return what the network answers under the ControlNet: the velocity of the video and of the sound."""
    case = CASE_OF[controlled.case]
    a = asked(case)
    keyframes, refs = (a.options.get(f"minimax_{kind}", []) for kind in ("keyframes", "refs"))
    payload = {
        "text_token_tags": a.options.get("minimax_token_tags"),
        "keyframes": keyframes or None,
        "refs": refs or None,
        "cond_video_latents": [one["latent"] for one in (*keyframes, *refs) if "latent" in one],
        "cond_audio_latents": [one["audio_latent"] for one in (*keyframes, *refs) if "audio_latent" in one],
        "seed": SEED,
        "audio_scale": case.shifts[0] / case.shifts[1],
    }
    masks: dict[str, Tensor] = {}
    if a.mask is not None:
        base = comfy.model_base.MiniMaxH3
        told: Any = type("Told", (base,), {"__init__": lambda self: None, "diffusion_model": net})
        packed, _ = comfy.utils.pack_latents([mask.contiguous() for mask in a.mask])
        masks = base._denoise_mask_values(told.__new__(told), packed, [a.video.shape, a.sound.shape])
    height, width = (side + side % 2 for side in a.video.shape[3:])
    layout = model.PackedLayout(
        case.text, a.video.shape[2], height, width, a.sound.shape[-1], keyframes=keyframes or None, refs=refs or None
    )
    stream: Any = None

    def replaced(number: int, place: int) -> Any:
        def block(args: Any, extra: Any) -> Any:
            nonlocal stream
            given = args["img"].clone()
            out = extra["original_block"](args)
            if number == 0:
                stream = control.init_stream(given, hint(controlled), layout, args["t_emb"])
            rest = args["t_emb"], args["mod_segments"], args["rope_freqs"]
            stream, skip = control.step(number, stream, *rest, transformer_options=args["transformer_options"])
            skip[layout.audio_pos] = 0
            out["img"].add_(skip, alpha=controlled.strength)
            return out

        return block

    replacing = {("double_block", after): replaced(number, after) for number, after in enumerate(CONTROLS[case.net])}
    options = {
        "minimax_h3_sigma_shift_video": case.shifts[0],
        "minimax_h3_sigma_shift_audio": case.shifts[1],
        "patches_replace": {"dit": replacing},
    }
    level = torch.tensor([case.sigma * 1000])
    made: list[Tensor] = net([a.video, a.sound], level, a.text, options, minimax_payload=payload, **masks)
    return made


def main() -> None:
    spec = importlib.util.spec_from_file_location("controlnet", CONTROLNET)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    keys, answers = {}, {}
    with torch.no_grad():
        for name in CONTROLS:
            net = filled(model.MiniMaxH3Model(**NETS[name], **WHERE))
            control = filled(module.MiniMaxH3FunControl(**sizes(name), **WHERE))
            keys[name] = {key: list(value.shape) for key, value in control.state_dict().items()}
            for one in CONTROLLED:
                if CASE_OF[one.case].net == name:
                    for part, velocity in zip(("video", "sound"), answer(net, control, one), strict=True):
                        answers[f"{one.name}|{part}"] = velocity
    (GOLDEN / "minimax_h3_control_keys.json").write_text(json.dumps(keys, indent=0))
    arrays: Any = {name: thinned(tensor.numpy()) for name, tensor in answers.items()}
    np.savez_compressed(GOLDEN / "minimax_h3_control.npz", **arrays)


main()
