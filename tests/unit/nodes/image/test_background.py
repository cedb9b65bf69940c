"""What the loader of background removers gives; what they find is in `tests/parity/seeing`."""

from __future__ import annotations

from serve_app.nodes.image.background import load_background_removal_model
from serve_app.recipe.recipe import Recipe


def test_a_loader_names_its_file() -> None:
    made = load_background_removal_model("a.safetensors")
    assert made == Recipe("background_remover", "background_removal", "a.safetensors")
