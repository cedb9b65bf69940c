"""Wan Animate 2: a Wan that moves who is seen in a reference as someone moves in another video.

The other video goes through the same blocks, and each frame of what is sampled attends to that of the same time too.
The reference is a frame before the first. Source: github.com/Wan-Video/Wan-Animate-2; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.models.families.family import Rows
from serve_app.models.families.shared.concat import MASK_CHANNELS
from serve_app.models.families.shared.dit import by_heads, check_text, grid, positions, stacked, there, whole_patches
from serve_app.models.families.shared.fused_blocks import attention_output
from serve_app.models.families.video.wan import Attend, Wan, WanInputs, through_block, token_angles, tokens_of
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.rotary import turns_of
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Area, Canvas, crop, to_batch
from serve_app.sampling.guidance.windows import Window
from serve_app.sampling.transfer import to_device

_OWN = ("pose", "pose_text", "pose_seen", "pose_strength", "reference_strength")


@dataclass(frozen=True, slots=True, eq=False)
class Animate2Inputs(WanInputs):
    """Conditioning inputs for B rows, beside Wan's.

    pose: (B,16,f,h,w), scaled, the video that moves them, a frame for each after the reference's; None: nothing does.
    pose_text, pose_seen: its text (B,T,D) and image features (B,N,V). pose_strength, reference_strength: (B,1,1,1), of
    what is found in either.
    """

    pose: Tensor | None = None
    pose_text: Tensor | None = None
    pose_seen: Tensor | None = None
    pose_strength: Tensor | None = None
    reference_strength: Tensor | None = None

    def within(self, area: Area | None) -> Animate2Inputs:
        if area is None:
            return self
        inner: Any = super(Animate2Inputs, self).within(area)
        found: Animate2Inputs = replace(inner, pose=None if self.pose is None else crop(self.pose, area))
        return found

    def in_window(self, window: Window, kept: Sequence[int]) -> Animate2Inputs:
        inner: Any = super(Animate2Inputs, self).in_window(window, kept)
        if self.pose is None:
            return inner  # type: ignore[no-any-return]
        # The first frame that is read is the reference, or stands for it.
        moved = [frame - 1 for frame in window.read[1:]]
        if min(moved, default=0) < 0:
            raise NodeError("a context window goes on at the video's beginning, where the reference has no pose")
        found: Animate2Inputs = replace(inner, pose=self.pose[:, :, moved])
        return found


@dataclass(frozen=True, slots=True)
class WanAnimate2(Wan):
    """A backbone of Wan Animate 2, whose tensors are those of a Wan for images; its metadata tells it from them."""

    title = "Wan Animate 2"
    kind = "Wan"
    trained_as = Flow(5.0)

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return tensors.config("transformer").get("model_type") == "animate2" and super(WanAnimate2, cls).recognises(
            tensors
        )

    @classmethod
    def probe(cls, tensors: Tensors) -> WanAnimate2:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        found = super(WanAnimate2, cls).probe(tensors)
        assert isinstance(found, WanAnimate2)
        wanted = 2 * cls.latent_format.channels + MASK_CHANNELS
        if found.fed != wanted:
            raise tensors.unsupported(f"reads {found.fed} channels; a {cls.title} reads {wanted}")
        return found

    @property
    def sharded_heads(self) -> None:  # type: ignore[override]
        """None: frames attend to others' tokens one by one."""
        return None

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> Animate2Inputs:
        """Return as `Wan.inputs`. Errors: as there, and NodeError for a video of another size."""
        base = super(WanAnimate2, self).inputs(cond, options, role, canvas, device, trained_as)
        size, rows = canvas.latents.shape[2:], canvas.rows

        def strength(name: str) -> Tensor:
            return torch.full((rows, 1, 1, 1), float(options.get(name, 1.0)), device=device)

        own: dict[str, Any] = {"reference_strength": strength("reference_strength")}
        pose: Tensor | None = options.get("pose_video_latent")
        if pose is not None:
            self.latent_format.check(pose.shape)
            wanted = (size[0] - 1, *size[1:])
            if tuple(pose.shape[2:]) != wanted:
                raise NodeError(
                    f"the pose video is {tuple(pose.shape[2:])} latent frames, rows and columns, and the latents to "
                    f"sample take {wanted}, as their first frame is the reference"
                )
            text = options.get("cross_attn_pose", cond)
            check_text(text, self.text_width, self.title)
            seen = self._seen(options.get("clip_vision_output_pose"), rows, device)
            own |= {
                "pose": to_batch(self.latent_format.to_model(to_device(pose, device).float()), rows),
                "pose_text": to_batch(to_device(text, device).float(), rows),
                "pose_seen": base.seen if seen is None else seen,
                "pose_strength": strength("pose_strength"),
            }
        return Animate2Inputs(**{field.name: getattr(base, field.name) for field in fields(base)}, **own)

    def cells(self, x: Tensor, inputs: Any) -> int:
        """Return the cells of the frames that are computed, those of the other video too."""
        return sum(part[:, 0].numel() for part in (x, inputs.pose) if part is not None)

    def group_key(self, x: Tensor, inputs: Any) -> Hashable:
        seen = None if inputs.pose_seen is None else inputs.pose_seen.shape[1:]
        return super(WanAnimate2, self).group_key(x, inputs), inputs.pose is None, seen

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        tensors, dtype = dict(super(WanAnimate2, self).call_inputs(network, rows)), network.proj_out.weight.dtype
        for name in _OWN:
            own = [getattr(one.inputs, name) for one in rows]
            tensors[name] = None if own[0] is None else stacked([part.to(dtype) for part in own])
        if (first := rows[0].inputs).pose is not None:
            frames, height, width = first.pose.shape[2:]
            beside = torch.tensor([1.0, 0.0, float(grid(height, width)[1])])
            at = [positions((height, width), frame) + beside for frame in range(frames)]
            tensors["pose at"] = to_device(torch.cat(at), rows[0].x.device)
            tensors["pose mask"] = by_heads(there([one.inputs.pose_text.to(dtype) for one in rows]))
        return tensors

    def beside(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Callable[[Any], Attend]:
        """Return what takes the other video through each block, and has frames attend to it there."""
        height, width = grid(*given["x"].shape[-2:])
        cells, of_reference = height * width, given["reference_strength"]
        if "pose" not in given:
            return lambda block: lambda q, k, v: attention_output(q, k, _scaled(v, cells, of_reference))
        pose = given["pose"]
        known = torch.cat([pose, torch.ones_like(pose[:, :MASK_CHANNELS]), pose], dim=1)
        tokens = tokens_of(network.patch_embedding(whole_patches(known)))
        _, time = self.times(network, torch.ones(len(pose), 1, device=pose.device), pose.dtype)
        read = self.read(network, given["pose_text"], given.get("pose mask"), given.get("pose_seen"))
        turns, shards = turns_of(token_angles(given["pose at"])), sharding(tokens.shape[1])

        def through(block: Any) -> Attend:
            nonlocal tokens
            keys: Tensor
            values: Tensor

            def noted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                nonlocal keys, values
                keys, values = k, v * given["pose_strength"]
                return attention_output(q, k, v)

            tokens = through_block(block, tokens, time, read, turns, shards, noted)

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                v = _scaled(v, cells, of_reference)
                found = [attention_output(q[:, :cells], k, v)]
                for first in range(cells, q.shape[1], cells):
                    then = slice(first - cells, first)
                    found.append(
                        attention_output(
                            q[:, first : first + cells],
                            torch.cat([k, keys[:, then]], dim=1),
                            torch.cat([v, values[:, then]], dim=1),
                        )
                    )
                return torch.cat(found, dim=1)

            return attend

        return through


def _scaled(values: Tensor, cells: int, strength: Tensor) -> Tensor:
    """Return values (R,n,H,d) of which those of the first frame are scaled."""
    return torch.cat([values[:, :cells] * strength, values[:, cells:]], dim=1)
