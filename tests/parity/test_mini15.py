"""ComfyUI 0.3.64's figures on the mini15 checkpoint (CPU, float32): ours agree to a relative error of 1e-4.

What is measured is far closer: text, network and VAE 3e-6 or better.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.models.weights import Weights
from serve_app.nodes.runtime import SamplingRequest
from serve_app.store.catalog import Catalog
from serve_app.values import ClipSkip, Recipe
from tests.parity.checkpoints import models_dir

GOLDEN = Path(__file__).parent / "golden"
FIGURES = np.load(GOLDEN / "mini15.npz")
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text())
TOLERANCE = 1e-4

BACKBONE, CLIP, VAE = (Recipe(part, "checkpoints", "mini15.safetensors") for part in ("backbone", "clip", "vae"))


def figure(name):
    return torch.from_numpy(FIGURES[name])


def assert_agrees(ours, name):
    theirs = figure(name)
    assert ours.shape == theirs.shape
    error = float((ours - theirs).norm() / theirs.norm())
    assert error <= TOLERANCE, f"{name}: relative error {error:.2e}"


@pytest.fixture(scope="module")
def weights():
    with torch.inference_mode():
        yield Weights(Catalog(models_dir("mini15")), torch.device("cpu"))


@pytest.fixture(scope="module")
def engine():
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture
def runtime(engine, weights):
    return EngineRuntime(engine, weights).bind(lambda done, steps: None)


@pytest.fixture(scope="module")
def positive(weights):
    return weights.clip(CLIP).encode([PROMPTS[1]])[0]


@pytest.fixture(scope="module")
def negative(weights):
    return weights.clip(CLIP).encode([PROMPTS[2]])[0]


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_a_text_is_encoded_as_by_comfyui(weights, index):
    ((cond, options),) = weights.clip(CLIP).encode([PROMPTS[index]])[0]
    assert_agrees(cond, f"text|{index}|cond")
    assert_agrees(options["pooled_output"], f"text|{index}|pooled")


def test_texts_encoded_together_are_encoded_as_by_comfyui(weights):
    for index, ((cond, options),) in enumerate(weights.clip(CLIP).encode(PROMPTS)):
        assert_agrees(cond, f"text|{index}|cond")
        assert_agrees(options["pooled_output"], f"text|{index}|pooled")


def test_clip_skip_takes_the_layer_comfyui_takes(weights):
    ((cond, _),) = weights.clip(CLIP.with_patch(ClipSkip(-2))).encode([PROMPTS[0]])[0]
    assert_agrees(cond, "text|clipskip2|0")


@pytest.mark.parametrize("sigma", ["14.6146", "3.2", "0.3"])
def test_the_network_denoises_as_in_comfyui(weights, positive, sigma):
    level = torch.full((2,), float(sigma))
    context = positive[0][0].expand(2, -1, -1)
    x = figure("denoise|x") * float(sigma)
    assert_agrees(weights.backbone(BACKBONE).denoise(x, level, context), f"denoise|{sigma}")


def test_rows_at_different_levels_and_padded_texts_are_denoised_as_alone(weights, positive):
    backbone = weights.backbone(BACKBONE)
    x, cond = figure("denoise|x"), positive[0][0]
    padded = torch.cat([cond, torch.full((1, 77, 768), 3.0)], dim=1)
    longer = torch.cat([cond, cond.flip(1)], dim=1)
    context = torch.cat([padded, longer])
    mask = torch.arange(154) < torch.tensor([[77], [154]])
    level = torch.tensor([14.6146, 0.3])
    together = backbone.denoise(x * level[:, None, None, None], level, context, mask)
    first = backbone.denoise(x[:1] * level[0], level[:1], cond)
    second = backbone.denoise(x[1:] * level[1], level[1:], longer)
    torch.testing.assert_close(together, torch.cat([first, second]), rtol=1e-4, atol=1e-4)


def test_latents_are_decoded_as_by_comfyui(weights):
    assert_agrees(weights.vae(VAE).decode(figure("vae|z")), "vae|decode")


def test_an_image_is_encoded_to_the_mean_as_by_comfyui(weights):
    assert_agrees(weights.vae(VAE).encode(figure("vae|image")), "vae|encode")


def request(positive, negative, sampler, schedule, steps, cfg, seed, **changes):
    settings = {"latents": torch.zeros(1, 4, 8, 8), "noise_seed": seed, **changes}
    return SamplingRequest(
        BACKBONE,
        positive=positive,
        negative=negative,
        sampler=sampler,
        schedule=schedule,
        steps=steps,
        cfg=cfg,
        seed=seed,
        **settings,
    )


@pytest.mark.parametrize(
    "name",
    [
        "ksampler|euler|normal|6|7.0|1",
        "ksampler|euler_ancestral|karras|6|5.0|2",
        "ksampler|heun|karras|4|5.0|3",
        "ksampler|dpmpp_2m|karras|6|7.0|5",
        "ksampler|lcm|sgm_uniform|4|1.5|8",
        "ksampler|ddim|ddim_uniform|6|5.0|9",
    ],
)
async def test_a_sampler_gives_comfyuis_latents(runtime, positive, negative, name):
    _, sampler, schedule, steps, cfg, seed = name.split("|")
    asked = request(positive, negative, sampler, schedule, int(steps), float(cfg), int(seed))
    assert_agrees(await runtime.sample(asked), name)


async def test_image_to_image_gives_comfyuis_latents(runtime, positive, negative):
    latents = await runtime.encode(VAE, figure("vae|image"))
    asked = request(positive, negative, "euler", "karras", 6, 5.0, 21, latents=latents, denoise=0.6)
    assert_agrees(await runtime.sample(asked), "img2img|euler|karras|6|5.0|21|0.6")


async def test_a_masked_latent_is_inpainted_as_by_comfyui(runtime, positive, negative):
    latents = await runtime.encode(VAE, figure("vae|image"))
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    asked = request(positive, negative, "dpmpp_2m", "karras", 6, 5.0, 22, latents=latents, noise_mask=mask)
    assert_agrees(await runtime.sample(asked), "inpaint_setmask|dpmpp_2m|karras|6|5.0|22|1.0")


async def test_a_window_of_steps_gives_comfyuis_latents(runtime, positive, negative):
    window = {"start_step": 2, "end_step": 6, "full_denoise": False}
    asked = request(positive, negative, "dpmpp_2m", "karras", 8, 5.0, 38, **window)
    assert_agrees(await runtime.sample(asked), "advanced")


async def test_a_batch_of_three_gives_comfyuis_latents(runtime, positive, negative):
    latents = torch.zeros(3, 4, 8, 8)
    asked = request(positive, negative, "euler_ancestral", "karras", 4, 5.0, 37, latents=latents)
    assert_agrees(await runtime.sample(asked), "batch3")


async def test_a_cfg_of_one_gives_comfyuis_latents(runtime, positive, negative):
    asked = request(positive, negative, "euler", "karras", 4, 1.0, 36)
    assert_agrees(await runtime.sample(asked), "cfg1")


async def test_the_whole_stack_gives_comfyuis_pixels_within_one(runtime):
    positive, negative = [await runtime.encode_text(CLIP, PROMPTS[index]) for index in (1, 2)]
    latents = await runtime.sample(request(positive, negative, "dpmpp_2m", "karras", 6, 5.0, 61))
    pixels = (await runtime.decode(VAE, latents))[0] * 255
    theirs = torch.from_numpy(FIGURES["image|dpmpp_2m|karras|6|5.0|61"].astype(np.int16))
    assert int((pixels.clamp(0, 255).to(torch.int16) - theirs).abs().max()) <= 1
