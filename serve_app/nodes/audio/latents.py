"""The nodes between AUDIO and the LATENT of a sound, by an audio VAE. Of a joint latent the last part is the sound."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.execution.runtime import Runtime
from serve_app.execution.size import allow
from serve_app.media.resampling import resample
from serve_app.nested_tensor import parts_of
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Float, InputType, Int
from serve_app.nodes.loaders.models import CheckpointFile
from serve_app.nodes.sockets import AUDIO, CONDITIONING, JOINT_LATENT, LATENT, RUNTIME, VAE
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.values import Audio, Latent, SoundTiling

LOUDEST_DEVIATION = 5.0
"""VAEDecodeAudio divides a sound by this many of its deviations, where they are more than 1."""
SAMPLES = 2048
"""Of a sound at 44.1 kHz that an empty latent covers."""
LTX = "model/latent/ltxv"
_VAE = InputType("VAE", {"display_name": "Audio VAE"})


async def audio_vae(runtime: Runtime, vae: Recipe) -> Any:
    """Return the family of an audio VAE. Errors: NodeError for another kind of VAE."""
    family = await runtime.family(vae)
    if getattr(family, "output_rate", None) is None:
        raise NodeError(f"'{vae.name}' is a VAE of images or videos, and this node takes one of sounds")
    return family


async def decoded(
    runtime: Runtime, vae: Recipe, latent: Latent, tiling: SoundTiling | None = None
) -> tuple[Tensor, int]:
    """Return the sound (B,C,T) of a latent and its rate. Errors: NodeError as `audio_vae`."""
    family = await audio_vae(runtime, vae)
    return await runtime.decode_audio(vae, parts_of(latent["samples"])[-1], tiling), family.output_rate


async def encoded(runtime: Runtime, vae: Recipe, audio: Audio | None) -> Latent:
    """Return the latent of a sound. Errors: NodeError as `audio_vae`, and for a mute video's sound."""
    family = await audio_vae(runtime, vae)
    if audio is None:
        raise NodeError("there is no audio to encode; a video without sound gives none")
    waveform: Tensor = audio["waveform"]
    return {"samples": await runtime.encode_audio(vae, resample(waveform, audio["sample_rate"], family.rate))}


@node("VAEDecodeAudio", "VAE Decode Audio", category="model/latent")
async def vae_decode_audio(samples: JOINT_LATENT, vae: VAE, runtime: RUNTIME) -> AUDIO:
    """Latents to sound. Return a sound as loud as most of it allows, at the VAE's rate or that of the latents."""
    return _bounded(*await decoded(runtime, vae, samples), samples)


@node("VAEDecodeAudioTiled", "VAE Decode Audio (Tiled)", category="model/latent", search_aliases=("latent to audio",))
async def vae_decode_audio_tiled(
    samples: JOINT_LATENT,
    vae: VAE,
    tile_size: Annotated[int, Int(512, min=32, max=8192, step=8)],
    overlap: Annotated[int, Int(64, min=0, max=1024, step=8)],
    runtime: RUNTIME,
) -> AUDIO:
    """Latents to sound, tile by tile. Return a sound as VAEDecodeAudio does."""
    return _bounded(*await decoded(runtime, vae, samples, SoundTiling(tile_size, overlap)), samples)


def _bounded(waveform: Tensor, rate: int, samples: Latent) -> Audio:
    loudness = (waveform.std(dim=(1, 2), keepdim=True) * LOUDEST_DEVIATION).clamp(min=1.0)
    return {"waveform": waveform / loudness, "sample_rate": samples.get("sample_rate", rate)}


@node("VAEEncodeAudio", "VAE Encode Audio", category="model/latent")
async def vae_encode_audio(audio: AUDIO | None, vae: VAE, runtime: RUNTIME) -> LATENT:
    """Sound to latents. Return the latents of the sound at the VAE's rate."""
    return await encoded(runtime, vae, audio)


@node("EmptyLatentAudio", "Empty Latent Audio", category="model/latent", essentials_category="Audio")
def empty_latent_audio(
    seconds: Annotated[float, Float(47.6, min=1.0, max=1000.0, step=0.1)],
    batch_size: Annotated[int, Int(1, min=1, max=4096)],
) -> LATENT:
    """Empty latents of a sound. Return as many as Stable Audio Open has; another model converts them."""
    shape = batch_size, 64, round(seconds * 44100 / SAMPLES / 2) * 2
    allow(*shape)
    return {"samples": torch.zeros(shape), "type": "audio", "downscale_ratio_temporal": SAMPLES}


@node(
    "ConditioningStableAudio",
    category="model/conditioning/stable audio",
    return_names=("positive", "negative"),
)
def conditioning_stable_audio(
    positive: CONDITIONING,
    negative: CONDITIONING,
    seconds_start: Annotated[float, Float(0.0, min=0.0, max=1000.0, step=0.1)],
    seconds_total: Annotated[float, Float(47.0, min=0.0, max=1000.0, step=0.1)],
) -> tuple[CONDITIONING, CONDITIONING]:
    """The length of a sound, for both conditionings; without it, it is that of the latents."""
    said = {"seconds_start": seconds_start, "seconds_total": seconds_total}
    return with_options(positive, **said), with_options(negative, **said)


@node("LTXVAudioVAELoader", "Load LTXV Audio VAE", category="model/loaders", return_names=("Audio VAE",))
def ltxv_audio_vae_loader(ckpt_name: CheckpointFile) -> VAE:
    """The audio VAE of a checkpoint, with its vocoder."""
    return Recipe("audio_vae", "checkpoints", ckpt_name)


@node("LTXVAudioVAEEncode", "LTXV Audio VAE Encode", category=LTX, return_names=("Audio Latent",))
async def ltxv_audio_vae_encode(audio: AUDIO | None, audio_vae: Annotated[Recipe, _VAE], runtime: RUNTIME) -> LATENT:
    """Sound to latents. Return the latents of the sound."""
    return await encoded(runtime, audio_vae, audio)


@node("LTXVAudioVAEDecode", "LTXV Audio VAE Decode", category=LTX, return_names=("Audio",))
async def ltxv_audio_vae_decode(samples: JOINT_LATENT, audio_vae: Annotated[Recipe, _VAE], runtime: RUNTIME) -> AUDIO:
    """Latents to sound. Return the sound as it is, at the vocoder's rate."""
    waveform, rate = await decoded(runtime, audio_vae, samples)
    return {"waveform": waveform, "sample_rate": rate}


@node("LTXVEmptyLatentAudio", "LTXV Empty Latent Audio", category=LTX, return_names=("Latent",))
async def ltxv_empty_latent_audio(
    frames_number: Annotated[int, Int(97, min=1, max=1000, step=1, display="number")],
    frame_rate: Annotated[
        float,
        InputType(
            "FLOAT,INT",
            {"default": 25.0, "widgetType": "FLOAT", "min": 1.0, "max": 1000.0, "step": 0.01, "display": "number"},
        ),
    ],
    batch_size: Annotated[int, Int(1, min=1, max=4096, display="number")],
    audio_vae: Annotated[Recipe, _VAE],
    runtime: RUNTIME,
) -> LATENT:
    """Empty latents of the sound of a video. Return as many as its frames take at their rate."""
    family: Any = await _ltx(runtime, audio_vae)
    count = round(frames_number / frame_rate * family.latents_per_second)
    shape = batch_size, family.latent_channels, count, family.latent_bins
    allow(*shape)
    return {"samples": torch.zeros(shape), "type": "audio"}


async def _ltx(runtime: Runtime, vae: Recipe) -> Any:
    family = await audio_vae(runtime, vae)
    if getattr(family, "latents_per_second", None) is None:
        raise NodeError(f"'{vae.name}' is {family.title}'s audio VAE, and this node takes LTX-2's")
    return family
