"""The nodes that join the latents of a video and of its sound into one of two parts, and separate them again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from serve_app.errors import NodeError
from serve_app.nested_tensor import NestedTensor, Samples
from serve_app.nodes.declare import node
from serve_app.nodes.sockets import JOINT_LATENT, LATENT
from serve_app.sampling.latents.inpaint import latent_mask

FIRST_LENGTH = 2
"""The first axis of a latent along which a sound may be cut or padded, after its rows and channels."""


@node(
    "LTXVConcatAVLatent",
    "Concat AV Latent",
    category="model/latent/ltxv",
    description="Merge a video latent and an audio latent into a joint AV latent (any AV model, e.g. LTXV or MiniMax "
    "H3).",
    return_names=("latent",),
)
def concat_av_latent(video_latent: JOINT_LATENT, audio_latent: LATENT) -> LATENT:
    """The latents of a video and of its sound as one, to be sampled together.

    A video that has a sound keeps its length of that: the new one is cut, or padded with what is to be sampled.
    """
    joined = {**video_latent, **audio_latent}
    video, audio = video_latent["samples"], audio_latent["samples"]
    masks = [_video_mask(video_latent), audio_latent.get("noise_mask")]
    if isinstance(video, NestedTensor):
        video, old, *_ = video.unbind()
        audio, masks[1] = _fitted(audio, masks[1], old.shape)
    if any(mask is not None for mask in masks):
        ones = [torch.ones_like(part[:, :1]) for part in (video, audio)]
        joined["noise_mask"] = NestedTensor([one if own is None else own for own, one in zip(masks, ones, strict=True)])
    return {**joined, "samples": NestedTensor([video, audio])}


@node(
    "LTXVSeparateAVLatent",
    "Separate AV Latent",
    category="model/latent/ltxv",
    description="Split a joint AV latent into its video and audio latents (any AV model, e.g. LTXV or MiniMax H3).",
    return_names=("video_latent", "audio_latent"),
)
def separate_av_latent(av_latent: JOINT_LATENT) -> tuple[LATENT, LATENT]:
    """A latent of two parts as those of a video and of its sound.

    Return both, each with its part of the noise mask. Errors: NodeError for a latent of one part.
    """
    samples: Samples = av_latent["samples"]
    if not isinstance(samples, NestedTensor):
        raise NodeError(f"av_latent has one part, of shape {tuple(samples.shape)}; LTXVConcatAVLatent makes one of two")
    video, audio = ({**av_latent, "samples": part} for part in samples.unbind()[:2])
    if (masks := av_latent.get("noise_mask")) is not None:
        own = masks.unbind() if isinstance(masks, NestedTensor) else [masks]
        for latent in (video, audio):
            del latent["noise_mask"]
        for latent, mask in zip((video, audio), own, strict=False):
            latent["noise_mask"] = mask
    return video, audio


def _video_mask(latent: dict[str, object]) -> Tensor | None:
    mask = latent.get("noise_mask")
    return mask.unbind()[0] if isinstance(mask, NestedTensor) else mask  # type: ignore[return-value]


def _fitted(audio: Tensor, mask: Tensor | None, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Return a sound's latents and mask, cut or padded along one axis to a shape. Errors: NodeError."""
    differing = [axis for axis in range(len(shape)) if audio.ndim != len(shape) or audio.shape[axis] != shape[axis]]
    if not differing:
        return audio, mask
    if len(differing) > 1 or differing[0] < FIRST_LENGTH:
        raise NodeError(
            f"audio_latent is {tuple(audio.shape)}, and the sound that it replaces is {tuple(shape)}: only its length "
            "may be another"
        )
    [axis] = differing
    mask = None if mask is None else latent_mask(mask, audio)
    lacking = shape[axis] - audio.shape[axis]
    if lacking < 0:
        return audio.narrow(axis, 0, shape[axis]), None if mask is None else mask.narrow(axis, 0, shape[axis])
    sides = [0, 0] * (len(shape) - 1 - axis) + [0, lacking]
    return pad(audio, sides), None if mask is None else pad(mask, sides, value=1.0)
