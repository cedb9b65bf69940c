"""Models merged into one: what ComfyUI makes of them, what such weights share, what they take, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families import ClipText, Sd, Wan
from serve_app.models.files.layout import joined, origins
from serve_app.models.kernels.packing import plain
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.weights.loading import mixture
from serve_app.models.weights.recipes import part_files
from serve_app.models.weights.weights import Weights
from serve_app.nodes.model.merging import MODELS, PARTS, merged
from serve_app.nodes.registry import BUILTIN
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete
from serve_app.recipe.weights import Lora, Scale, Share
from serve_app.store.models.catalog import Catalog
from tests.parity.figures import Figures, thinned
from tests.parity.merging_cases import CASES, NETS, Case, lora, model
from tests.unit.models.sample import cpu_weights, random_tensors

FIGURES = Figures("merging")
TEXT = ClipText(1, 64, 64, 77)
HALF = Share("", 0.5, 0.5)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root = tmp_path_factory.mktemp("models")
    for folder in ("diffusion_models", "loras", "text_encoders"):
        (root / folder).mkdir()
    for net in NETS:
        save_file(lora(net), root / "loras" / f"{net}.safetensors")
        for letter in "abc":
            save_file(model(net, letter), root / "diffusion_models" / f"{net}_{letter}.safetensors")
    text = {name.removeprefix("cond_stage_model.transformer."): t for name, t in random_tensors(TEXT).items()}
    save_file(text, root / "text_encoders" / "a.safetensors")
    save_file({name: t.roll(1, 0) for name, t in text.items()}, root / "text_encoders" / "b.safetensors")
    return Catalog(root)


def backbone(name: str) -> Recipe:
    return Recipe("backbone", "diffusion_models", f"{name}.safetensors")


def made(net: str, case: Case | str) -> Recipe:
    """Return the recipe that a case makes, by the node classes."""
    if isinstance(case, str):
        return backbone(f"{net}_{case}")
    name, given = case
    models = [made(net, one) for one in given if not isinstance(one, dict)]
    settings: dict[str, float] = next((one for one in given if isinstance(one, dict)), {})
    if name == "lora":
        return models[0].with_lora(f"{net}.safetensors", settings["strength"])
    node: Any = BUILTIN[name]()
    if name.startswith(("ModelMergeSD1", "ModelMergeFlux1")):
        # The figures' cases give some of a node's ratios, the first of which counts for all others.
        first = next(iter(settings.values()))
        settings = {part: settings.get(part, first) for part in (*settings, *PARTS[name])}
    [recipe] = node.merge(*models, **settings)
    return recipe


def published(catalog: Catalog, recipe: Recipe) -> dict[str, Tensor]:
    """Return a recipe's weights under the names of the published file."""
    mixed = mixture(recipe, part_files(catalog, recipe, whole=True))
    found = origins(mixed.names, mixed.family.table())
    return {theirs: joined([(mixed.tensor(place.name), place) for place in places]) for theirs, places in found.items()}


@pytest.mark.parametrize("case", list(CASES))
def test_weights_are_merged_as_comfyui_does(catalog: Catalog, case: str) -> None:
    net, nodes = CASES[case]
    weights = published(catalog, made(net, nodes))
    named = [name for name in FIGURES.names if name.startswith(f"{case}|")]
    assert len(named) > 5
    for name in named:
        FIGURES.assert_agrees(torch.from_numpy(thinned(weights[name.split("|")[1]].numpy())), name, 1e-6)


def parameters(held: Weights, recipe: Recipe) -> dict[str, Tensor]:
    """Return a backbone's weights on its device by the network's names."""
    module = held.backbone(recipe).network.module
    found = {name: getattr(plain(layer), "weight", None) for name, layer in module.named_modules()}
    return {name: weight for name, weight in found.items() if isinstance(weight, Tensor)}


def test_what_is_loaded_has_the_merged_weights(catalog: Catalog) -> None:
    recipe = merged(backbone("unet_a"), backbone("unet_b"), Share("", 0.3, 0.7))
    held = cpu_weights(catalog)
    a, b = (parameters(cpu_weights(catalog), backbone(f"unet_{letter}")) for letter in "ab")
    for name, weight in parameters(held, recipe).items():
        torch.testing.assert_close(weight, 0.3 * a[name] + 0.7 * b[name])


def test_merged_weights_take_what_one_model_takes_and_count_before_they_are_loaded(catalog: Catalog) -> None:
    recipe = merged(backbone("unet_a"), backbone("unet_b"), HALF)
    one, held = cpu_weights(catalog), cpu_weights(catalog)
    one.backbone(backbone("unet_a"))
    held.backbone(recipe)
    assert held.resident_bytes == one.resident_bytes > 0
    assert list(held.needs.of(recipe).nbytes.values()) == [one.resident_bytes]


def test_equal_merges_are_one_network_whatever_else_the_models_carry(catalog: Catalog) -> None:
    held = cpu_weights(catalog)
    a, b = backbone("unet_a"), backbone("unet_b")
    first = merged(a, b, HALF)
    second = merged(a.with_patch(Discrete("v_prediction")), b.with_patch(Discrete("v_prediction")), HALF)
    one, other = held.backbone(first), held.backbone(second)
    assert one.network is other.network
    assert one.prediction != other.prediction
    reverse = merged(b, a, HALF)
    assert held.backbone(reverse).network is not one.network


def test_a_lora_after_a_merge_stays_unmerged_and_one_before_is_part_of_it(catalog: Catalog) -> None:
    held = cpu_weights(catalog)
    plainly = merged(backbone("unet_a"), backbone("unet_b"), HALF)
    within = merged(backbone("unet_a").with_lora("unet.safetensors", 1.0), backbone("unet_b"), HALF)
    beside = plainly.with_lora("unet.safetensors", 0.5)
    key = held.backbone(plainly).key
    assert held.backbone(beside).key == key
    assert held.backbone(beside).loras is not None
    assert held.backbone(within).key != key
    assert held.backbone(within).loras is None
    expected, weights = published(catalog, beside), published(catalog, within)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(
    "recipe",
    [
        lambda a, b: (merged(a, b, Share("", 1.0, 0.0)),),
        lambda a, b: BUILTIN["ModelMergeSimple"]().merge(a, b, ratio=1.0),  # type: ignore[attr-defined]
        lambda a, b: BUILTIN["UNetSelfAttentionMultiply"]().multiply(a, 1, 1, 1, 1),  # type: ignore[attr-defined]
    ],
)
def test_what_changes_nothing_leaves_the_recipe_as_it_is(recipe: Callable[[Recipe, Recipe], tuple[Recipe]]) -> None:
    assert recipe(backbone("unet_a"), backbone("unet_b")) == (backbone("unet_a"),)


def test_models_of_different_families_are_refused_by_name(catalog: Catalog) -> None:
    recipe = merged(backbone("unet_a"), backbone("flux_b"), HALF)
    with pytest.raises(
        ModelFileError, match=r"'unet_a\.safetensors' \(Stable Diffusion .*'flux_b\.safetensors' \(Flux"
    ):
        cpu_weights(catalog).backbone(recipe)


def test_tensors_of_other_shapes_are_left_out_and_remarked(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "diffusion_models").mkdir()
    inpaint = model("unet", "a")
    first = "input_blocks.0.0.weight"
    inpaint[first] = torch.cat([inpaint[first], torch.ones(inpaint[first].shape[0], 5, 3, 3)], dim=1)
    for name, tensors in (("inpaint", inpaint), ("b", model("unet", "b"))):
        save_file(tensors, tmp_path / "diffusion_models" / f"{name}.safetensors")
    recipe = merged(backbone("inpaint"), backbone("b"), Share("", 1.0, 0.5))
    held = cpu_weights(Catalog(tmp_path))
    assert held.remarks(recipe) == ()
    held.backbone(recipe)
    [remark] = held.remarks(recipe)
    assert "leaves out 1 tensors whose shapes differ, 'conv_in.weight' first: (32, 9, 3, 3) and (32, 4, 3, 3)" in remark
    weights = published(Catalog(tmp_path), recipe)
    torch.testing.assert_close(weights[first], inpaint[first])


def test_text_encoders_are_merged_and_rounded_as_comfyui_holds_them(catalog: Catalog) -> None:
    a, b = (Recipe("clip", "text_encoders", f"{letter}.safetensors") for letter in "ab")
    recipe = merged(a, b, Share("", 0.3, 0.7))
    held = cpu_weights(catalog)
    module = held.clip(recipe).encoder.network  # type: ignore[attr-defined]
    ends = ("embeddings.token_embedding.weight", "final_layer_norm.bias")
    for name in ends:
        of = [mixture(one, part_files(catalog, one)).tensor(name) for one in (a, b)]
        expected = (0.3 * of[0] + 0.7 * of[1]).half().float()
        torch.testing.assert_close(module.get_parameter(name).float(), expected, rtol=0, atol=0)
    assert held.clip(recipe).encode(["a fox"])[0][0][0].isfinite().all()


def test_weights_of_eight_bits_are_merged_and_have_eight_bits_again(catalog: Catalog) -> None:
    a, b = (BUILTIN["UNETLoader"]().load_unet(f"flux_{letter}.safetensors", "fp8_e4m3fn")[0] for letter in "ab")  # type: ignore[attr-defined]
    recipe = merged(a, b, HALF)
    held = cpu_weights(catalog)
    module = held.backbone(recipe).network.module
    layer = module.get_submodule("transformer_blocks.0.attn.to_q")
    assert isinstance(layer, QuantizedLinear)
    weights = [mixture(one, part_files(catalog, one)).tensor("transformer_blocks.0.attn.to_q.weight") for one in (a, b)]
    torch.testing.assert_close(
        layer.quantized.wide(), (weights[0] / 2 + weights[1] / 2).to(torch.float8_e4m3fn).float()
    )


def test_a_graph_that_merges_without_end_is_refused() -> None:
    recipe = backbone("unet_a")
    for _ in range(5):
        recipe = merged(recipe, recipe, HALF)
    with pytest.raises(NodeError, match=f"64 models are merged into one; allowed are {MODELS}"):
        merged(recipe, recipe, HALF)


def test_scaled_attention_has_its_own_weights_and_shares_the_rest(catalog: Catalog) -> None:
    [recipe] = BUILTIN["UNetSelfAttentionMultiply"]().multiply(backbone("unet_a"), 0.5, 1, 2, 1)  # type: ignore[attr-defined]
    assert recipe.last(Scale) == Scale((("attn1.to_q", 0.5), ("attn1.to_v", 2)))
    own, scaled = (published(catalog, one) for one in (backbone("unet_a"), recipe))
    for name, weight in own.items():
        layer = name.removesuffix(".weight")
        factor = 0.5 if layer.endswith("attn1.to_q") else 2 if layer.endswith("attn1.to_v") else 1
        torch.testing.assert_close(scaled[name], weight * factor)
    held = cpu_weights(catalog)
    network, changed = held.backbone(backbone("unet_a")).network, held.backbone(recipe)
    assert changed.key == network.key
    assert changed.loras is not None
    assert {name.rpartition(".")[2] for name in changed.loras.layers} == {"to_q", "to_v"}
    assert list(held.needs.of(recipe).nbytes.values())[1] == changed.loras.needed_bytes


def test_attention_is_scaled_by_the_names_of_the_published_file(tmp_path: Path) -> None:
    (tmp_path / "diffusion_models").mkdir()
    tensors = random_tensors(Wan(width=128, layers=1, inside=48, text_width=32))
    assert not any("attn1" in name for name in tensors)
    save_file(tensors, tmp_path / "diffusion_models" / "wan.safetensors")
    [recipe] = BUILTIN["UNetTemporalAttentionMultiply"]().multiply(backbone("wan"), 0.5, 1, 2, 1)  # type: ignore[attr-defined]
    held = cpu_weights(Catalog(tmp_path))
    loras = held.backbone(recipe).loras
    assert loras is not None
    assert not loras.layers
    assert held.remarks(recipe) == ("no layer of this diffusion network is one that attention is scaled in",)


def test_scaling_what_a_network_has_not_is_remarked(catalog: Catalog) -> None:
    recipe = backbone("flux_a").with_patch(Scale((("attn1.to_q", 0.5),)))
    held = cpu_weights(catalog)
    held.backbone(recipe)
    assert held.remarks(recipe) == ("no layer of this diffusion network is one that attention is scaled in",)


def test_a_dtype_of_its_own_is_weights_of_its_own(catalog: Catalog) -> None:
    node: Any = BUILTIN["ModelComputeDtype"]()
    [half], [usual] = (node.patch(model=backbone("unet_a"), dtype=dtype) for dtype in ("bf16", "default"))
    held = cpu_weights(catalog)
    assert held.backbone(usual).network is held.backbone(backbone("unet_a")).network
    module = held.backbone(half).network.module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert held.resident_bytes == 1.5 * cpu_loaded_bytes(catalog)


def cpu_loaded_bytes(catalog: Catalog) -> int:
    held = cpu_weights(catalog)
    held.backbone(backbone("unet_a"))
    return held.resident_bytes


def test_loras_of_several_models_are_read_from_one_folder() -> None:
    recipe = merged(backbone("a").with_lora("x", 1.0), backbone("b").with_lora("y", 1.0), HALF)
    assert recipe.all(Lora) == (Lora("x", 1.0),)


def test_the_small_unet_of_the_figures_is_one_of_stable_diffusion(catalog: Catalog) -> None:
    mixed = mixture(backbone("unet_a"), part_files(catalog, backbone("unet_a")))
    assert isinstance(mixed.family, Sd)
    assert sorted(mixed.published.values()) == sorted(NETS["unet"])
