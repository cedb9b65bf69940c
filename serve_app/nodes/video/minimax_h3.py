"""The nodes of MiniMax H3: empty latents of a video and its sound, and what the video is made from.

A video has 24 images a second and its sound 40 latents. Its images come in clips of 17, of which the last has 5.
Source: MiniMax 2026, MiniMax-H3.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.execution.runtime import Runtime
from serve_app.execution.size import allow
from serve_app.images import Crop
from serve_app.nested_tensor import NestedTensor, parts_of
from serve_app.nodes.audio.latents import encoded
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import MAX_RESOLUTION, Autogrow, Combo, Float, InputType, Int, Text
from serve_app.nodes.model.training import patched
from serve_app.nodes.sockets import CLIP, CONDITIONING, IMAGE, JOINT_LATENT, LATENT, MODEL, RUNTIME, VAE
from serve_app.nodes.video.wan import video_vae
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import AudioVideoFlow
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.sampling.latents.latent_formats import MINIMAX_H3, MINIMAX_H3_SOUND
from serve_app.values import Audio, InterleavedText, Latent

CATEGORY = "model/conditioning/minimax"
RATE, SOUND_RATE = 24, 40
"""Images and latents of sound in a second."""
IN_CLIP, IN_LAST, OF_CLIP, OF_LAST = 17, 5, 5, 2
"""Images of a clip and of the last clip, and the latent frames of each."""
MULTIPLE = 32
"""Of sides of images: two latent cells."""
SHORT_SIDE, MOST_PIXELS = 768, 768 * 1344
"""Of reference videos."""
LARGEST_REFERENCE = 2048
"""Shorter side of a reference image."""
Kind: TypeAlias = Literal["Picture", "Video", "Audio"]
KEYFRAMES, REFERENCES = "minimax_keyframes", "minimax_refs"
"""ComfyUI's options of a conditioning."""

Width: TypeAlias = Annotated[int, Int(1344, min=32, max=MAX_RESOLUTION, step=32)]
Height: TypeAlias = Annotated[int, Int(768, min=32, max=MAX_RESOLUTION, step=32)]
_LENGTH = (
    "Frame count at 24 fps, snapped up to the model's 17k+5 grid (124 = ~5s; trained range is ~124-362, longer is "
    "untested)"
)
_GUIDE_IMAGE = (
    "Image or video frames to anchor. Multi-frame batches are anchored as a clip and cropped down to the model's valid "
    "clip lengths: 5, 22, 39... (17k + 5) frames. Batches shorter than 5 frames use only the first image."
)
_GUIDE_AUDIO = "Soundtrack to anchor starting at the same frame index, cropped to the video's remaining duration."
_GUIDE_AT = (
    "Frame index to anchor the image or the clip's first frame at. Negative values are counted from the end of the "
    "video."
)
_REFERENCE_LENGTH = "Frame count at 24 fps, (124 = ~5s, trained range is ~124-362)"
_REFERENCE_SIZE = (
    "Reference image sizing. 'match' scales each ref (down only, keeping aspect) to the generation's pixel area; 'max' "
    "uses the reference pipeline's 2048px short edge for best identity fidelity. Reference tokens ride through every "
    "sampling step, so 'max' can be several times slower."
)
_REFERENCE_IMAGE = "Reference image (downscaled to 2048 short edge if larger, never upscaled)"
_REFERENCE_VIDEO = "Reference video frames at 24 fps (2-15s)"
_REFERENCE_VIDEO_AUDIO = "Soundtrack of the same-numbered reference video"
_REFERENCE_AUDIO = "Standalone reference audio"
Length: TypeAlias = Annotated[int, Int(124, min=5, max=3600, step=17, tooltip=_LENGTH)]
Prompt: TypeAlias = Annotated[str, Text(multiline=True, dynamicPrompts=True)]


def aligned(images: int) -> int:
    """Return the least number of images that a video can have which is not below the given one."""
    least = max(IN_LAST, images)
    return least + (IN_LAST - least) % IN_CLIP


def empty(width: int, height: int, images: int) -> Latent:
    """Return empty latents of a video and its sound. images: aligned."""
    frames = (images - IN_LAST) // IN_CLIP * OF_CLIP + OF_LAST
    video = (1, MINIMAX_H3.channels, frames, height // MINIMAX_H3.factor, width // MINIMAX_H3.factor)
    sound = (1, MINIMAX_H3_SOUND.channels, 2, round(images / RATE * SOUND_RATE))
    allow(*video)
    return {"samples": NestedTensor([torch.zeros(video), torch.zeros(sound)])}


@node(
    "EmptyMiniMaxH3LatentAV",
    "Empty MiniMax H3 AV Latent",
    category="model/latent/minimax",
    description="Joint video+audio latent for MiniMax H3. Duration snaps to the model's 17k+5 frame grid at 24 fps.",
)
def empty_minimax_h3_latent_av(width: Width, height: Height, length: Length) -> LATENT:
    """Empty latents of a video and its sound; its length is rounded up to whole clips."""
    return empty(width, height, aligned(length))


@node(
    "MiniMaxH3ImageToVideo",
    "MiniMax H3 Image to Video",
    category=CATEGORY,
    return_names=("positive", "LATENT"),
)
async def minimax_h3_image_to_video(
    clip: CLIP,
    vae: VAE,
    prompt: Prompt,
    width: Width,
    height: Height,
    length: Length,
    runtime: RUNTIME,
    first_frame: IMAGE | None = None,
    last_frame: IMAGE | None = None,
) -> tuple[CONDITIONING, LATENT]:
    """A text, and the images that a video begins and ends with.

    Return the conditioning, and empty latents of the video and its sound. Errors: NodeError for another model's VAE.
    """
    images, keyframes = aligned(length), []
    items: list[tuple[Kind, Tensor | None]] = []
    ends: Sequence[tuple[Tensor | None, int, Crop]] = (
        (first_frame, 0, "disabled"),
        (last_frame, images - 1, "center"),
    )
    for frame, at, crop in ends:
        if frame is not None:
            await video_vae(runtime, vae, MINIMAX_H3)
            sized = resize(frame[:1, ..., :3], width, height, "lanczos", crop)
            items.append(("Picture", sized))
            keyframes.append({"resolved_frame_index": at, "latent": await runtime.encode(vae, sized)})
    positive = await runtime.encode_text(clip, interleaved(prompt, items))
    latent = empty(width, height, images)
    return (with_options(positive, **{KEYFRAMES: keyframes}) if keyframes else positive), latent


@node(
    "MiniMaxH3AddGuide",
    "Add Guide for MiniMax H3",
    category=CATEGORY,
    description="Anchor an image, a short clip, audio, or a clip with its soundtrack at any frame of a MiniMax H3 "
    "video. Chain several nodes to anchor several frames.",
    return_names=("positive",),
    required=("frame_idx",),
)
async def minimax_h3_add_guide(
    positive: CONDITIONING,
    latent: JOINT_LATENT,
    runtime: RUNTIME,
    vae: Annotated[
        Recipe | None, InputType("VAE", {"tooltip": "Video VAE, needed when an image is connected."})
    ] = None,
    audio_vae: Annotated[
        Recipe | None, InputType("VAE", {"tooltip": "Audio VAE, needed when an audio is connected."})
    ] = None,
    image: Annotated[Tensor | None, InputType("IMAGE", {"tooltip": _GUIDE_IMAGE})] = None,
    audio: Annotated[Audio | None, InputType("AUDIO", {"tooltip": _GUIDE_AUDIO})] = None,
    frame_idx: Annotated[int, Int(0, min=-9999, max=9999, tooltip=_GUIDE_AT)] = 0,
) -> CONDITIONING:
    """A conditioning with an image, a short video or a sound that a video has at one of its images.

    A negative number counts from the end. A video is cut to whole clips, one of less than a clip to its first image; a
    sound ends with the video. Errors: NodeError for what is not within the video, and for a missing VAE.
    """
    video, sound = _video_and_sound(latent)
    if image is None and audio is None:
        raise NodeError("a guide needs an image or a sound")
    images, of_guide = _images_of(video.shape[2]), 1
    if image is not None and len(image) >= IN_LAST:
        of_guide = _whole_clips(len(image))
    at = frame_idx if frame_idx >= 0 else images + frame_idx
    if not 0 <= at <= images - of_guide:
        raise NodeError(f"frame_idx {frame_idx} with {of_guide} images is not within the {images} images of the video")
    guide: dict[str, Any] = {"resolved_frame_index": at}
    if image is not None:
        if vae is None:
            raise NodeError("a guide with an image needs the input 'vae'")
        await video_vae(runtime, vae, MINIMAX_H3)
        height, width = (side * MINIMAX_H3.factor for side in video.shape[-2:])
        sized = resize(image[:of_guide, ..., :3], width, height, "lanczos", "center")
        guide["latent"] = await runtime.encode(vae, sized)
    if audio is not None:
        if audio_vae is None:
            raise NodeError("a guide with a sound needs the input 'audio_vae'")
        left = math.floor(sound.shape[-1] - SOUND_RATE / RATE * at)
        if left < 1:
            raise NodeError(f"frame_idx {frame_idx} is after the end of the video's sound")
        guide["audio_latent"] = (await _sound(runtime, audio_vae, audio))[..., :left].clone()
    return with_options(positive, **{KEYFRAMES: [*positive[0][1].get(KEYFRAMES, ()), guide]})


def _autogrow(kind: str, name: str, most: int, tooltip: str) -> InputType:
    one = InputType(kind, {"tooltip": tooltip})
    return Autogrow(one, name=name, prefix=f"{name}_", least=0, most=most)


@node(
    "MiniMaxH3ReferenceToVideo",
    "MiniMax H3 Reference to Video",
    category=CATEGORY,
    description="<Picture i> / <Video k> / <Audio j> reference conditioning for MiniMax H3. Use the same tags when "
    "prompting.",
    return_names=("positive", "LATENT"),
    required=("ref_image_size",),
)
async def minimax_h3_reference_to_video(
    clip: CLIP,
    vae: VAE,
    audio_vae: VAE,
    prompt: Prompt,
    width: Width,
    height: Height,
    length: Annotated[int, Int(124, min=5, max=3600, step=17, tooltip=_REFERENCE_LENGTH)],
    runtime: RUNTIME,
    ref_image_size: Annotated[str, Combo(["match", "max"], default="match", tooltip=_REFERENCE_SIZE)] = "match",
    ref_images: Annotated[Mapping[str, Tensor] | None, _autogrow("IMAGE", "ref_image", 9, _REFERENCE_IMAGE)] = None,
    ref_videos: Annotated[Mapping[str, Tensor] | None, _autogrow("IMAGE", "ref_video", 3, _REFERENCE_VIDEO)] = None,
    ref_video_audios: Annotated[
        Mapping[str, Audio] | None, _autogrow("AUDIO", "ref_video_audio", 3, _REFERENCE_VIDEO_AUDIO)
    ] = None,
    ref_audios: Annotated[Mapping[str, Audio] | None, _autogrow("AUDIO", "ref_audio", 3, _REFERENCE_AUDIO)] = None,
) -> tuple[CONDITIONING, LATENT]:
    """A text with images, videos and sounds that it refers to, as <Picture 1>, <Video 1> and <Audio 1>.

    Return the conditioning, and empty latents of the video and its sound. Errors: NodeError for another model's VAEs,
    and for a video that is too short.
    """
    images = aligned(length)
    read = _References(runtime, vae, audio_vae)
    for image in _there(ref_images):
        await read.image(image, None if ref_image_size == "max" else width * height)
    tracks = ref_video_audios or {}
    for name, video in (ref_videos or {}).items():
        if video is not None:
            await read.video(video, images, tracks.get(f"ref_video_audio_{name.rsplit('_', 1)[-1]}"))
    for audio in _there(ref_audios):
        await read.sound(audio)
    positive = await runtime.encode_text(clip, interleaved(prompt, read.items))
    latent = empty(width, height, images)
    return (with_options(positive, **{REFERENCES: read.blocks}) if read.blocks else positive), latent


@node(
    "MiniMaxH3SigmaShift",
    "ModelSamplingMiniMaxH3",
    category="model/patch/minimax",
    description="Set the video/audio flow shifts.",
    search_aliases=("sigma shift", "minimax shift"),
)
def minimax_h3_sigma_shift(
    model: MODEL,
    shift_video: Annotated[float, Float(12.0, min=0.01, max=100.0, step=0.01)],
    shift_audio: Annotated[float, Float(3.0, min=0.01, max=100.0, step=0.01)],
) -> MODEL:
    """Training on flows of a video and its sound, each with a shift of its own."""
    return patched(model, AudioVideoFlow(shift_video, sound_shift=shift_audio))


def interleaved(prompt: str, items: Sequence[tuple[Kind, Tensor | None]]) -> str | InterleavedText:
    """Return a text after what it refers to, which is numbered by kind; the encoder hears no sounds.

    items: an image (1,H,W,3), frames of a video (F,H,W,3), two a second, or None of a sound.
    """
    if not items:
        return prompt
    counts, parts = Counter[str](), list[str | Tensor]()
    for kind, frames in items:
        counts[kind] += 1
        parts.append(f"<{kind} {counts[kind]}>: ")
        if frames is not None:
            parts += _in_pairs(frames) if kind == "Video" else [frames]
    return InterleavedText((*parts, prompt))


@dataclass(slots=True)
class _References:
    """References as they are read: items for the text encoder, as `interleaved`, and blocks for the network."""

    runtime: Runtime
    vae: Recipe
    audio_vae: Recipe
    items: list[tuple[Kind, Tensor | None]] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)

    async def image(self, image: Tensor, most_pixels: int | None) -> None:
        """Add an image (B,H,W,C), its first, made smaller where it has more pixels than the bound.

        most_pixels: None: where its shorter side is longer than LARGEST_REFERENCE.
        """
        height, width = image.shape[1:3]
        most = (
            LARGEST_REFERENCE / min(height, width) if most_pixels is None else math.sqrt(most_pixels / (width * height))
        )
        scale = min(1.0, most)
        sized = resize(image[:1, ..., :3], _multiple(width * scale), _multiple(height * scale), "lanczos")
        latents = await self._encoded(sized)
        self.items.append(("Picture", sized))
        self.blocks.append({"kind": "image", **_size(latents), "latent": latents})

    async def video(self, video: Tensor, most_images: int, track: Audio | None) -> None:
        """Add a video (F,H,W,C) in whole clips, no more images than the bound, with its sound before it."""
        if (count := min(len(video), most_images)) < IN_LAST:
            raise NodeError(f"a reference video has {count} images; {IN_LAST} are the fewest, of {RATE} a second")
        width, height = _canvas(video.shape[2], video.shape[1])
        sized = resize(video[: _whole_clips(count), ..., :3], width, height, "lanczos")
        latents, sounds = await self._encoded(sized), None
        if track is not None:
            sounds = await _sound(self.runtime, self.audio_vae, track)
            self.items.append(("Audio", None))
        self.items.append(("Video", sized[:: RATE // 2]))
        length = 0 if sounds is None else sounds.shape[-1]
        block = {"kind": "video_audio" if length else "video", "latent_t": latents.shape[2], **_size(latents)}
        self.blocks.append({**block, "ref_audio_t": length, "latent": latents, "audio_latent": sounds})

    async def sound(self, audio: Audio) -> None:
        """Add a sound."""
        sounds = await _sound(self.runtime, self.audio_vae, audio)
        self.items.append(("Audio", None))
        self.blocks.append({"kind": "audio", "ref_audio_t": sounds.shape[-1], "audio_latent": sounds})

    async def _encoded(self, images: Tensor) -> Tensor:
        await video_vae(self.runtime, self.vae, MINIMAX_H3)
        return await self.runtime.encode(self.vae, images)


def _in_pairs(frames: Tensor) -> list[str | Tensor]:
    """Return frames, two a second, in pairs, each after the time of its middle; an odd last one is repeated."""
    parts: list[str | Tensor] = []
    for first in range(0, len(frames), 2):
        pair = frames[first : first + 2]
        last = first + len(pair) - 1
        parts += [f"<{(first + last) / 4:.1f} seconds>", pair if len(pair) == 2 else pair.expand(2, -1, -1, -1)]
    return parts


async def _sound(runtime: Runtime, audio_vae: Recipe, audio: Audio) -> Tensor:
    latent = await encoded(runtime, audio_vae, {**audio, "waveform": audio["waveform"][:1]})
    sounds: Tensor = latent["samples"]
    return sounds


def _video_and_sound(latent: Latent) -> Sequence[Tensor]:
    parts = parts_of(latent["samples"])
    if len(parts) != 2 or parts[0].ndim != 5 or parts[0].shape[1] != MINIMAX_H3.channels:
        shapes = " and ".join(str(tuple(part.shape)) for part in parts)
        raise NodeError(f"the latents are {shapes}; those of a MiniMax H3 video and its sound are needed")
    return parts


def _there(given: Mapping[str, Any] | None) -> list[Any]:
    return [one for one in (given or {}).values() if one is not None]


def _whole_clips(images: int) -> int:
    """Return how many of at least IN_LAST images make whole clips and a last one."""
    return images - (images - IN_LAST) % IN_CLIP


def _images_of(latent_frames: int) -> int:
    """Return how many images latent frames have."""
    clips, rest = divmod(latent_frames, OF_CLIP)
    return clips * IN_CLIP + (1 + (rest - 1) * MINIMAX_H3.frames if rest else 0)


def _multiple(side: float) -> int:
    return max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE)


def _canvas(width: int, height: int) -> tuple[int, int]:
    """Return the size of a reference video: its own, or of MOST_PIXELS at most with a shorter side of SHORT_SIDE."""
    ratio = width / height
    wide, high = (SHORT_SIDE * ratio, SHORT_SIDE) if ratio >= 1 else (SHORT_SIDE, SHORT_SIDE / ratio)
    scale = min(1.0, math.sqrt(MOST_PIXELS / (wide * high)))
    fitted = _multiple(wide * scale), _multiple(high * scale)
    return fitted if width * height >= fitted[0] * fitted[1] else (_multiple(width), _multiple(height))


def _size(latents: Tensor) -> dict[str, int]:
    return {"latent_h": latents.shape[-2], "latent_w": latents.shape[-1]}
