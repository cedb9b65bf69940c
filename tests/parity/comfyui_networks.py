"""ComfyUI's UNets, CLIP encoders and ControlNets on small files: run by its own interpreter, in its directory.

    python comfyui_networks.py ASKED.json FOLDER OUT.npz

FOLDER has the files that ASKED names, and in given.npz the arrays that networks are asked about; ASKED["part"] names
the function here that answers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ASKED, FOLDER, OUT = sys.argv[1:4]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.cldm.cldm  # noqa: E402
import comfy.controlnet  # noqa: E402
import comfy.latent_formats  # noqa: E402
import comfy.lora  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import comfy.t2i_adapter.adapter  # noqa: E402
import comfy.text_encoders.sd2_clip  # noqa: E402
import comfy_extras.nodes_model_advanced as advanced  # type: ignore[import-not-found]  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

CPU = torch.device("cpu")
FAMILIES: dict[str, tuple[Any, Any]] = {
    "sd2": (comfy.supported_models.SD20, comfy.model_base.BaseModel),
    "sdxl": (comfy.supported_models.SDXL, comfy.model_base.SDXL),
    "refiner": (comfy.supported_models.SDXLRefiner, comfy.model_base.SDXLRefiner),
    "inpaint": (comfy.supported_models.SD15, comfy.model_base.BaseModel),
    "edit": (comfy.supported_models.SD15, comfy.model_base.SD15_instructpix2pix),
    "unet_sd1": (comfy.supported_models.SD15, comfy.model_base.BaseModel),
    "unet_sdxl": (comfy.supported_models.SDXL, comfy.model_base.SDXL),
}
HEADS = {
    "sd1": {"num_heads": 8, "num_head_channels": -1},
    "sdxl": {"num_heads": -1, "num_head_channels": 64},
}
PREFIX = "model.diffusion_model."
Given = dict[str, torch.Tensor]


def backbone(name: str) -> Any:
    """Return the model of a family that a small file's keys say."""
    tensors = load_file(f"{FOLDER}/{name}.safetensors")
    known, made = FAMILIES[name]
    config = comfy.model_detection.detect_unet_config(tensors, PREFIX)
    model = made(known({**config, "dtype": torch.float32}), comfy.model_base.ModelType.EPS)
    own = {key.removeprefix(PREFIX): t for key, t in tensors.items() if key.startswith(PREFIX)}
    model.diffusion_model.load_state_dict(own)
    if name == "inpaint":
        model.set_inpaint()
    return model.eval()


def families(asked: dict[str, Any], given: Given) -> dict[str, torch.Tensor]:
    made = {}
    for name in asked["unets"]:
        inputs = [given.get(f"{name}|{part}") for part in ("x", "timesteps", "context", "vector")]
        x, timesteps, context, vector = inputs
        made[f"{name}|output"] = backbone(name).diffusion_model(x, timesteps, context, y=vector)
    for letter, (encoder, tokenizer) in encoders(asked["sizes"]).items():
        for skip in asked["skips"]:
            encoder.reset_clip_options()
            if skip is not None:
                encoder.set_clip_options({"layer": skip})
            for i, text in enumerate(asked["texts"]):
                cond, pooled = encoder.encode_token_weights(tokenizer.tokenize_with_weights(text))
                rows = asked["rows"] + (asked["later_rows"] if cond.shape[1] > 77 else [])
                made[f"{letter}|{skip}|{i}"] = cond[:, rows]
                if letter != "l":
                    made[f"{letter}|pooled|{i}"] = pooled
    return made


def encoders(sizes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the encoders of SD 2's file and of SDXL's, by their letters, with their tokenisers."""
    tensors = {name: load_file(f"{FOLDER}/{name}.safetensors") for name in ("sd2", "sdxl")}
    sd2 = comfy.supported_models.SD20({}).process_clip_state_dict(tensors["sd2"])
    sdxl = comfy.supported_models.SDXL({}).process_clip_state_dict(tensors["sdxl"])
    told: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    # SD 2's has no name there.
    names = {"h": "", "l": "clip_l", "g": "clip_g"}
    small = {letter: {"model_options": {f"{name}_model_config": sizes[letter]}} for letter, name in names.items()}
    made = {
        "h": comfy.text_encoders.sd2_clip.SD2ClipHModel(**told, **small["h"]),
        "l": comfy.sd1_clip.SDClipModel(
            layer="hidden", layer_idx=-2, layer_norm_hidden_state=False, **told, **small["l"]
        ),
        "g": comfy.sdxl_clip.SDXLClipG(**told, **small["g"]),
    }
    tokenizers = {
        "h": comfy.text_encoders.sd2_clip.SD2ClipHTokenizer(),
        "l": comfy.sd1_clip.SDTokenizer(),
        "g": comfy.sdxl_clip.SDXLClipGTokenizer(),
    }
    for letter, file in (("h", sd2), ("l", sdxl), ("g", sdxl)):
        start = f"clip_{letter}.transformer."
        own = {key.removeprefix(start): t.clone() for key, t in file.items() if key.startswith(start)}
        missing, _ = made[letter].load_sd(own)
        assert set(missing) <= {"logit_scale", "transformer.text_projection.weight", "text_projection.weight"}, missing
    return {letter: (made[letter], tokenizers[letter]) for letter in made}


TRAININGS: dict[str, Callable[[Any], Any]] = {
    "zsnr": lambda m: advanced.ModelSamplingDiscrete().patch(m, "v_prediction", True)[0],
    "v": lambda m: advanced.ModelSamplingDiscrete().patch(m, "v_prediction", False)[0],
    "edm": lambda m: advanced.ModelSamplingContinuousEDM().patch(m, "edm", 80.0, 0.002)[0],
    "angle": lambda m: advanced.ModelSamplingContinuousV().patch(m, "v_prediction", 500.0, 0.03)[0],
}


def family_runs(asked: dict[str, Any], given: Given) -> dict[str, torch.Tensor]:
    made = {}
    for figure in asked["figures"]:
        name, case, sampler, schedule, cfg = figure.split("|")
        model = comfy.model_patcher.ModelPatcher(backbone(name), CPU, CPU)
        model = TRAININGS[case](model) if case in TRAININGS else model
        latent = given["latent"] if case == "masked" else torch.zeros(1, 4, 8, 8)
        options = {
            key: given.get(value, value) if isinstance(value, str) else value
            for key, value in asked["options"].get(case, {}).items()
        }
        conds = {
            role: [[given[f"{name}|{role}"], {"pooled_output": given[f"{role} pooled"], **options}]]
            for role in ("positive", "negative")
        }
        made[figure] = comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, asked["seed"]),
            asked["steps"],
            float(cfg),
            sampler,
            schedule,
            conds["positive"],
            conds["negative"],
            latent,
            noise_mask=given["mask"] if case == "masked" else None,
            seed=asked["seed"],
        )
    return made


def wan(asked: dict[str, Any], given: Given) -> dict[str, torch.Tensor]:
    made = {}
    for figure, case in asked["runs"].items():
        options: dict[str, Any] = {
            key: [given[one] for one in value] if isinstance(value, list) and isinstance(value[0], str) else value
            for key, value in case["options"].items()
        }
        options = {key: given[value] if isinstance(value, str) else value for key, value in options.items()}
        if "clip_vision_output" in options:
            options["clip_vision_output"] = SimpleNamespace(penultimate_hidden_states=options["clip_vision_output"])
        latents, mask = given[f"{figure} latents"], given.get(f"{figure} mask")
        made[figure] = comfy.sample.sample(
            comfy.sd.load_diffusion_model(f"{FOLDER}/{case['net']}.safetensors"),
            comfy.sample.prepare_noise(latents, asked["seed"]),
            asked["steps"],
            asked["cfg"],
            asked["sampler"],
            asked["schedule"],
            *([[given[role], options]] for role in ("positive", "negative")),
            latents,
            noise_mask=mask,
            seed=asked["seed"],
        )
    return made


def inputs(asked: dict[str, Any], given: Given) -> dict[str, torch.Tensor]:
    base = comfy.model_base
    told = SimpleNamespace(embedder=base.Timestep(256), noise_augmentor=None)
    vectors = {"sdxl": base.SDXL.encode_adm, "refiner": base.SDXLRefiner.encode_adm}
    made = {}
    for name, role, options in asked["vectors"]:
        encode = vectors[name.partition("|")[0]]
        made[name] = encode(told, pooled_output=given["pooled"], prompt_type=role, **{**asked["size"], **options})
    inpaint = SimpleNamespace(
        concat_keys=(),
        process_latent_in=comfy.latent_formats.SD15().process_in,
    )
    base.BaseModel.set_inpaint(inpaint)
    edits = {
        "edit": SimpleNamespace(process_ip2p_image_in=lambda image: image),
        "scaled": SimpleNamespace(process_ip2p_image_in=comfy.latent_formats.SDXL().process_in),
    }
    common = {"noise": torch.zeros_like(given["latents"]), "device": "cpu"}
    for name, options, mask in asked["concats"]:
        extra = {key: given[value] for key, value in options.items()}
        if name.startswith("inpaint"):
            run_mask = {} if mask is None else {"denoise_mask": given[mask]}
            latents = {"latent_image": given["latents"]}
            made[name] = base.BaseModel.concat_cond(inpaint, **common, **latents, **run_mask, **extra)
        else:
            edit = edits["scaled" if name.endswith("scaled") else "edit"]
            made[name] = base.IP2P.concat_cond(edit, **common, **extra)
    return made


def control(asked: dict[str, Any], given: Given) -> dict[str, torch.Tensor]:
    """Answer with what is added inside the backbone, every seventh number, and with the backbone's own answer."""
    made = {}
    begin = comfy.t2i_adapter.adapter.Adapter_light.__init__
    comfy.t2i_adapter.adapter.Adapter_light.__init__ = lambda self, **sizes: begin(
        self, **{**sizes, "channels": asked["light"]}
    )
    for figure, case in asked["cases"].items():
        # What a ControlNet's keys do not say is taken from the known family that they fit, and small ones fit none.
        comfy.supported_models_base.BASE.unet_extra_config = HEADS[case["family"]]
        model = backbone(f"unet_{case['family']}")
        chain = None
        for link in case["chain"]:
            chain = hinted(link, given, chain)
        x, context, vector = (given.get(f"{figure}|{part}") for part in ("x", "context", "vector"))
        levels = torch.full((x.shape[0],), case["sigma"])
        told = {"c_crossattn": context, **({} if vector is None else {"y": vector})}
        chain.pre_run(model, model.model_sampling.percent_to_sigma)
        added = chain.get_control(x, levels, told, 1, {})
        made[figure] = torch.cat([tensor[: case["rows"]].flatten() for tensor in in_order(added)])[::7]
        if case["answers"]:
            scaled = model.model_sampling.calculate_input(levels, x)
            times = model.model_sampling.timestep(levels).float()
            made[f"{figure}|eps"] = model.diffusion_model(scaled, times, context, y=vector, control=added)
    return made


def in_order(added: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Yield what is added, as the backbone meets it: it takes an adapter's from the end."""
    for kind, step in (("input", -1), ("output", 1), ("middle", 1)):
        yield from (tensor for tensor in added.get(kind, ())[::step] if tensor is not None)


def hinted(link: dict[str, Any], given: Given, before: Any) -> Any:
    net = (
        union() if link["file"] == "union" else comfy.controlnet.load_controlnet(f"{FOLDER}/{link['file']}.safetensors")
    )
    net.set_cond_hint(given[link["hint"]].movedim(-1, 1), link["strength"], tuple(link["range"]))
    if "kind" in link:
        net.set_extra_arg("control_type", [] if link["kind"] is None else [link["kind"]])
    if before is not None:
        net.set_previous_controlnet(before)
    return net


def union() -> Any:
    """Return a network that the loader does not know: it tells those of diffusers' layout by their sizes."""
    tensors = load_file(f"{FOLDER}/union.safetensors")
    config = {**comfy.model_detection.detect_unet_config(tensors, ""), **HEADS["sdxl"]}
    config.pop("out_channels", None)
    told = {"hint_channels": 3, "union_controlnet_num_control_type": tensors["task_embedding"].shape[0]}
    operations = comfy.ops.disable_weight_init
    net = comfy.cldm.cldm.ControlNet(**config, **told, dtype=torch.float32, device="cpu", operations=operations)
    names = {key: key.replace(".attn.in_proj_", ".attn.in_proj.") for key in tensors}
    net.load_state_dict({names[key]: tensor.float() for key, tensor in tensors.items()})
    return comfy.controlnet.ControlNet(net, load_device=CPU)


def lora(asked: dict[str, Any], given: Given) -> dict[str, torch.Tensor]:
    """Answer with every weight under its LoRA at each strength; torch.kron refuses factors that are not contiguous."""
    kron = torch.kron

    def contiguous(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return kron(a.contiguous(), b.contiguous())

    vars(torch)["kron"] = contiguous
    made = {}
    for i, name in enumerate(asked["names"]):
        file = load_file(f"{FOLDER}/{i}.safetensors")
        for strength in asked["strengths"]:
            read = comfy.lora.load_lora(dict(file), {"lora_unet_layer": "layer.weight"})
            patches = [(strength, patch, 1.0, None, None) for patch in read.values()]
            made[f"{name}|{strength}"] = comfy.lora.calculate_weight(patches, given[name].clone(), "layer.weight")
    return made


PARTS = {made.__name__: made for made in (families, family_runs, wan, inputs, control, lora)}


def main() -> None:
    asked = json.loads(Path(ASKED).read_text())
    given = {name: torch.from_numpy(array) for name, array in np.load(f"{FOLDER}/given.npz").items()}
    with torch.inference_mode():
        made = PARTS[asked["part"]](asked, given)
    arrays: dict[str, Any] = {name: tensor.float().numpy() for name, tensor in made.items()}
    np.savez(OUT, **arrays)


main()
