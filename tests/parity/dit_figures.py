"""Make golden/dit.npz: what ComfyUI's transformer modules answer in every case of `dit_cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/dit_figures.py. golden/dit_keys.json gets the names
and shapes of each network's weights.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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

import comfy.latent_formats  # noqa: E402
import comfy.ldm.anima.model  # noqa: E402
import comfy.ldm.aura.mmdit  # noqa: E402
import comfy.ldm.chroma.model  # noqa: E402
import comfy.ldm.ernie.model  # noqa: E402
import comfy.ldm.flux.model  # noqa: E402
import comfy.ldm.hidream.model  # noqa: E402
import comfy.ldm.ideogram4.model  # noqa: E402
import comfy.ldm.krea2.model  # noqa: E402
import comfy.ldm.lumina.model  # noqa: E402
import comfy.ldm.models.autoencoder  # noqa: E402
import comfy.ldm.modules.diffusionmodules.mmdit  # noqa: E402
import comfy.ldm.omnigen.omnigen2  # noqa: E402
import comfy.ldm.pixart.pixartms  # noqa: E402
import comfy.ldm.qwen_image.model  # noqa: E402
import comfy.ldm.wan.vae  # noqa: E402
import comfy.lora  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.ops  # noqa: E402

from tests.parity.dit_cases import (  # noqa: E402
    ADAPTER,
    CASES,
    FRAMES,
    NETS,
    VAE,
    WAN_VAE,
    Asked,
    Case,
    asked,
    autoencoder,
    llama_states,
    noise,
    t5_tokens,
    weights,
)

MODULES: dict[str, Any] = {
    "zimage": comfy.ldm.lumina.model.NextDiT,
    "lumina2": comfy.ldm.lumina.model.NextDiT,
    "chroma": comfy.ldm.chroma.model.Chroma,
    "ernie_image": comfy.ldm.ernie.model.ErnieImageModel,
    "ideogram4": comfy.ldm.ideogram4.model.Ideogram4Transformer2DModel,
    "krea2": comfy.ldm.krea2.model.SingleStreamDiT,
    **dict.fromkeys(("qwen", "qwen_2511", "qwen_layered"), comfy.ldm.qwen_image.model.QwenImageTransformer2DModel),
    "sd3": comfy.ldm.modules.diffusionmodules.mmdit.MMDiT,
    "sd35": comfy.ldm.modules.diffusionmodules.mmdit.MMDiT,
    "anima": comfy.ldm.anima.model.Anima,
    "hidream": comfy.ldm.hidream.model.HiDreamImageTransformer2DModel,
    "auraflow": comfy.ldm.aura.mmdit.MMDiT,
    "omnigen2": comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel,
    **dict.fromkeys(("pixart", "pixart_alpha"), comfy.ldm.pixart.pixartms.PixArtMS),
}
"""ComfyUI's modules of networks that are not Flux's."""
LATENTS, WAN = comfy.latent_formats.Flux(), comfy.latent_formats.Wan21()


def network(name: str) -> Any:
    """Return ComfyUI's module for a network of `NETS`, without weights."""
    where = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
    net = MODULES.get(name, comfy.ldm.flux.model.Flux)(**NETS[name], **where)
    if name == "anima":
        net.llm_adapter = comfy.ldm.anima.model.LLMAdapter(**ADAPTER, **where)
    # In training PixArt's leaves texts out.
    return net.eval()


def answer(net: Any, case: Case, a: Asked) -> Tensor:
    """Return what a module answers."""
    name, method = case.net, case.method
    if name == "anima":
        text = a.text
        if (tokens := t5_tokens(case)) is not None:
            text = net.preprocess_text_embeds(a.text, tokens[0], tokens[1][..., None].to(a.text))
        adapted: Tensor = net(a.x, a.sigma, text)
        return adapted
    if name == "hidream":
        image = None if a.concat is None else LATENTS.process_in(a.concat).expand(2, -1, -1, -1)
        states = llama_states(case).to(a.text)
        by_experts: Tensor = net(a.x, a.sigma, a.pooled, a.text, states, image)
        return by_experts
    if name in ("zimage", "lumina2"):
        out: Tensor = net(a.x, a.sigma, a.text, a.text.shape[1])
        return out
    if name.startswith("sd3"):
        of_two_streams: Tensor = net(a.x, a.sigma, context=a.text, y=a.pooled)
        return of_two_streams
    if name in ("auraflow", "ernie_image", "ideogram4"):
        of_text_alone: Tensor = net(a.x, a.sigma, a.text)
        return of_text_alone
    if name.startswith("pixart"):
        sized: dict[str, Any] = {}
        if method:
            height, width = map(float, method.split())
            sized = {"c_size": torch.tensor([[height, width]]), "c_ar": torch.tensor([[height / width]])}
        of_noise: Tensor = net(a.x, a.sigma, a.text, **sized)
        return of_noise
    if name == "omnigen2":
        looked_at = [LATENTS.process_in(r).expand(2, -1, -1, -1) for r in a.references] or None
        beside_text: Tensor = net(a.x, a.sigma, a.text, a.text.shape[1], looked_at)
        return beside_text
    if name == "chroma":
        without_pooled: Tensor = net(a.x, a.sigma, a.text, a.guidance)
        return without_pooled
    if name == "krea2":
        given = {"ref_latents_method": method} if method else {}
        in_time: Tensor = net(a.x, a.sigma, a.text, ref_latents=[WAN.process_in(r) for r in a.references], **given)
        return in_time
    if name.startswith("qwen"):
        told_of: dict[str, Any] = {"ref_latents_method": method} if method else {}
        if a.references:
            told_of["ref_latents"] = [WAN.process_in(r).expand(2, -1, -1, -1, -1) for r in a.references]
        edited: Tensor = net(a.x, a.sigma, a.text, **told_of)
        return edited
    if name.startswith("flux2"):
        # As its model does: zeros before a shorter text.
        text = torch.nn.functional.pad(a.text, (0, 0, max(0, 512 - a.text.shape[1]), 0))
        beside: Any = [r.expand(2, -1, -1, -1) for r in a.references] or None
        second: Tensor = net(
            a.x, a.sigma, text, guidance=a.guidance, ref_latents=beside, ref_latents_method=method or "index"
        )
        return second
    told: dict[str, Any] = {"y": a.pooled, "guidance": a.guidance}
    if a.references:
        told |= {"ref_latents": [LATENTS.process_in(r).expand(2, -1, -1, -1) for r in a.references]}
        told["ref_latents_method"] = method
    x = a.x
    config = SimpleNamespace(unet_config=NETS[name])
    model = SimpleNamespace(diffusion_model=net, model_config=config, process_latent_in=LATENTS.process_in)
    options = {"noise": a.x, "device": a.x.device, "concat_latent_image": a.concat}
    if a.mask is not None:
        options["concat_mask"] = a.mask
    beside = comfy.model_base.Flux.concat_cond(model, **options)
    if beside is not None:
        x = torch.cat([x, beside], dim=1)
    answered: Tensor = net(x, a.sigma, a.text, **told)
    return answered


def in_half(net: Any) -> Any:
    """Return a copy of a module with its weights in bf16; what it has computed for itself stays as it is."""
    half = copy.deepcopy(net).bfloat16()
    for name, buffer in net.named_buffers():
        if name not in net.state_dict():
            module, _, leaf = name.rpartition(".")
            half.get_submodule(module).register_buffer(leaf, buffer, persistent=False)
    return half


KINDS = {
    "zimage": comfy.model_base.Lumina2,
    "flux": comfy.model_base.Flux,
    "flux2": comfy.model_base.Flux2,
    "krea2": comfy.model_base.Krea2,
    "qwen": comfy.model_base.QwenImage,
    "anima": comfy.model_base.Anima,
    "hidream": comfy.model_base.HiDream,
    "sd35": comfy.model_base.SD3,
    "auraflow": comfy.model_base.AuraFlow,
    "omnigen2": comfy.model_base.Omnigen2,
    "pixart": comfy.model_base.PixArt,
}
"""Networks whose names in LoRA files are kept, and what ComfyUI takes their models for."""


def lora_names(name: str, net: Any, kind: type) -> dict[str, Any]:
    """Return ComfyUI's names of layers in LoRA files -> the weight, or [it, first row, rows], of first blocks."""
    keys = [f"diffusion_model.{key}" for key in net.state_dict()]
    config = SimpleNamespace(unet_config=NETS[name])
    stub = type("Stub", (kind,), {"__init__": lambda self: None, "state_dict": lambda self: dict.fromkeys(keys)})()
    object.__setattr__(stub, "model_config", config)
    names: dict[str, Any] = {}
    for layer, target in comfy.lora.model_lora_keys_unet(stub, {}).items():
        weight, *rest = (target,) if isinstance(target, str) else target
        if any(f"blocks.{i}" in weight or f"layers.{i}" in weight or f"refiner.{i}" in weight for i in range(1, 9)):
            continue
        names[layer] = [weight, *rest[0][1:]] if rest and rest[0] else weight
    return names


def main() -> None:
    nets: dict[str, Any] = {}
    answers: dict[str, Tensor] = {}
    with torch.inference_mode():
        for name in NETS:
            nets[name] = network(name)
            nets[name].load_state_dict(weights({key: value.shape for key, value in nets[name].state_dict().items()}))
        for case in CASES:
            answers[case.name] = answer(nets[case.net], case, asked(case)).contiguous()
        for name, net in nets.items():
            # As ComfyUI runs them on a GPU: all but the levels are cast.
            case = next(case for case in CASES if case.net == name)
            a = asked(case)
            given: Any = {
                key: value.bfloat16() if key != "sigma" else value
                for key, value in vars(a).items()
                if isinstance(value, Tensor)
            }
            half = answer(in_half(net), case, replace(a, **given))
            answers[f"bf16 {case.name}"] = half.float().contiguous()
        vae = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=VAE, embed_dim=4, decoder_ddconfig={**VAE, "ch": 32})
        keys = {key: value.shape for key, value in vae.state_dict().items() if "num_batches" not in key}
        vae.load_state_dict(autoencoder(keys), strict=False)
        vae.eval()
        answers["vae decoded"] = vae.decode(noise("vae latents", (2, 16, 3, 4))).contiguous()
        answers["vae encoded"] = vae.encode(noise("vae pixels", (2, 3, 8, 12))).contiguous()
        wan = comfy.ldm.wan.vae.WanVAE(**WAN_VAE).eval()
        wan_keys = {key: value.shape for key, value in wan.state_dict().items()}
        wan.load_state_dict(weights(wan_keys))
        for frames in FRAMES:
            latents = wan.encode(noise("wan pixels", (1, 4, frames, 24, 16)))
            answers[f"wan {frames} encoded"] = latents.contiguous()
            answers[f"wan {frames} decoded"] = wan.decode(latents).contiguous()
    names = {name: lora_names(name, nets[name], kind) for name, kind in KINDS.items()}
    (GOLDEN / "dit_lora_names.json").write_text(json.dumps(names, indent=0, sort_keys=True))
    shapes = {name: {key: list(v.shape) for key, v in net.state_dict().items()} for name, net in nets.items()}
    shapes["flux2_vae"] = {key: list(shape) for key, shape in keys.items()}
    shapes["wan_vae"] = {key: list(shape) for key, shape in wan_keys.items()}
    (GOLDEN / "dit_keys.json").write_text(json.dumps(shapes, indent=0))
    arrays: Any = {name: tensor.numpy() for name, tensor in answers.items()}
    np.savez_compressed(GOLDEN / "dit.npz", **arrays)


main()
