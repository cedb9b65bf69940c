"""Gemma 4 and LTX-2.5's texts against ComfyUI's, with the same weights, in float32 (golden/gemma4.npz)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serve_app.errors import NodeError
from serve_app.models.quantization.eight_bit import rotated
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import LoadedAs
from serve_app.store.models.catalog import Catalog
from serve_app.values import GenerationRequest, TokenSampling
from tests.parity import gemma4_cases
from tests.parity.dit_cases import weights
from tests.parity.figures import GOLDEN, Figures, thinned
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("gemma4")
KEYS = json.loads((GOLDEN / "gemma4_keys.json").read_text())
TOLERANCE = 3e-5
"""Of a text, which follows a thousand pads in ComfyUI."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("gemma4")
    (made / "text_encoders").mkdir()
    for name, shapes in KEYS.items():
        tensors = {**weights(shapes), "tokenizer_json": gemma4_cases.tokenizer_tensor()}
        save_file(tensors, made / "text_encoders" / f"{name}.safetensors")
    yield made
    loaded.cache_clear()


@lru_cache
def loaded(folder: Path, name: str, kind: str) -> Any:
    """Return a text encoder as a loader's type has it."""
    recipe = Recipe("clip", "text_encoders", f"{name}.safetensors", (LoadedAs(kind),))
    return cpu_weights(Catalog(folder), dtype="fp32").clip(recipe)


@torch.inference_mode()
@pytest.mark.parametrize("number", range(len(gemma4_cases.TEXTS)))
def test_a_text_of_ltx_2_5_is_comfyuis(folder: Path, number: int) -> None:
    # Its file says what it is, whatever the loader's type.
    clip = loaded(folder, "12B", "ltxv" if number else "stable_diffusion")
    text = gemma4_cases.TEXTS[number]
    assert [token for token, _ in clip.encoder.framed(text)] == FIGURES[f"12B ids {number}"].tolist()
    [[(cond, _)]] = clip.encode([text])
    FIGURES.assert_agrees(torch.from_numpy(thinned(cond.numpy())), f"12B text {number}", TOLERANCE)


@torch.inference_mode()
@pytest.mark.parametrize("name", gemma4_cases.SIZES)
def test_texts_are_generated_as_by_comfyui(folder: Path, name: str) -> None:
    for i, asked in enumerate(gemma4_cases.GENERATIONS[name]):
        clip = loaded(folder, name, "ltxv" if asked["padded"] else "stable_diffusion")
        seen = None if asked["image"] is None else gemma4_cases.image(*asked["image"])
        sampling = None if asked["sampling"] is None else TokenSampling(**asked["sampling"])
        request = GenerationRequest(
            asked["text"], asked["tokens"], sampling, asked["thinking"], asked["template"], seen
        )
        generation = clip.generation(request)
        while not generation.over:
            clip.generate([generation])
        assert generation.tokens == FIGURES[f"{name} generated {i}"].tolist(), asked
        assert generation.text == bytes(FIGURES[f"{name} said {i}"].tolist()).decode(), asked


def test_gemma_4_alone_says_that_it_encodes_no_texts(folder: Path) -> None:
    with pytest.raises(NodeError, match=r"Gemma 4 alone encodes no texts: LTX-2\.5's file has a projection"):
        loaded(folder, "E2B", "ltxv").encode(["a fox"])


@torch.inference_mode()
def test_tables_and_layers_of_an_int8_file_are_what_its_numbers_stand_for(tmp_path: Path) -> None:
    tensors = {**weights(KEYS["E2B"]), "tokenizer_json": gemma4_cases.tokenizer_tensor()}
    settings = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}
    marked = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    stored, wide = dict(tensors), dict(tensors)
    for name in tensors:
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] not in ("embed_tokens", "embed_tokens_per_layer", "q_proj", "gate_proj"):
            continue
        if "vision_model" in name:
            continue
        numbers, scale = (tensors[name] * 50).clamp(-127, 127).to(torch.int8), 0.02
        stored |= {name: numbers, f"{layer}.weight_scale": torch.tensor(scale), f"{layer}.comfy_quant": marked.clone()}
        wide[name] = rotated(numbers.float() * scale, 16)
    (tmp_path / "text_encoders").mkdir()
    made = []
    for name, file in (("stored", stored), ("wide", wide)):
        save_file(file, tmp_path / "text_encoders" / f"{name}.safetensors")
        clip = loaded(tmp_path, name, "stable_diffusion")
        generation = clip.generation(GenerationRequest("a fox", 6))
        while not generation.over:
            clip.generate([generation])
        made.append(generation.tokens)
    loaded.cache_clear()
    assert made[0] == made[1]
