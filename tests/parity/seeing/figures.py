"""Make golden/seeing.npz and golden/seeing_keys.json: what ComfyUI's nodes answer in `cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python -m tests.parity.seeing.figures.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, os.environ["COMFYUI_DIR"])
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.background_removal.birefnet as birefnet  # noqa: E402
import comfy.bg_removal_model  # noqa: E402
import comfy.ldm.depth_anything_3.model as da3  # noqa: E402
import comfy.ldm.moge.model as moge  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402
import comfy_extras.nodes_depth_anything_3 as da3_nodes  # noqa: E402
import comfy_extras.nodes_frame_interpolation as frame_nodes  # noqa: E402
import comfy_extras.nodes_moge as moge_nodes  # noqa: E402

from tests.parity.figures import thinned  # noqa: E402
from tests.parity.seeing import cases  # noqa: E402

WHERE: dict[str, Any] = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}


def loaded(network: Any, keys: dict[str, Any], name: str) -> Any:
    """Return a network with weights drawn from their names, of which the shapes are kept."""
    keys[name] = {key: [*value.shape] for key, value in network.state_dict().items()}
    network.load_state_dict(cases.weights(keys[name]))
    return network.eval()


def depths(figures: dict[str, Any], keys: dict[str, Any]) -> None:
    """Make the figures of Depth Anything 3."""
    with mock.patch.dict("comfy.ldm.depth_anything_3.model._BACKBONE_PRESETS", tiny=cases.DA3_LAYERS):
        nets = {name: loaded(da3.DepthAnything3Net(**given, **WHERE), keys, name) for name, given in cases.DA3.items()}
    made = {}
    for name, (net, inputs) in cases.DEPTHS.items():
        model = SimpleNamespace(model=SimpleNamespace(diffusion_model=nets[net]))
        made[name] = da3_nodes.DA3Inference.execute(model, cases.pictures(), **inputs).args[0]
        for part in ("depth", "sky", "confidence", "extrinsics", "intrinsics"):
            if part in made[name]:
                figures[f"{name}|{part}"] = thinned(made[name][part].numpy())
    for name, (case, output) in cases.DA3_DRAWN.items():
        figures[name] = thinned(da3_nodes.DA3Render.execute(made[case], output).args[0].numpy())


def geometry(figures: dict[str, Any], keys: dict[str, Any]) -> None:
    """Make the figures of MoGe. Files have the authors' names of the encoder's layers, which ComfyUI renames."""
    models = {}
    for name, given in cases.MOGE.items():
        net = (moge.MoGeModelV1 if name == "moge 1" else moge.MoGeModelV2)(**given, **WHERE)
        shapes = {key: [*value.shape] for key, value in net.state_dict().items() if "image_" not in key}
        keys[name] = cases.by_authors(shapes)
        state = cases.weights(keys[name]) | {k: v for k, v in net.state_dict().items() if "image_" in k}
        models[name] = moge.MoGeModel(state)
        models[name].num_tokens_range = cases.TOKENS
        raw = models[name].model(cases.pictures(2).movedim(-1, 1).contiguous(), cases.TOKENS[0])
        for part, tensor in raw.items():
            figures[f"raw {name}|{part}"] = thinned(tensor.numpy())
    made = {}
    for name, (net, inputs) in cases.MOGE_ASKED.items():
        asked = {"resolution_level": 0, "batch_size": 1, **inputs}
        found = moge_nodes.MoGeInference.execute(models[net], cases.pictures(2), **asked).args[0]
        made[name] = found
        for part in ("points", "depth", "intrinsics", "mask", "normal"):
            if part in found:
                figures[f"{name}|{part}"] = thinned(found[part].float().numpy())
    for name, output in cases.MOGE_DRAWN:
        figures[f"{name}|drawn {output}"] = thinned(moge_nodes.MoGeRender.execute(made[name], output).args[0].numpy())
    for name, (decimation, threshold) in cases.MESHES.items():
        mesh = moge_nodes.MoGePointMapToMesh.execute(made[name], 1, decimation, threshold, True).args[0]
        for part in ("vertices", "faces", "uvs"):
            figures[f"{name}|mesh {part}"] = thinned(getattr(mesh, part)[0].float().numpy())
    fov, focal = moge_nodes.MoGeGeometryToFOV.execute(made["moge 2|known"], "diagonal", "degrees").args
    figures["fov"] = np.array([fov, focal])
    around = moge_nodes.MoGePanoramaInference.execute(models["moge 2"], cases.panorama(), **cases.PANORAMA).args[0]
    for part in ("points", "depth", "mask"):
        figures[f"panorama|{part}"] = thinned(around[part].float().numpy())
    mesh = moge_nodes.MoGePointMapToMesh.execute(around, 0, 4, 0.0, False).args[0]
    figures["panorama|mesh"] = thinned(mesh.vertices[0].numpy())


def background(figures: dict[str, Any], keys: dict[str, Any]) -> None:
    """Make the figures of BiRefNet, whose class knows one size alone."""
    net = birefnet.BiRefNet.__new__(birefnet.BiRefNet)
    torch.nn.Module.__init__(net)
    net.bb = birefnet.SwinTransformer(**cases.BIREFNET, **WHERE)
    widths = [2 * cases.BIREFNET["embed_dim"] << stage for stage in (3, 2, 1, 0)]
    net.squeeze_module = torch.nn.Sequential(birefnet.BasicDecBlk(sum(widths), widths[0], **WHERE))
    net.decoder = birefnet.Decoder(widths, **WHERE)
    state = net.state_dict()
    left = ("relative_position_index", "num_batches_tracked")
    keys["birefnet"] = {name: [*value.shape] for name, value in state.items() if not name.endswith(left)}
    net.load_state_dict(state | cases.positive(cases.weights(keys["birefnet"])))
    model = comfy.bg_removal_model.BackgroundRemovalModel.__new__(comfy.bg_removal_model.BackgroundRemovalModel)
    model.image_size, model.image_mean, model.image_std = cases.BIREFNET_SIDE, [0.0] * 3, [1.0] * 3
    model.load_device, model.model, model.patcher = torch.device("cpu"), net.eval(), None
    figures["birefnet|mask"] = thinned(model.encode_image(cases.pictures(2)).numpy())


def interpolated(figures: dict[str, Any], keys: dict[str, Any]) -> None:
    """Make the figures of FILM and RIFE."""
    comfy.model_management.load_models_gpu = lambda *patchers, **options: None
    nets = {"film": frame_nodes.FILMNet(**cases.FILM), "rife": frame_nodes.IFNet(**cases.RIFE)}
    for name, net in nets.items():
        network = loaded(net, keys, name)
        patcher = SimpleNamespace(load_device="cpu", model=network, model_dtype=lambda: torch.float32)
        made = frame_nodes.FrameInterpolate.execute(patcher, cases.frames(), cases.INTERPOLATED[name])
        figures[f"{name}|frames"] = thinned(made.args[0].numpy())


@torch.inference_mode()
def main() -> None:
    comfy.model_management.load_model_gpu = lambda patcher: None
    # Weights of some of these networks are rounded to sixteen bits on a CPU too.
    comfy.model_management.text_encoder_dtype = lambda device=None: torch.float32
    figures: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    depths(figures, keys)
    geometry(figures, keys)
    background(figures, keys)
    interpolated(figures, keys)
    np.savez_compressed(GOLDEN / "seeing.npz", **figures)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(shapes)}" for name, shapes in keys.items())
    (GOLDEN / "seeing_keys.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
