"""Make golden/networks.npz and golden/networks_keys.json: what ComfyUI's modules answer in `cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python -m tests.parity.networks.figures. With names, only the figures of
those networks are made anew.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, os.environ["COMFYUI_DIR"])
WANTED = set(sys.argv[1:])
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.latent_formats  # noqa: E402
import comfy.ops  # noqa: E402

from tests.parity.networks.cases import (  # noqa: E402
    BACKBONES,
    CASES,
    IMAGES,
    MAGE_FLOW_VAE,
    MULTIPLIERS,
    SIGMAS,
    VAES,
    Case,
    noise,
    weights,
)


def found(path: str) -> Any:
    """Return a class by its dotted name."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def built(path: str, arguments: dict[str, Any], **more: Any) -> Any:
    """Return a network of ComfyUI's."""
    operations = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
    return found(path)(**arguments, **operations, **more).eval()


def shapes(net: Any) -> dict[str, list[int]]:
    return {name: [*tensor.shape] for name, tensor in net.state_dict().items()}


def hunyuan(case: Case, net: Any, x: Tensor, level: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
    """As comfy.model_base.HunyuanVideo and HunyuanVideo15 ask their network."""
    beside = {}
    if case.net == "hunyuan_video15":
        model = SimpleNamespace(
            diffusion_model=net,
            latent_format=comfy.latent_formats.HunyuanVideo15(),
            process_latent_in=comfy.latent_formats.HunyuanVideo15().process_in,
        )
        concat = found("comfy.model_base.HunyuanVideo15").concat_cond(model, noise=x, device="cpu", **options)
        x = torch.cat([x, concat], dim=1)
        beside = {"txt_byt5": options.get("conditioning_byt5small"), "clip_fea": options.get("clip_vision_output")}
    guidance = torch.full((len(x),), float(options.get("guidance", 6.0)))
    return net(x, level, text, y=options.get("pooled_output"), guidance=guidance, **beside)


def lotus(case: Case, net: Any, x: Tensor, level: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
    """As comfy.model_base.Lotus."""
    vector = found("comfy.model_base.Lotus").extra_conds(None, cross_attn=text, device="cpu")["y"].cond
    return net(x, level, context=text, y=vector.expand(len(x), -1))


def longcat(case: Case, net: Any, x: Tensor, level: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
    """As comfy.model_base.LongCatImage."""
    length = float(text.shape[1])
    given = {"rope_options": {"shift_t": 1.0, "shift_y": length, "shift_x": length}}
    references = options.get("reference_latents")
    if references is not None:
        scaled = comfy.latent_formats.Flux().process_in(references)
        given_references = {"ref_latents": [scaled.expand(2, -1, -1, -1)], "ref_latents_method": "index"}
    else:
        given_references = {}
    return net(x, level, text, transformer_options=given, **given_references)


def mage(case: Case, net: Any, x: Tensor, level: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
    """As comfy.model_base.MageFlow; Flux.2's latents are not scaled."""
    references = options.get("reference_latents")
    given = {} if references is None else {"ref_latents": [references.expand(2, -1, -1, -1)]}
    return net(x, level.bfloat16(), text, **given)


def ovis(case: Case, net: Any, x: Tensor, level: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
    """As comfy.model_base.Flux."""
    return net(x, level, text)


def kandinsky(case: Case, net: Any, x: Tensor, level: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
    """As comfy.model_base.Kandinsky5 and Kandinsky5Image."""
    given = {}
    if case.net == "kandinsky5":
        concat = found("comfy.model_base.Kandinsky5").concat_cond(None, noise=x, device="cpu", **options)
        if "time_dim_replace" in options:
            begin = comfy.latent_formats.HunyuanVideo().process_in(options["time_dim_replace"])
            given = {"time_dim_replace": begin.expand(2, -1, -1, -1, -1)}
        x = torch.cat([x, concat], dim=1)
    return net(x, level, text, options["pooled_output"], **given)


def boogu(case: Case, net: Any, x: Tensor, level: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
    """As comfy.model_base.Omnigen2."""
    references = options.get("reference_latents")
    given = {}
    if references is not None:
        given = {"ref_latents": [comfy.latent_formats.Flux().process_in(references).expand(2, -1, -1, -1)]}
    return net(x, level, text, text.shape[1], **given)


def ltx_video(case: Case, net: Any, x: Tensor, level: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
    """As comfy.model_base.LTXV."""
    mask = None
    if "masked" in options:
        mask = (torch.arange(text.shape[1]) < options["masked"]).long().expand(2, -1)
    return net(x, level, text, mask, frame_rate=options.get("frame_rate", 25))


def radiance(case: Case, net: Any, x: Tensor, level: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
    """As comfy.model_base.ChromaRadiance."""
    return net(x, level, text, torch.full((len(x),), options["guidance"]))


CALLS = {
    "chroma_radiance_linear": radiance,
    "chroma_radiance_conv": radiance,
    "ltx_video": ltx_video,
    "boogu": boogu,
    "kandinsky5": kandinsky,
    "kandinsky5_image": kandinsky,
    "ovis_image": ovis,
    "mage_flow": mage,
    "longcat_image": longcat,
    "lotus": lotus,
    "hunyuan_video": hunyuan,
    "hunyuan_video15": hunyuan,
}


def mage_flow_vae(figures: dict[str, Any], keys: dict[str, Any]) -> None:
    """Add the figures of Mage-Flow's autoencoder, whose class makes no small ones."""
    module = importlib.import_module("comfy.ldm.mage_flow.vae")
    net = torch.nn.Module()
    net.latent_channels, net.downsample_factor = module.MageVAE.latent_channels, module.MageVAE.downsample_factor
    net.dconv_encoder = module.DConvEncoder(**MAGE_FLOW_VAE["encoder"])
    net.decoder_model = module.DConvDenoiser(**MAGE_FLOW_VAE["decoder"])
    named = {"dconv_encoder.": "student.dconv_encoder.", "decoder_model.": "pipeline."}
    renamed = {
        name: next(name.replace(ours, theirs, 1) for ours, theirs in named.items() if name.startswith(ours))
        for name in net.state_dict()
    }
    keys["mage_flow vae"] = {renamed[name]: [*tensor.shape] for name, tensor in net.state_dict().items()}
    drawn = weights(keys["mage_flow vae"])
    net.load_state_dict({name: drawn[theirs] for name, theirs in renamed.items()})
    for shape in IMAGES["mage_flow"]:
        latents = module.MageVAE.encode(net, noise(f"mage_flow {shape}", shape))
        figures[f"mage_flow vae {shape} encoded"] = latents.numpy()
        figures[f"mage_flow vae {shape} decoded"] = module.MageVAE.decode(net, latents).numpy()


def hunyuan_video_vae(figures: dict[str, Any], keys: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Add the figures of HunyuanVideo 1's autoencoder."""
    net = found("comfy.ldm.models.autoencoder.AutoencoderKL")(ddconfig=arguments, embed_dim=16).eval()
    keys["hunyuan_video vae"] = shapes(net)
    net.load_state_dict(weights(keys["hunyuan_video vae"]))
    for shape in IMAGES["hunyuan_video"]:
        latents = net.quant_conv(net.encoder(noise(f"hunyuan_video {shape}", shape)))[:, :16]
        figures[f"hunyuan_video vae {shape} encoded"] = latents.numpy()
        figures[f"hunyuan_video vae {shape} decoded"] = net.decoder(net.post_quant_conv(latents)).numpy()


def ltx_video_vae(figures: dict[str, Any], keys: dict[str, Any], name: str, arguments: dict[str, Any]) -> None:
    """Add the figures of one of LTX-Video's autoencoders; what it decodes has the noise of seed 0."""
    net = found("comfy.ldm.lightricks.vae.causal_video_autoencoder.VideoVAE")(**arguments).eval()
    keys[f"{name} vae"] = shapes(net)
    net.load_state_dict(weights(keys[f"{name} vae"]))
    for shape in IMAGES[name]:
        latents = net.encode(noise(f"{name} {shape}", shape))
        figures[f"{name} vae {shape} encoded"] = latents.numpy()
        torch.manual_seed(0)
        figures[f"{name} vae {shape} decoded"] = net.decode(latents).numpy()


@torch.inference_mode()
def main() -> None:
    figures = dict(np.load(GOLDEN / "networks.npz")) if (GOLDEN / "networks.npz").exists() else {}
    path = GOLDEN / "networks_keys.json"
    keys = json.loads(path.read_text()) if path.exists() else {}
    for name, (kind, arguments) in BACKBONES.items():
        if WANTED and name not in WANTED:
            continue
        net = built(kind, arguments)
        keys[name] = shapes(net)
        net.load_state_dict(weights(keys[name]))
        for case in (case for case in CASES if case.net == name):
            x, text, options = case.drawn()
            level = torch.tensor(SIGMAS) * MULTIPLIERS.get(name, 1.0)
            figures[case.name] = CALLS[name](case, net, x, level, text, options).float().numpy()
    for name, (module, arguments) in VAES.items():
        if WANTED and name not in WANTED:
            continue
        if name == "mage_flow":
            mage_flow_vae(figures, keys)
            continue
        if name.startswith("ltx_video"):
            ltx_video_vae(figures, keys, name, arguments)
            continue
        if name == "hunyuan_video":
            hunyuan_video_vae(figures, keys, arguments)
            continue
        net = torch.nn.ModuleDict(
            {half: found(f"{module}.{half.title()}")(**arguments) for half in ("encoder", "decoder")}
        )
        keys[f"{name} vae"] = shapes(net)
        net.load_state_dict(weights(keys[f"{name} vae"]))
        for shape in IMAGES[name]:
            latents = net["encoder"](noise(f"{name} {shape}", shape))
            figures[f"{name} vae {shape} encoded"] = latents.numpy()
            figures[f"{name} vae {shape} decoded"] = net["decoder"](latents).numpy()
    np.savez_compressed(GOLDEN / "networks.npz", **figures)
    path.write_text(json.dumps(keys, separators=(",", ":")))


main()
