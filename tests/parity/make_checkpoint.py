"""Write deterministic random-weight model files in the published single-file layouts.

    make_checkpoint.py mini15 OUT.safetensors      SD 1.5 layout, 2-level UNet (107 M), full CLIP-L and VAE; 0.63 GB
    make_checkpoint.py sd15 OUT.safetensors        SD 1.5 layout, full size (860 M UNet); 2.1 GB
    make_checkpoint.py lora OUT.safetensors        kohya-layout LoRA for mini15 (UNet and text encoder), rank 4
    make_checkpoint.py controlnet OUT.safetensors  cldm-layout ControlNet for mini15

Every tensor is drawn from a generator seeded by its own key, fp16 on disk, so the file is the same on every machine.
The figures under golden/ were made with these files. Needs torch and safetensors.
"""

import json
import math
import pathlib
import sys
import zlib

import torch
from safetensors.torch import save_file

KEYS = json.loads((pathlib.Path(__file__).parent / "checkpoint_keys.json").read_text())


def normal(key: str, shape: list[int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))


def weight(key: str, shape: list[int]) -> torch.Tensor:
    t = normal(key, shape)
    if len(shape) == 1:
        t = 1 + 0.05 * t if key.endswith("weight") else 0.02 * t
    elif "embedding" in key:
        t = 0.02 * t
    else:
        t = t / math.sqrt(math.prod(shape[1:]))
    return t.half()


def checkpoint(unet: str) -> dict[str, torch.Tensor]:
    sd = {"model.diffusion_model." + k: weight(k, s) for k, s in KEYS[unet].items()}
    sd |= {"first_stage_model." + k: weight(k, s) for k, s in KEYS["vae"].items()}
    sd |= {"cond_stage_model." + k: weight(k, s) for k, s in KEYS["clip_l"].items()}
    sd["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return sd


def lora() -> dict[str, torch.Tensor]:
    sd = {}
    for key, shape in KEYS["lora_mini"].items():
        name = key.rsplit(".", 2)[0] if key.endswith(".weight") else key.removesuffix(".alpha")
        if key.endswith(".alpha"):
            sd[key] = torch.tensor(2.0)
        elif key.endswith("lora_down.weight"):
            sd[key] = (normal(name + "d", shape) * (1 / math.sqrt(shape[1]))).half()
        else:
            sd[key] = (normal(name + "u", shape) * 0.15).half()
    return sd


def controlnet() -> dict[str, torch.Tensor]:
    return {
        "control_model." + k: weight("control." + k, s) * (0.2 if "zero_conv" in k or "middle_block_out" in k else 1.0)
        for k, s in KEYS["control_mini"].items()
    }


MAKERS = {
    "mini15": lambda: checkpoint("unet_mini"),
    "sd15": lambda: checkpoint("unet_sd15"),
    "lora": lora,
    "controlnet": controlnet,
}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("mini15", "sd15", "lora", "controlnet"):
        sys.exit(__doc__)
    save_file(MAKERS[sys.argv[1]](), sys.argv[2])
