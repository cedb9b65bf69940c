"""LoRAs taken out of differences of models: as ComfyUI's, under names that are read, and what they give back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from serve_app.models.families import ClipText
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.lora.adapters import merged
from serve_app.models.lora.extraction import halves, lora_file
from serve_app.models.lora.layers import parameters
from serve_app.models.lora.layouts import read
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Merge, Share
from serve_app.store.models.catalog import Catalog
from serve_app.values import Extraction
from tests.parity.dit_cases import noise
from tests.parity.figures import Figures
from tests.parity.merging_cases import DIFFERENCES, NETS, RANK, model
from tests.unit.models.sample import random_tensors

CPU = torch.device("cpu")
FIGURES = Figures("merging")
TEXT = ClipText(1, 64, 64, 77)
MINUS = (Share("", 1.0, -1.0),)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_layer_is_taken_apart_as_by_comfyui(name: str) -> None:
    up, down = halves(noise(name, DIFFERENCES[name]), RANK)
    # Which sign the two have is nobody's to say.
    FIGURES.assert_agrees(up @ down.flatten(1), f"difference|{name}", 1e-5)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root = tmp_path_factory.mktemp("models")
    for folder in ("diffusion_models", "text_encoders"):
        (root / folder).mkdir()
    for letter in "ab":
        for net in NETS:
            save_file(model(net, letter), root / "diffusion_models" / f"{net}_{letter}.safetensors")
        text = random_tensors(TEXT).items()
        file = {k.removeprefix("cond_stage_model.transformer."): noise(f"{letter} {k}", t.shape) / 8 for k, t in text}
        save_file(file, root / "text_encoders" / f"text_{letter}.safetensors")
    return Catalog(root)


def difference(part: str, name: str) -> Recipe:
    folder = "diffusion_models" if part == "backbone" else "text_encoders"
    one, other = (Recipe(part, folder, f"{name}_{letter}.safetensors") for letter in "ab")  # type: ignore[arg-type]
    return one.with_patch(Merge(other, MINUS))


@pytest.mark.parametrize(("part", "name"), [("backbone", "unet"), ("backbone", "flux"), ("clip", "text")])
@pytest.mark.parametrize("asked", [Extraction(1000), Extraction(1, whole=True), Extraction(1000, biases=False)])
def test_a_lora_of_a_difference_makes_one_model_of_the_other(
    monkeypatch: pytest.MonkeyPatch, catalog: Catalog, tmp_path: Path, part: str, name: str, asked: Extraction
) -> None:
    # With fewer kept, the largest numbers of a layer are cut, so that it is not the whole difference.
    monkeypatch.setattr("serve_app.models.lora.extraction.KEPT", 1.0)
    recipe = difference(part, name)
    model, clip = (recipe, None) if part == "backbone" else (None, recipe)
    path = tmp_path / "lora.safetensors"
    file = lora_file(catalog, model, clip, asked, CPU, lambda done, of: None)
    path.write_bytes(b"".join(bytes(piece) for piece in file))
    files = (Checkpoint(catalog.path(recipe.folder, f"{name}_{letter}.safetensors")) for letter in "ab")
    (family, one), (_, other) = (file.load(recipe.part) for file in files)
    found = read(Checkpoint(path), family.lora_names(parameters(other)), recipe.part)
    assert not found.remark
    compared = 0
    for layer, weight in other.named_parameters():
        wanted = one.get_parameter(layer).float()
        if layer not in found.adapters:
            assert layer.endswith("bias") is not asked.biases or weight.ndim < 2
            continue
        made = merged(weight.float(), [(found.adapters[layer], 1.0)])
        error = (made - wanted).norm() / (weight.float() - wanted).norm()
        # The rank of a convolution is not above its channels, so more of it is left out.
        of_a_few_cells = weight.ndim == 4 and weight.shape[2] > 1 and not asked.whole
        assert float(error) < (0.95 if of_a_few_cells else 0.1), layer
        compared += 1
    assert compared > 5


def test_each_layer_is_taken_apart_once(monkeypatch: pytest.MonkeyPatch, catalog: Catalog) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        "serve_app.models.lora.extraction.halves", lambda t, rank: calls.append(rank) or halves(t, rank)
    )
    file = lora_file(catalog, difference("backbone", "flux"), None, Extraction(4), CPU, lambda done, of: None)
    stored = load(b"".join(bytes(piece) for piece in file))
    layers = {name.rpartition(".lora_")[0] for name in stored if ".lora_" in name}
    assert len(calls) == len(layers) > 5
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
