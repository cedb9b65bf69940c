"""Recipes answer for the patches on them."""

from __future__ import annotations

from serve_app.recipe.recipe import Recipe, tiny_vae
from serve_app.recipe.text import ClipSkip
from serve_app.recipe.training import ContinuousV, Discrete, Training
from serve_app.recipe.weights import Lora

PLAIN = Recipe("backbone", "checkpoints", "a.safetensors")


def test_of_patches_of_a_kind_the_last_counts_and_all_are_there_in_order():
    first, second = Lora("a", 1.0), Lora("b", 0.5)
    recipe = PLAIN.with_patch(first).with_patch(ClipSkip(-2)).with_patch(second).with_patch(ClipSkip(-1))
    assert recipe.all(Lora) == (first, second)
    assert recipe.last(ClipSkip) == ClipSkip(-1)
    assert (PLAIN.all(Lora), PLAIN.last(ClipSkip)) == ((), None)


def test_a_kind_may_be_one_of_several():
    recipe = PLAIN.with_patch(ContinuousV(500.0, 0.03)).with_patch(Discrete("lcm"))
    assert recipe.last(Training) == Discrete("lcm")
    assert len(recipe.all(Training)) == 2


def test_a_small_autoencoder_is_two_files():
    recipe = tiny_vae("taesd")
    assert (recipe.name, recipe.extra_files) == ("taesd_encoder.safetensors", ("taesd_decoder.safetensors",))
