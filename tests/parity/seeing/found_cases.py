"""What SDPose and RT-DETR are compared with ComfyUI's on: small networks, pictures, boxes and people.

Weights and numbers are drawn from names, so both sides make them for themselves. Torch alone is imported here: the
figures are made in ComfyUI's environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tests.parity.dit_cases import noise
from tests.parity.image_cases import image

SDPOSE_UNET: Mapping[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": 1024,
    "adm_in_channels": 4,
    "num_classes": "sequential",
    "transformer_depth": [1, 0],
    "transformer_depth_output": [1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "use_temporal_attention": False,
}
"""Arguments of SDPose's UNet, of ComfyUI's class."""
SDPOSE_SIZE = (96, 128)
"""Of what it looks at here: ComfyUI's 768×1024 take long."""
SDPOSE_FEATURES = 128
PICTURES = (3, 150, 110, 3)
BOXES: Mapping[str, Any] = {
    "whole": None,
    "boxes": [
        [{"x": 10.7, "y": -4, "width": 60.5, "height": 90}, {"x": 50, "y": 20, "width": 100, "height": 129.9}],
        [],
        [{"x": 0, "y": 0, "width": 110, "height": 150}, {"x": 200, "y": 0, "width": 5, "height": 5}],
    ],
    "one box": {"x": 5, "y": 6, "width": 70, "height": 80},
}
"""What SDPoseKeypointExtractor is asked of the pictures."""
DRAWN: Mapping[str, dict[str, Any]] = {
    "usual": {},
    "feet, thick": {"draw_feet": True, "stick_width": 9, "face_point_size": 7},
    "body alone": {"draw_head": False, "draw_hands": False, "draw_face": False},
    "head alone": {"draw_body": False, "draw_hands": False},
    "all": {"score_threshold": 0.0, "stick_width": 1, "face_point_size": 1},
}
"""What SDPoseDrawKeypoints is asked, beside what it usually is."""
USUAL = {
    "draw_body": True,
    "draw_hands": True,
    "draw_face": True,
    "draw_feet": False,
    "stick_width": 4,
    "face_point_size": 3,
    "score_threshold": 0.3,
    "draw_head": True,
}
CANVAS = (210, 160)
"""Width and height of what people are drawn on."""
FACES = ((1.5, True), (3.0, False), (10.0, True))
"""What SDPoseFaceBBoxes is asked."""
HEATMAPS = (133, 32, 24)

RT_DETR_STAGES = (
    (64, 16, 32, 1, False, False, 3, 2),
    (32, 16, 64, 2, True, False, 3, 2),
    (64, 24, 96, 1, True, True, 5, 2),
    (96, 32, 128, 1, True, True, 5, 2),
)
RT_DETR: Mapping[str, Any] = {"enc_h": 64, "dec_h": 32, "enc_ff": 48, "dec_ff": 56}
RT_DETR_SIDE, RT_DETR_QUERIES = 128, 50
"""Of what it looks at here, and how many boxes it refines: ComfyUI's are 640 and 300."""
OBJECTS: Mapping[str, dict[str, Any]] = {
    "all": {"threshold": 0.0, "class_name": "all", "max_detections": 100},
    "some": {"threshold": 0.5, "class_name": "all", "max_detections": 7},
}


def pictures() -> Tensor:
    return image(PICTURES)


def encoded(pixels: Tensor) -> Tensor:
    """Return what stands for an autoencoder's latents (B,4,h,w) of images (B,H,W,3)."""
    planes = pixels.movedim(-1, 1)
    small = interpolate(planes, scale_factor=1 / 8, mode="area")
    return torch.cat([small, small.mean(dim=1, keepdim=True)], dim=1) * 8 - 4


def heatmaps(name: str) -> Tensor:
    """Return heatmaps (133,h,w) that are smooth, some of them without a value above 0."""
    rough = noise(name, (1, HEATMAPS[0], 6, 5))
    smooth = interpolate(rough, size=HEATMAPS[1:], mode="bicubic")[0]
    smooth[7] = -smooth[7].abs()
    smooth[20, 0, 0] = smooth[21, -1, -1] = 9.0
    return smooth.contiguous()


def people() -> list[dict[str, Any]]:
    """Return POSE_KEYPOINT: two frames, of two people and of one without feet, some points beyond the canvas."""
    width, height = CANVAS
    frames: list[dict[str, Any]] = []
    for frame, count in enumerate((2, 1)):
        found = []
        for number in range(count):
            person = {}
            for name, points in (
                ("pose_keypoints_2d", 18),
                ("foot_keypoints_2d", 6),
                ("face_keypoints_2d", 70),
                ("hand_right_keypoints_2d", 21),
                ("hand_left_keypoints_2d", 21),
            ):
                drawn = noise(f"{frame} {number} {name}", (points, 3))
                place = (drawn[:, :2] * 0.35 + 0.5) * torch.tensor([width, height])
                person[name] = torch.cat([place, (drawn[:, 2:] * 0.5 + 0.6)], dim=1).flatten().tolist()
            found.append(person)
        frames.append({"canvas_width": width, "canvas_height": height, "people": found})
    del frames[1]["people"][0]["foot_keypoints_2d"]
    return frames
