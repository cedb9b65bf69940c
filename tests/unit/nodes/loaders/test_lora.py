import pytest

from serve_app.models.weights.recipes import merged_in, unmerged
from serve_app.nodes.loaders.lora import (
    lora_loader,
    lora_loader_bypass,
    lora_loader_bypass_model_only,
    lora_loader_model_only,
)
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import ClipSkip
from serve_app.recipe.weights import Lora, Merge, Share

MODEL = Recipe("backbone", "checkpoints", "a.safetensors")
CLIP = Recipe("clip", "checkpoints", "a.safetensors", (ClipSkip(-2),))


def test_a_lora_goes_to_the_end_of_both_recipes_at_strengths_of_their_own():
    model, clip = lora_loader(MODEL, CLIP, "style.safetensors", 0.8, -0.6)
    assert model.patches == (Lora("style.safetensors", 0.8),)
    assert clip.patches == (ClipSkip(-2), Lora("style.safetensors", -0.6))


@pytest.mark.parametrize(("strengths", "changed"), [((0, 0.5), (False, True)), ((0.5, 0), (True, False))])
def test_a_strength_of_zero_leaves_the_recipe_as_it_is(strengths, changed):
    made = lora_loader(MODEL, CLIP, "style.safetensors", *strengths)
    assert tuple(recipe not in (MODEL, CLIP) for recipe in made) == changed


def test_loras_are_stacked_in_the_order_they_were_loaded():
    once = lora_loader_model_only(MODEL, "a.safetensors", 1.0)
    twice = lora_loader_model_only(once, "b.safetensors", 0.5)
    assert twice.patches == (Lora("a.safetensors", 1.0), Lora("b.safetensors", 0.5))


def test_an_unmerged_lora_replaces_the_one_before_and_is_applied_last():
    model, clip = lora_loader_bypass(MODEL, CLIP, "a.safetensors", 0.5, 0)
    assert (model.patches, clip) == ((Lora("a.safetensors", 0.5, bypass=True),), CLIP)
    model = lora_loader_bypass_model_only(model, "b.safetensors", 0.7)
    model = lora_loader_model_only(model, "c.safetensors", 1.0)
    assert unmerged(model) == (Lora("c.safetensors", 1.0), Lora("b.safetensors", 0.7, bypass=True))
    assert lora_loader_bypass(model, CLIP, "a.safetensors", 0, 0) == (model, CLIP)


def test_a_merge_takes_the_other_models_weights_and_keeps_its_own_patches():
    beside = Lora("a.safetensors", 0.5, bypass=True)
    merge = Merge(MODEL, (Share("", 0.5, 0.5),))
    merged = MODEL.with_patch(beside).with_patch(merge)
    assert (merged_in(merged), unmerged(merged)) == ((merge,), (beside,))
