"""SCAIL 2: a Wan that moves, or puts into a video, who is seen in references, after a video of poses.

References are frames before the video, poses tokens of their own at half its size. Masks by identity are added to both.
Source: the layers and the masks are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.concat import MASK_CHANNELS
from serve_app.models.families.shared.dit import PATCH, positions, whole_patches
from serve_app.models.families.shared.references import scaled_references
from serve_app.models.families.video.wan import Wan, WanInputs, tokens_of
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.recipe.training import Training
from serve_app.sampling.forward import Area, Canvas, crop, to_batch
from serve_app.sampling.guidance.windows import Window
from serve_app.sampling.transfer import to_device

COLOURS = 28
"""Channels of a mask: seven colours of four images each."""
_BESIDE = 120.0
"""How many tokens poses are placed to the right of the video, and references below it where they replace someone."""
_POSE, _MASK = "patch_embedding_pose", "patch_embedding_mask"
_OWN = ("subjects", "reference_mask", "pose", "pose_mask")


@dataclass(frozen=True, slots=True, eq=False)
class ScailInputs(WanInputs):
    """Conditioning inputs for B rows, beside Wan's.

    subjects: (B,20,N,h,w), the references, scaled, the main one last; reference_mask: (B,28,N+F,h,w), with those of the
    video's frames. pose: (B,20,f,H,W), scaled, of any size; pose_mask: (B,28,f,H,W). replaces: who is in the video is
    replaced.
    """

    subjects: Tensor | None = None
    reference_mask: Tensor | None = None
    pose: Tensor | None = None
    pose_mask: Tensor | None = None
    replaces: bool = False

    def within(self, area: Area | None) -> ScailInputs:
        if area is None:
            return self
        inner: Any = super(ScailInputs, self).within(area)
        half = (area[0] // 2, area[1] // 2, area[2] // 2, area[3] // 2)
        areas = zip(_OWN, (area, area, half, half), strict=True)
        own = {name: crop(rows, of) for name, of in areas if (rows := getattr(self, name)) is not None}
        found: ScailInputs = replace(inner, **own)
        return found

    def in_window(self, window: Window, kept: Sequence[int]) -> ScailInputs:
        raise NodeError("context windows are not supported for Wan SCAIL 2, whose references are frames too")


@dataclass(frozen=True, slots=True)
class WanScail(Wan):
    """A backbone of SCAIL 2. Frames that a mask keeps reach it without noise."""

    title = "Wan SCAIL 2"
    keeps_clean = True

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return f"{_MASK}.weight" in tensors.shapes and f"{_POSE}.weight" in tensors.shapes

    @classmethod
    def probe(cls, tensors: Tensors) -> WanScail:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        (fed, poses, masks) = (tensors.shape(f"{name}.weight")[1] for name in ("patch_embedding", _POSE, _MASK))
        if (fed, masks) != (poses, COLOURS) or fed != cls.latent_format.channels + MASK_CHANNELS:
            raise tensors.unsupported(
                f"reads {fed} channels of videos, {poses} of poses and {masks} of masks; supported are 20, 20 and 28"
            )
        found = super(WanScail, cls).probe(tensors)
        assert isinstance(found, WanScail)
        return found

    def table(self, tensors: Tensors | None = None) -> Table:
        return {**super(WanScail, self).table(tensors), _POSE: _POSE, _MASK: _MASK}

    def build(self) -> nn.Module:
        network, patch = super(WanScail, self).build(), (1, PATCH, PATCH)
        network.register_module(_POSE, nn.Conv3d(self.fed, self.width, patch, patch))
        network.register_module(_MASK, nn.Conv3d(COLOURS, self.width, patch, patch))
        return network

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> ScailInputs:
        """Return as `Wan.inputs`. Errors: as there, and NodeError for references, poses and masks that do not fit."""
        base = super(WanScail, self).inputs(cond, options, role, canvas, device, trained_as)
        size, scaled = canvas.latents.shape[2:], scaled_references(options, self.latent_format, canvas.rows, device)
        for one in scaled:
            if one.shape[-2:] != size[1:]:
                raise NodeError(
                    f"a reference is {tuple(one.shape[-2:])} latent cells, and the latents to sample are "
                    f"{tuple(size[1:])}; {self.title} has references of their size"
                )
        # The main reference is next to the video.
        subjects = torch.cat([*map(_shown, scaled[1:]), _shown(scaled[0])], dim=2) if scaled else None
        pose = options.get("pose_video_latent")
        if pose is not None:
            self.latent_format.check(pose.shape)
            pose = _shown(to_batch(self.latent_format.to_model(to_device(pose, device).float()), canvas.rows))
        count = 0 if subjects is None else subjects.shape[2]
        return ScailInputs(
            **{field.name: getattr(base, field.name) for field in fields(base)},
            subjects=subjects,
            reference_mask=self._mask(options, "ref_mask_28ch", (count + size[0], *size[1:]), canvas.rows, device),
            pose=pose,
            pose_mask=None
            if pose is None
            else self._mask(options, "driving_mask_28ch", pose.shape[2:], canvas.rows, device),
            replaces=not options.get("ref_mask_flag", True),
        )

    def _concat(self, options: Mapping[str, Any], canvas: Canvas) -> Tensor:
        x = canvas.latents
        kept = torch.zeros_like(x[:, :1]) if canvas.mask is None else 1 - canvas.mask
        return kept.expand(len(x), MASK_CHANNELS, *x.shape[2:])

    def _mask(
        self, options: Mapping[str, Any], name: str, size: Sequence[int], rows: int, device: torch.device
    ) -> Tensor | None:
        """Return a mask (B,28,…) of what has a size in frames, rows and columns."""
        mask: Tensor | None = options.get(name)
        if mask is None:
            return None
        mask = mask.movedim(1, 2)
        if mask.shape[1:] != (COLOURS, *size):
            raise NodeError(
                f"'{name}' is {tuple(mask.shape[1:])} channels, latent frames, rows and columns; what it masks takes "
                f"{(COLOURS, *size)}"
            )
        return to_batch(to_device(mask, device).float(), rows)

    def cells(self, x: Tensor, inputs: Any) -> int:
        """Return the cells of all frames that are computed: references, the video and poses."""
        return sum(part[:, 0].numel() for part in (x, inputs.subjects, inputs.pose) if part is not None)

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        own = (getattr(inputs, name) for name in _OWN)
        shapes = tuple(None if part is None else part.shape[1:] for part in own)
        return super(WanScail, self).group_key(x, inputs), shapes, inputs.replaces

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        tensors, dtype = dict(super(WanScail, self).call_inputs(network, rows)), network.proj_out.weight.dtype
        for name in _OWN:
            own = [getattr(one.inputs, name) for one in rows]
            tensors[name] = None if own[0] is None else torch.cat(own).to(dtype)
        return tensors

    def _positions(self, size: Sequence[int], inputs: Any) -> Tensor:
        count = 0 if inputs.subjects is None else inputs.subjects.shape[2]
        # Of a replacement, the main reference has the time of the video's first frame, and is below it.
        start, below = (max(count - 1, 0), _BESIDE) if inputs.replaces else (count, 0.0)
        down = torch.tensor([0.0, below, 0.0])
        found = [positions(size[1:], frame) + down for frame in range(count)]
        found += [positions(size[1:], start + frame) for frame in range(size[0])]
        if inputs.pose is not None:
            frames, height, width = inputs.pose.shape[2:]
            scale = torch.tensor([1.0, size[1] / height, size[2] / width])
            # Tokens that stand for several of the video's are in their middle.
            shift = (scale - 1) / 2 + torch.tensor([0.0, 0.0, _BESIDE])
            found += [positions((height, width), start + frame) * scale + shift for frame in range(frames)]
        at = torch.cat(found)
        if inputs.placed is None:
            return at
        return at * torch.tensor(inputs.placed.scale) + torch.tensor(inputs.placed.shift)

    def embedded(self, network: Any, given: Inputs) -> tuple[Tensor, int]:
        fed = torch.cat([given["x"], given["concat"]], dim=1)
        if "subjects" in given:
            fed = torch.cat([given["subjects"], fed], dim=2)
        image = network.patch_embedding(whole_patches(fed))
        if "reference_mask" in given:
            image = image + network.patch_embedding_mask(whole_patches(given["reference_mask"]))
        tokens = tokens_of(image)
        if "pose" not in given:
            return tokens, tokens.shape[1]
        pose = network.patch_embedding_pose(whole_patches(given["pose"]))
        if "pose_mask" in given:
            pose = pose + network.patch_embedding_mask(whole_patches(given["pose_mask"]))
        return torch.cat([tokens, tokens_of(pose)], dim=1), tokens.shape[1]


def _shown(latents: Tensor) -> Tensor:
    """Return latents (B,C,…) with the mask of frames without noise behind."""
    return torch.cat([latents, torch.ones_like(latents[:, :MASK_CHANNELS])], dim=1)
