"""The judge of the shipped checkpoint's pictures, held to the renderer, which knows the answer."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from training.classifier import judge, shape_shown
from training.scenes import COLOURS, PLACES, draw_scene, is_held_out, render, single_scenes

HELD_OUT = [scene for scene in single_scenes() if is_held_out(scene)]


def test_every_rendered_scene_is_recognized_by_its_pixels():
    random = Random("judge")
    for scene in [*HELD_OUT[::4], *(draw_scene(random) for _ in range(40))]:
        verdict = judge(render(scene, random), scene)
        assert verdict.shown
        assert min(*verdict.things, verdict.background) > 0.95


def test_every_rendered_shape_is_distinguished_from_the_others():
    random = Random("shapes")
    for scene in HELD_OUT[::3]:
        assert shape_shown(render(scene, random), scene.things[0]) == scene.things[0].shape


@pytest.mark.parametrize("scene", HELD_OUT[::30])
def test_another_colour_place_or_background_does_not_match_the_prompt(scene):
    (thing,) = scene.things
    other = next(colour for colour in COLOURS if colour not in (thing.colour, scene.background))
    elsewhere = next(place for place in PLACES if place != thing.place)
    assert not judge(render(replace(scene, things=(replace(thing, colour=other),))), scene).things_shown
    assert not judge(render(replace(scene, background=other)), scene).background_shown
    farther = replace(scene, things=(replace(thing, place=elsewhere, size="small"),))
    assert not judge(render(farther), replace(scene, things=(replace(thing, size="small"),))).things_shown


def test_noise_is_no_scene():
    noise = np.random.default_rng(0).random((96, 96, 3), np.float32)
    assert not any(judge(noise, scene).shown for scene in HELD_OUT)


def test_no_training_scene_is_in_the_test_set():
    random = Random("training")
    assert not any(is_held_out(draw_scene(random)) for _ in range(500))
    assert 150 < len(HELD_OUT) < 300
