"""Cameras as matrices, of what a network says of them: a translation, a quaternion and two angles of view."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-6


def decoded_cameras(encoded: Tensor, height: int, width: int) -> dict[str, Tensor]:
    """Return "extrinsics" (S,3,4), world to camera, and "intrinsics" (S,3,3) in pixels, of encodings (S,9).

    An encoding is where the camera is (3), the quaternion x, y, z, w that turns it (4), and its angles of view over
    height and width.
    """
    place, turn = encoded[:, :3].float(), encoded[:, 3:7].float()
    angles = encoded[:, 7:9].float()
    rotation = _rotations(turn / turn.norm(dim=-1, keepdim=True).clamp(min=LEAST)).transpose(1, 2)
    slopes = (angles / 2).tan().clamp(min=LEAST)
    intrinsics = torch.eye(3, device=encoded.device).repeat(len(encoded), 1, 1)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = width / 2 / slopes[:, 1], height / 2 / slopes[:, 0]
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = width / 2, height / 2
    extrinsics = torch.cat([rotation, -rotation @ place[..., None]], dim=-1)
    return {"extrinsics": extrinsics, "intrinsics": intrinsics}


def _rotations(quaternions: Tensor) -> Tensor:
    """Return the matrices (S,3,3) of quaternions (S,4) x, y, z, w, which need not be of length 1."""
    vector, real = quaternions[:, :3], quaternions[:, 3:, None]
    x, y, z = vector.unbind(-1)
    nothing = torch.zeros_like(x)
    cross = torch.unflatten(torch.stack([nothing, -z, y, z, nothing, -x, -y, x, nothing], dim=-1), -1, (3, 3))
    scale = 2 / (quaternions**2).sum(-1)[:, None, None]
    # Rodrigues: R = 1 + 2(w·K + K²) / |q|².
    made: Tensor = torch.eye(3, device=quaternions.device) + scale * (real * cross + cross @ cross)
    return made
