"""Make golden/found.npz and golden/found_keys.json: what ComfyUI's nodes of SDPose and RT-DETR answer in `found_cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python -m tests.parity.seeing.found_figures.
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

import comfy.latent_formats  # noqa: E402
import comfy.ldm.modules.sdpose as sdpose  # noqa: E402
import comfy.ldm.rt_detr.rtdetr_v4 as rt_detr  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy_extras.nodes_rtdetr as rt_detr_nodes  # noqa: E402
import comfy_extras.nodes_sdpose as sdpose_nodes  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402

from tests.parity.seeing import cases, found_cases  # noqa: E402

WHERE: dict[str, Any] = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}


def numbers(frames: list[dict[str, Any]], names: list[str]) -> np.ndarray[Any, Any]:
    return np.array([number for f in frames for person in f["people"] for name in names for number in person[name]])


def poses(figures: dict[str, Any], keys: dict[str, Any]) -> None:
    """Make the figures of SDPose. Its node asks for features 640 wide, and these are less."""
    net = UNetModel(**found_cases.SDPOSE_UNET, **WHERE)
    width = found_cases.SDPOSE_FEATURES
    net.heatmap_head = sdpose.HeatmapHead(
        in_channels=width,
        input_size=found_cases.SDPOSE_SIZE,
        deconv_out_channels=(width,),
        conv_out_channels=(width,),
        **WHERE,
    )
    keys["sdpose"] = {name: [*value.shape] for name, value in net.state_dict().items()}
    net.load_state_dict(cases.weights(keys["sdpose"]))
    net.eval()
    vector = comfy.model_base.Lotus.extra_conds(None, cross_attn=torch.zeros(1, 2, 1024), device="cpu")["y"].cond

    def sampled(model: Any, noise: Any, positive: Any, latent_image: Any, **_: Any) -> None:
        [patch] = model.model_options["transformer_options"]["patches"]["output_block_patch"]

        def kept(h: Any, skip: Any, options: Any) -> Any:
            if h.shape[1] == width:
                patch(SimpleNamespace(shape=(1, 640), clone=h.clone), skip, options)
            return h, skip

        x = comfy.latent_formats.SD15().process_in(latent_image)
        rows = len(x)
        net(
            x,
            torch.full((rows,), 999.0),
            context=positive[0][0].expand(rows, -1, -1),
            y=vector.expand(rows, -1),
            transformer_options={"patches": {"output_block_patch": [kept]}},
        )

    comfy.sample.sample = sampled
    model = SimpleNamespace(clone=lambda: SimpleNamespace(model_options={}), model=SimpleNamespace(diffusion_model=net))
    vae = SimpleNamespace(encode=found_cases.encoded)
    node = sdpose_nodes.SDPoseKeypointExtractor
    for name, boxes in found_cases.BOXES.items():
        # A single box is one of a list there.
        given = [[boxes]] if isinstance(boxes, dict) else boxes
        frames = node.execute(model, vae, found_cases.pictures(), 2, given).args[0]
        figures[f"poses|{name}"] = numbers(frames, list(frames[0]["people"][0]))
        figures[f"people|{name}"] = np.array([len(frame["people"]) for frame in frames])
    head = sdpose.HeatmapHead(input_size=found_cases.SDPOSE_SIZE, **WHERE)
    head.deconv_layers = head.conv_layers = head.final_layer = torch.nn.Identity()
    points, scores = head(found_cases.heatmaps("heatmaps")[None])
    figures["points"], figures["scores"] = points[0], scores[0]
    people = found_cases.people()
    for name, asked in found_cases.DRAWN.items():
        drawn = sdpose_nodes.SDPoseDrawKeypoints.execute(people, **{**found_cases.USUAL, **asked}).args[0]
        figures[f"drawn|{name}"] = (drawn * 255).round().numpy().astype(np.uint8)
    for scale, square in found_cases.FACES:
        boxes = sdpose_nodes.SDPoseFaceBBoxes.execute(people, scale, square).args[0]
        figures[f"faces|{scale} {square}"] = np.array([[*box.values()] for frame in boxes for box in frame])


def objects(figures: dict[str, Any], keys: dict[str, Any]) -> None:
    """Make the figures of RT-DETR, whose class knows one size alone."""
    given, side = found_cases.RT_DETR, found_cases.RT_DETR_SIDE
    net = rt_detr.RTv4.__new__(rt_detr.RTv4)
    torch.nn.Module.__init__(net)
    net.dtype, net.load_device = torch.float32, "cpu"
    net.num_classes, net.num_queries = 80, found_cases.RT_DETR_QUERIES
    stages = [list(stage) for stage in found_cases.RT_DETR_STAGES]
    with mock.patch("comfy.ldm.rt_detr.rtdetr_v4.HGNetv2._STAGE_CFGS", stages):
        net.backbone = rt_detr.HGNetv2(**WHERE)
    net.encoder = rt_detr.HybridEncoder(
        in_channels=net.backbone.out_channels,
        hidden_dim=given["enc_h"],
        dim_feedforward=given["enc_ff"],
        eval_spatial_size=(side, side),
        **WHERE,
    )
    net.decoder = rt_detr.DFINETransformer(
        hidden_dim=given["dec_h"],
        num_queries=net.num_queries,
        feat_channels=[given["enc_h"]] * 3,
        dim_feedforward=given["dec_ff"],
        eval_spatial_size=(side, side),
        **WHERE,
    )
    state = net.state_dict()
    fixed = ("num_batches_tracked", "anchors", "valid_mask", "up", "reg_scale", "project", "num_points_scale")
    keys["rt_detr"] = {name: [*value.shape] for name, value in state.items() if not name.endswith(fixed)}
    net.load_state_dict(state | cases.positive(cases.weights(keys["rt_detr"])))
    net.eval()
    real = comfy.utils.common_upscale
    comfy.utils.common_upscale = lambda x, width, height, *rest, **more: real(x, side, side, *rest, **more)
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=net))
    for name, asked in found_cases.OBJECTS.items():
        found = rt_detr_nodes.RTDETR_detect.execute(model, found_cases.pictures(), **asked).args[0]
        figures[f"objects|{name}"] = np.array(
            [
                [rt_detr.COCO_CLASSES.index(value) if key == "label" else value for key, value in box.items()]
                for boxes in found
                for box in boxes
            ]
        )
        figures[f"objects of|{name}"] = np.array([len(boxes) for boxes in found])


@torch.inference_mode()
def main() -> None:
    comfy.model_management.load_model_gpu = lambda patcher: None
    figures: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    poses(figures, keys)
    objects(figures, keys)
    np.savez_compressed(GOLDEN / "found.npz", **figures)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(shapes)}" for name, shapes in keys.items())
    (GOLDEN / "found_keys.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
