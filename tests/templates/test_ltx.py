"""LTX-2.3 from a text to a video with its sound, over HTTP, with tiny files under the published names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serve_app.nodes.video.value import VideoFromFile
from tests.templates.test_templates import ran, saved_of

CHECKPOINT, GEMMA = "ltx-2.3-22b-distilled-fp8.safetensors", "gemma_3_12B_it.safetensors"
FRAMES, RATE, SIDE = 17, 24, 64

PROMPT: dict[str, dict[str, Any]] = {
    name: {"class_type": kind, "inputs": inputs, "_meta": {"title": name}}
    for name, (kind, inputs) in {
        "file": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
        "texts": ("LTXAVTextEncoderLoader", {"text_encoder": GEMMA, "ckpt_name": CHECKPOINT, "device": "default"}),
        "sounds": ("LTXVAudioVAELoader", {"ckpt_name": CHECKPOINT}),
        "text": ("CLIPTextEncode", {"clip": ["texts", 0], "text": "waves break on a beach"}),
        "other": ("CLIPTextEncode", {"clip": ["texts", 0], "text": "noise"}),
        "told": ("LTXVConditioning", {"positive": ["text", 0], "negative": ["other", 0], "frame_rate": RATE}),
        "image": ("EmptyImage", {"width": SIDE, "height": SIDE, "batch_size": 1, "color": 255}),
        "given": ("LTXVPreprocess", {"image": ["image", 0], "img_compression": 18}),
        "empty": ("EmptyLTXVLatentVideo", {"width": SIDE, "height": SIDE, "length": FRAMES, "batch_size": 1}),
        "begun": (
            "LTXVImgToVideoInplace",
            {"vae": ["file", 2], "image": ["given", 0], "latent": ["empty", 0], "strength": 0.7, "bypass": False},
        ),
        "silence": (
            "LTXVEmptyLatentAudio",
            {"frames_number": FRAMES, "frame_rate": RATE, "batch_size": 1, "audio_vae": ["sounds", 0]},
        ),
        "both": ("LTXVConcatAVLatent", {"video_latent": ["begun", 0], "audio_latent": ["silence", 0]}),
        "noise": ("RandomNoise", {"noise_seed": 3}),
        "sampler": ("KSamplerSelect", {"sampler_name": "euler"}),
        "sigmas": ("ManualSigmas", {"sigmas": "1.0, 0.909375, 0.421875, 0.0"}),
        "guider": (
            "CFGGuider",
            {"model": ["file", 0], "positive": ["told", 0], "negative": ["told", 1], "cfg": 1.0},
        ),
        "sampled": (
            "SamplerCustomAdvanced",
            {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")} | {"latent_image": ["both", 0]},
        ),
        "apart": ("LTXVSeparateAVLatent", {"av_latent": ["sampled", 0]}),
        "images": (
            "VAEDecodeTiled",
            {
                "samples": ["apart", 0],
                "vae": ["file", 2],
                "tile_size": 768,
                "overlap": 64,
                "temporal_size": 4096,
                "temporal_overlap": 4,
            },
        ),
        "heard": ("LTXVAudioVAEDecode", {"samples": ["apart", 1], "audio_vae": ["sounds", 0]}),
        "video": ("CreateVideo", {"images": ["images", 0], "audio": ["heard", 0], "fps": RATE}),
        "saved": ("SaveVideo", {"video": ["video", 0], "filename_prefix": "ltx", "format": "mp4", "codec": "h264"}),
    }.items()
}


async def test_a_text_and_an_image_become_a_video_with_its_sound(tmp_path: Path) -> None:
    async with ran(PROMPT, tmp_path) as (client, outputs):
        [saved] = saved_of(outputs)
        made = VideoFromFile((await client.get("/api/view", params=saved)).content).get_components()
    assert made.images.shape == (FRAMES, SIDE, SIDE, 3)
    assert made.frame_rate == RATE
    assert made.images.std() > 0.01, "it is of one colour"
    assert made.audio is not None
    assert made.audio["sample_rate"] == 48000
    heard = made.audio["waveform"]
    assert heard.shape[1] == 2
    # The latents of 17 frames last 0.7 s; an encoder fills the last packet up.
    assert 0.6 < heard.shape[2] / 48000 < 0.8
    assert heard.std() > 0.01, "it is silent"
