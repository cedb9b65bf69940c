"""What the models that ship draw through the nodes, told from the pixels: what is shown, not only that it is.

What the embedding, the LoRA and the ControlNet that ship were trained for changes with their files alone: it is judged
in the long form.
"""

from random import Random

import numpy as np
import pytest
import torch

from serve_app.models.shipped import CHECKPOINT as TINY
from serve_app.models.shipped import SHIPPED
from serve_app.nodes.conditioning.encode import clip_text_encode
from serve_app.nodes.latent.latents import vae_decode, vae_encode
from serve_app.nodes.loaders.models import checkpoint_loader_simple
from serve_app.nodes.sampling.ksampler import ksampler
from training.classifier import hollow, judge, shape_shown
from training.control import placeless
from training.drawing import Wish, draw_all
from training.inversion import FLAG, NAME
from training.scenes import Scene, Thing, full_caption, outline, render

RED_CIRCLE = Scene((Thing("circle", "red", "large", "left"),), "blue")
SCENES = (
    RED_CIRCLE,
    Scene((Thing("square", "yellow", "large", "right"),), "purple"),
    Scene((Thing("triangle", "green", "large", "middle"),), "black"),
    Scene((Thing("circle", "black", "small", "top"),), "yellow"),
    Scene((Thing("ring", "purple", "large", "bottom"),), "green"),
)


HOLLOWED = ("circle", "square")


def share(verdicts):
    return sum(verdict.shown for verdict in verdicts) / len(verdicts)


def test_the_picture_shows_what_the_prompt_says():
    pictures = draw_all(SHIPPED, TINY, [Wish(full_caption(scene), seed) for seed, scene in enumerate(SCENES)])
    assert [judge(picture, scene).shown for picture, scene in zip(pictures, SCENES, strict=True)] == [True] * 5


@pytest.mark.long
def test_another_prompt_is_another_picture():
    """The same seed, so that only the text differs."""
    pictures = draw_all(SHIPPED, TINY, [Wish(full_caption(scene), 7) for scene in SCENES[:3]])
    for asked in SCENES[:3]:
        shown = [judge(picture, asked).shown for picture in pictures]
        assert shown == [scene == asked for scene in SCENES[:3]]


async def encoded(runtime, picture):
    _, _, vae = checkpoint_loader_simple(TINY)
    latent = await vae_encode(pixels=torch.from_numpy(picture)[None], vae=vae, runtime=runtime)
    return latent


async def changed(runtime, latent, text, denoise):
    """Sample a latent anew from its denoise share of the noise, and return the picture."""
    model, clip, vae = checkpoint_loader_simple(TINY)
    positive = await clip_text_encode(text=text, clip=clip, runtime=runtime)
    negative = await clip_text_encode(text="", clip=clip, runtime=runtime)
    latent = await ksampler(
        model=model,
        seed=1,
        steps=12,
        cfg=5.0,
        sampler_name="euler",
        scheduler="normal",
        positive=positive,
        negative=negative,
        latent_image=latent,
        denoise=denoise,
        runtime=runtime,
    )
    images = await vae_decode(samples=latent, vae=vae, runtime=runtime)
    return images[0].numpy()


@pytest.mark.parametrize("scene", SCENES)
async def test_a_picture_survives_the_vae(runtime, scene):
    _, _, vae = checkpoint_loader_simple(TINY)
    latent = await encoded(runtime, render(scene))
    images = await vae_decode(samples=latent, vae=vae, runtime=runtime)
    assert judge(images[0].numpy(), scene).shown
    assert shape_shown(images[0].numpy(), scene.things[0]) == scene.things[0].shape


async def test_little_noise_keeps_the_picture_whatever_the_prompt_and_all_of_it_follows_the_prompt(runtime):
    asked = SCENES[1]
    latent = await encoded(runtime, render(RED_CIRCLE))
    kept = await changed(runtime, latent, full_caption(asked), denoise=0.05)
    assert judge(kept, RED_CIRCLE).shown
    anew = await changed(runtime, latent, full_caption(asked), denoise=1.0)
    assert judge(anew, asked).shown


async def test_what_is_masked_is_drawn_anew_and_the_rest_stays(runtime):
    """The left half shows another thing; the right half is as it was."""
    latent = await encoded(runtime, render(Scene((), "blue")))
    mask = torch.zeros(1, 96, 96)
    mask[..., :56] = 1
    inpainted = await changed(runtime, {**latent, "noise_mask": mask}, full_caption(RED_CIRCLE), denoise=1.0)
    assert judge(inpainted, RED_CIRCLE).shown


@pytest.mark.long
def test_an_embedding_stands_for_the_scene_it_was_trained_on():
    pictures = draw_all(SHIPPED, TINY, [Wish(f"embedding:{NAME}", seed) for seed in range(4)])
    assert share([judge(picture, FLAG) for picture in pictures]) >= 0.75


@pytest.mark.long
def test_the_lora_empties_shapes_the_more_the_stronger_it_is():
    """Circles and squares: the line of a triangle or a star is as wide as what it would leave open."""
    scenes = [scene for scene in SCENES if scene.things[0].size == "large" and scene.things[0].shape in HOLLOWED]
    strengths = (0.0, 0.5, 1.0)
    wishes = [Wish(full_caption(scene), seed, lora=lora) for lora in strengths for seed, scene in enumerate(scenes)]
    pictures = iter(draw_all(SHIPPED, TINY, wishes))
    hollows = [sum(hollow(next(pictures), scene) for scene in scenes) / len(scenes) for _ in strengths]
    assert hollows[0] < 0.1
    assert hollows[0] <= hollows[1] <= hollows[2]
    assert hollows[2] > 0.6


@pytest.mark.long
def test_the_control_net_puts_a_thing_where_its_outline_is_drawn():
    """The prompt says neither place nor size; each place is asked for with the same seed."""
    random = Random("places")
    things = [Thing("circle", "red", "large", place) for place in ("left", "right", "top", "bottom")]
    scenes = [Scene((thing,), "blue") for thing in things]
    wishes = [Wish(placeless(scene, random), 3, hint=outline(scene)) for scene in scenes]
    pictures = draw_all(SHIPPED, TINY, wishes)
    assert [judge(picture, scene).shown for picture, scene in zip(pictures, scenes, strict=True)] == [True] * 4


@pytest.mark.long  # parity.test_mix and test_lora compare latents of such jobs, to less than a pixel shows
def test_a_picture_is_the_same_alone_and_among_others():
    """Different prompts, LoRA strengths and ControlNets in shared forwards; the pixels agree to one in 255."""
    wishes = [
        Wish(full_caption(SCENES[0]), 1),
        Wish(full_caption(SCENES[1]), 2, lora=1.0),
        Wish(full_caption(SCENES[2]), 3, hint=outline(SCENES[2])),
        Wish(full_caption(SCENES[3]), 4, cfg=1.0),
    ]
    together = draw_all(SHIPPED, TINY, wishes)
    for wish, picture in zip(wishes, together, strict=True):
        (alone,) = draw_all(SHIPPED, TINY, [wish])
        assert np.max(np.abs(alone - picture)) <= 1 / 255
