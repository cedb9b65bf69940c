import pytest

from serve_app.nodes.loaders.lora import LoraLoader, LoraLoaderModelOnly
from serve_app.recipe import ClipSkip, Lora, Recipe

MODEL = Recipe("backbone", "checkpoints", "a.safetensors")
CLIP = Recipe("clip", "checkpoints", "a.safetensors", (ClipSkip(-2),))


def test_a_lora_goes_to_the_end_of_both_recipes_at_strengths_of_their_own():
    model, clip = LoraLoader().load_lora(MODEL, CLIP, "style.safetensors", 0.8, -0.6)
    assert model.patches == (Lora("style.safetensors", 0.8),)
    assert clip.patches == (ClipSkip(-2), Lora("style.safetensors", -0.6))


@pytest.mark.parametrize(("strengths", "changed"), [((0, 0.5), (False, True)), ((0.5, 0), (True, False))])
def test_a_strength_of_zero_leaves_the_recipe_as_it_is(strengths, changed):
    made = LoraLoader().load_lora(MODEL, CLIP, "style.safetensors", *strengths)
    assert tuple(recipe not in (MODEL, CLIP) for recipe in made) == changed


def test_loras_are_stacked_in_the_order_they_were_loaded():
    (once,) = LoraLoaderModelOnly().load_lora_model_only(MODEL, "a.safetensors", 1.0)
    (twice,) = LoraLoaderModelOnly().load_lora_model_only(once, "b.safetensors", 0.5)
    assert twice.patches == (Lora("a.safetensors", 1.0), Lora("b.safetensors", 0.5))
