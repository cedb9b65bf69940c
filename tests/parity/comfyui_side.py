"""ComfyUI's side of a comparison: run by ComfyUI's own interpreter, in its directory, knowing nothing of ours.

    python comfyui_side.py CASES.json MODELS [PACKS] OUT.npz

Runs each case's nodes by calling their classes, and keeps what the target gives. PACKS: a folder of node packs.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CASES, MODELS, *PACKS, OUT = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.clip_vision  # noqa: E402
import comfy.conds  # noqa: E402
import comfy.latent_formats  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import nodes  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402


class Fixed:
    """A value that both sides are given."""

    RETURN_TYPES = ("*",)
    FUNCTION = "get"

    def get(self, kind: str, seed: int, shape: str, extra: Any = None) -> tuple[Any]:
        tensor = torch.randn([int(side) for side in shape.split(",")], generator=torch.Generator().manual_seed(seed))
        return (fixed(kind, tensor, extra),)


def fixed(kind: str, tensor: torch.Tensor, extra: Any) -> Any:
    if kind == "latent":
        return {"samples": tensor}
    if kind == "image":
        return tensor.sigmoid()
    if kind == "mask":
        return (tensor > 0).float()
    if kind == "soft mask":
        return tensor.sigmoid()
    if kind == "seen":
        output = comfy.clip_vision.Output()
        output.penultimate_hidden_states = tensor
        return output
    pooled = torch.randn(1, int(extra), generator=torch.Generator().manual_seed(9))
    return [
        [tensor, {"pooled_output": pooled, **({"unprocessed_ltxav_embeds": True} if "unprocessed" in kind else {})}]
    ]


FLOWS: dict[str, tuple[str, dict[str, float], Any]] = {
    "flux": ("FLUX", {"shift": 1.15}, comfy.latent_formats.Flux),
    "z": ("FLOW", {"shift": 3.0, "multiplier": 1.0}, comfy.latent_formats.Flux),
    "flux 2": ("FLUX", {"shift": 2.02}, comfy.latent_formats.Flux2),
    "wan": ("FLOW", {"shift": 8.0, "multiplier": 1000.0}, comfy.latent_formats.Wan21),
    "joint": ("FLUX", {"shift": 2.37}, comfy.latent_formats.LTXAV),
}


class Velocity(torch.nn.Module):
    """A network of one formula."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.dtype, self.in_channels = torch.float32, 16

    def forward(self, x: Any, timestep: torch.Tensor, context: torch.Tensor, **_: Any) -> Any:
        if isinstance(x, list):
            return [self.forward(part * (1 + i), timestep, context) for i, part in enumerate(x)]
        told, read = (value.view(-1, *[1] * (x.ndim - 1)) for value in (timestep, context.mean(dim=(1, 2))))
        return x * (0.8 + 0.2 * torch.sin(told * 0.01)) - 0.5 * torch.cos(1.5 * x) + read


class JointModel(comfy.model_base.BaseModel):  # type: ignore[misc]
    """A model whose network is given the parts of a nested latent."""

    def extra_conds(self, **given: Any) -> dict[str, Any]:
        shapes = {"latent_shapes": comfy.conds.CONDConstant(given["latent_shapes"])}
        return {**super().extra_conds(**given), **(shapes if len(given["latent_shapes"]) > 1 else {})}


class FlowModel:
    """A MODEL that samples a flow, of a kind."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "get"

    def get(self, kind: str) -> tuple[Any]:
        model_type, settings, latent_format = FLOWS[kind]
        config = comfy.supported_models_base.BASE({})
        config.sampling_settings, config.latent_format = settings, latent_format()
        model = JointModel(config, comfy.model_base.ModelType[model_type], unet_model=Velocity)
        cpu = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu),)


class SmallModel:
    """A MODEL of a small UNet's file, of two levels with attention."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "get"

    def get(self, name: str) -> tuple[Any]:
        config = comfy.supported_models.SD15(
            {
                "image_size": 32,
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 64,
                "num_res_blocks": [1, 1],
                "channel_mult": [1, 2],
                "transformer_depth": [1, 1],
                "transformer_depth_middle": 1,
                "transformer_depth_output": [1, 1, 1, 1],
                "context_dim": 768,
                "use_spatial_transformer": True,
                "legacy": False,
                "dtype": torch.float32,
            }
        )
        model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS)
        tensors = comfy.utils.load_torch_file(f"{MODELS}/checkpoints/{name}")
        prefix = "model.diffusion_model."
        model.diffusion_model.load_state_dict({key.removeprefix(prefix): t for key, t in tensors.items()})
        cpu = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu),)


class Denoised:
    """What a model denoises times `sigma` at that level."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "get"

    def get(self, model: Any, conditioning: Any, x: dict[str, torch.Tensor], sigma: float) -> tuple[Any]:
        noisy = x["samples"] * sigma
        levels = torch.full((noisy.shape[0],), sigma)
        context = conditioning[0][0].expand(noisy.shape[0], -1, -1)
        return ({"samples": model.model.apply_model(noisy, levels, c_crossattn=context)},)


OWN = {"Fixed": Fixed, "FlowModel": FlowModel, "SmallModel": SmallModel, "Denoised": Denoised}


def call(class_type: str, inputs: dict[str, Any]) -> Any:
    node_class = OWN.get(class_type) or nodes.NODE_CLASS_MAPPINGS[class_type]
    if PACKS:
        # Some of their nodes keep models for as long as the workflow has the nodes that asked for them.
        inputs = {**hidden(node_class), **inputs}
    function = getattr(node_class() if isinstance(node_class, type) else node_class, node_class.FUNCTION)
    result = function(**inputs)
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    if isinstance(result, dict):
        return result.get("result", ())
    return getattr(result, "result", result)


def hidden(node_class: Any) -> dict[str, Any]:
    """Return what a node class is told of its workflow, which has no other nodes."""
    told = {"PROMPT": {}, "UNIQUE_ID": "1"}
    declared: dict[str, Any] = node_class.INPUT_TYPES() if hasattr(node_class, "INPUT_TYPES") else {}
    return {name: told[kind] for name, kind in declared.get("hidden", {}).items() if kind in told}


def run(case: dict[str, Any], done: dict[str, Any], node_id: str) -> Any:
    node = case["nodes"][node_id]
    # Equal work is not done twice: loading takes longest.
    key = json.dumps(_unfolded(case, node_id), sort_keys=True)
    if key not in done:
        inputs = {
            name: run(case, done, value[0])[value[1]] if _is_link(value) else value
            for name, value in node["inputs"].items()
        }
        done[key] = call(node["class_type"], inputs)
    return done[key]


def _unfolded(case: dict[str, Any], node_id: str) -> Any:
    node = case["nodes"][node_id]
    return [
        node["class_type"],
        {n: [_unfolded(case, v[0]), v[1]] if _is_link(v) else v for n, v in node["inputs"].items()},
    ]


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what is kept of a value: of a conditioning its first entry's text and the pooled output."""
    if isinstance(value, list):
        [[cond, options]] = value
        yield f"{name}|cond", cond
        yield f"{name}|pooled", options["pooled_output"]
    else:
        samples: Any = value.get("samples", value.get("waveform")) if isinstance(value, dict) else value
        yield name, comfy.utils.pack_latents(samples.unbind())[0] if samples.is_nested else samples


async def with_packs() -> None:
    """Load the packs of the folder too, which look for the server that they extend."""
    import server  # type: ignore[import-not-found]

    server.PromptServer(asyncio.get_running_loop())
    folder_paths.folder_names_and_paths["custom_nodes"] = (PACKS, set())
    await nodes.init_extra_nodes(init_custom_nodes=True, init_api_nodes=False)


def main() -> None:
    if PACKS:
        asyncio.run(with_packs())
    else:
        asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    for folder in (
        "checkpoints",
        "gligen",
        "loras",
        "controlnet",
        "vae",
        "vae_approx",
        "diffusion_models",
        "upscale_models",
        "latent_upscale_models",
        "embeddings",
        "text_encoders",
        "ipadapter",
        "clip_vision",
    ):
        folder_paths.add_model_folder_path(folder, f"{MODELS}/{folder}", is_default=True)
    kept: dict[str, Any] = {}
    done: dict[str, Any] = {}
    with torch.inference_mode():
        for name, case in json.loads(Path(CASES).read_text()).items():
            try:
                value = run(case, done, case["target"])[case["slot"]]
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
                continue
            for part, tensor in tensors(name, value):
                kept[part] = tensor.detach().float().cpu().numpy()
    np.savez(OUT, **kept)


main()
