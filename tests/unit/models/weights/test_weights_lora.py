"""LoRAs on recipes: what they answer, what they share, what they take of the budget, and when they go."""

import pytest
import torch
from safetensors.torch import save_file

from serve_app.errors import ModelFileError
from serve_app.models.families import ClipText, Sd
from serve_app.models.files.file_tensor import OpenFile
from serve_app.models.weights.deallocation import tensors_of
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Lora
from serve_app.sampling.forward import Canvas, Piece, denoise
from serve_app.store.models.catalog import Catalog
from tests.unit.models.sample import cpu_weights, random_tensors

UNET = Sd((32,), (1,), (1,), 1, 64)
TEXT = ClipText(1, 64, 64, 77)
QUERY = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
FC1 = "encoder.layers.0.mlp.fc1"
BACKBONE = Recipe("backbone", "checkpoints", "a.safetensors")
CLIP = Recipe("clip", "checkpoints", "a.safetensors")
THIN_BYTES = 4 * 2 * (32 + 32)
MERGED_BYTES = 4 * 64 * 64


def style(seed):
    draw = torch.Generator().manual_seed(seed)
    up, down = torch.randn(32, 2, generator=draw), torch.randn(2, 32, generator=draw)
    te_up, te_down = torch.randn(64, 2, generator=draw), torch.randn(2, 64, generator=draw)
    query, fc1 = f"lora_unet_{QUERY.replace('.', '_')}", f"lora_te_text_model_{FC1.replace('.', '_')}"
    return {
        f"{query}.lora_up.weight": up,
        f"{query}.lora_down.weight": down,
        f"{query}.alpha": torch.tensor(1.0),
        f"{fc1}.lora_up.weight": te_up,
        f"{fc1}.lora_down.weight": te_down,
    }


def merged_checkpoint(tensors, strength):
    """Return the checkpoint with the style of seed 1 in its weights."""
    up, down, _, te_up, te_down = style(1).values()
    query = f"model.diffusion_model.{QUERY}.weight"
    fc1 = f"cond_stage_model.transformer.text_model.{FC1}.weight"
    changed = {query: tensors[query] + strength * 0.5 * up @ down, fc1: tensors[fc1] + strength * te_up @ te_down}
    return tensors | changed


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    (root / "checkpoints").mkdir()
    (root / "loras").mkdir()
    tensors = random_tensors(UNET) | random_tensors(TEXT)
    save_file(tensors, root / "checkpoints" / "a.safetensors")
    save_file(tensors, root / "checkpoints" / "b.safetensors")
    save_file(merged_checkpoint(tensors, 0.8), root / "checkpoints" / "merged.safetensors")
    for seed in (1, 2):
        save_file(style(seed), root / "loras" / f"style{seed}.safetensors")
    save_file({"something.else": torch.ones(2)}, root / "loras" / "foreign.safetensors")
    return Catalog(root)


def weights(catalog, budget_bytes=10**9):
    return cpu_weights(catalog, budget_bytes=budget_bytes)


def under(recipe, *loras):
    for seed, strength in loras:
        recipe = recipe.with_patch(Lora(f"style{seed}.safetensors", strength))
    return recipe


def denoised(*backbones):
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    cond = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        pieces = [Piece(b, x, 3.0, b.inputs(cond, {}, "positive", Canvas(x, x))) for b in backbones]
        return denoise(pieces)


def test_a_backbone_under_a_lora_answers_as_one_with_merged_weights(catalog):
    held = weights(catalog)
    (theirs,) = denoised(held.backbone(Recipe("backbone", "checkpoints", "merged.safetensors")))
    (ours,) = denoised(held.backbone(under(BACKBONE, (1, 0.8))))
    (without,) = denoised(held.backbone(BACKBONE))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert float((without - theirs).norm() / theirs.norm()) > 1e-3


def test_a_text_under_a_lora_is_encoded_as_with_weights_merged_in_half_precision(catalog):
    held = weights(catalog)
    ours = held.clip(under(CLIP, (1, 0.8))).encode(["a fox"])[0][0][0]
    theirs = held.clip(Recipe("clip", "checkpoints", "merged.safetensors")).encode(["a fox"])[0][0][0]
    without = held.clip(CLIP).encode(["a fox"])[0][0][0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert float((without - theirs).norm() / theirs.norm()) > 1e-2


def test_a_text_with_an_unmerged_lora_is_encoded_without_the_weights_rounding(catalog):
    held = weights(catalog)
    merged = held.clip(under(CLIP, (1, 0.8))).encode(["a fox"])[0][0][0]
    beside = held.clip(CLIP.with_bypass_lora("style1.safetensors", 0.8)).encode(["a fox"])[0][0][0]
    torch.testing.assert_close(beside, merged, rtol=0, atol=1e-2)
    assert not torch.equal(beside, merged)


def test_backbones_of_one_file_share_forwards_under_any_loras(catalog):
    held = weights(catalog)
    recipes = [BACKBONE, under(BACKBONE, (1, 0.8)), under(BACKBONE, (1, 0.3)), under(BACKBONE, (1, 0.8), (2, 1.0))]
    backbones = [held.backbone(recipe) for recipe in recipes]
    assert len({backbone.key for backbone in backbones}) == 1
    for backbone, together in zip(backbones, denoised(*backbones), strict=True):
        torch.testing.assert_close(together, denoised(backbone)[0], rtol=1e-5, atol=1e-5)


def test_equal_loras_in_equal_order_are_one_set(catalog):
    held = weights(catalog)
    first = held.backbone(under(BACKBONE, (1, 0.8), (2, 1.0)))
    assert held.backbone(under(BACKBONE, (1, 0.8), (2, 1.0))).loras is first.loras
    assert held.backbone(under(BACKBONE, (2, 1.0), (1, 0.8))).loras is not first.loras


def test_a_set_takes_of_the_budget_what_it_adds_to_the_part(catalog):
    held = weights(catalog)
    held.backbone(BACKBONE)
    before = held.resident_bytes
    held.backbone(under(BACKBONE, (1, 0.8)))
    assert held.resident_bytes == before + THIN_BYTES
    held.clip(CLIP)
    before = held.resident_bytes
    held.clip(under(CLIP, (1, 0.8)))
    assert held.resident_bytes == before + MERGED_BYTES


def test_a_set_goes_before_the_part_that_it_was_made_of(catalog):
    one = weights(catalog)
    one.backbone(BACKBONE)
    held = weights(catalog, one.resident_bytes + THIN_BYTES)
    held.backbone(under(BACKBONE, (1, 0.8)))
    held.backbone(under(BACKBONE, (2, 0.5)))
    part = "backbone checkpoints/a.safetensors"
    assert held.resident() == (f"{part} + style2.safetensors 0.5", part)


def test_a_part_that_goes_takes_its_sets_with_it(catalog):
    one = weights(catalog)
    one.backbone(BACKBONE)
    held = weights(catalog, one.resident_bytes + THIN_BYTES)
    held.backbone(under(BACKBONE, (1, 0.8)))
    held.backbone(Recipe("backbone", "checkpoints", "b.safetensors"))
    assert held.resident() == ("backbone checkpoints/b.safetensors",)


def test_a_part_is_in_use_as_long_as_what_was_made_of_it(catalog):
    one = weights(catalog)
    one.backbone(BACKBONE)
    held = weights(catalog, one.resident_bytes + THIN_BYTES)
    in_use = held.open(under(BACKBONE, (1, 0.8)))
    b = Recipe("backbone", "checkpoints", "b.safetensors")
    assert not held.fits(held.needs.of(b))
    held.backbone(b)
    assert len(held.resident()) == 3
    in_use.close()
    assert held.fits(held.needs.of(b))


@pytest.mark.parametrize("recipe", [BACKBONE, CLIP])
def test_an_evicted_set_has_no_memory_and_the_weights_that_it_shared_stay(catalog, recipe):
    held = weights(catalog)
    load = held.backbone if recipe is BACKBONE else held.clip
    hold = held.open(recipe)
    load(under(recipe, (1, 0.8)))
    loras, part = held.residency.resident.values()
    own = tensors_of(part.loaded.module.modules())
    if recipe is BACKBONE:
        changed = [p for layer in loras.loras.layers.values() for p in tensors_of(layer.thin().modules())]
    else:
        changed = [p for p in tensors_of(loras.loaded.module.modules()) if not any(p is other for other in own)]
    sizes = [p.numel() for p in own]
    assert held.release() > 0
    assert changed
    assert not any(p.numel() for p in changed)
    assert [p.numel() for p in own] == sizes
    hold.close()
    assert held.release() > 0
    assert not any(p.numel() for p in own)


def test_a_set_that_is_not_resident_counts_towards_what_has_to_fit(catalog):
    one = weights(catalog)
    one.backbone(BACKBONE)
    one.clip(CLIP)
    both_bytes = one.resident_bytes
    for recipe, more_bytes in ((under(BACKBONE, (1, 0.8)), THIN_BYTES), (under(CLIP, (1, 0.8)), MERGED_BYTES)):
        for budget_bytes, fits in ((both_bytes + more_bytes, True), (both_bytes + more_bytes - 1, False)):
            held = weights(catalog, budget_bytes)
            with held.open(BACKBONE if recipe.part == "clip" else CLIP):
                assert held.fits(held.needs.of(recipe)) is fits
    held = weights(catalog, both_bytes)
    held.open(BACKBONE)
    assert not held.fits(held.needs.of(under(BACKBONE, (1, 0.8)), CLIP))
    assert held.fits(held.needs.of(BACKBONE, CLIP))


def test_what_a_set_takes_is_known_without_its_tensors(catalog, monkeypatch):
    read, fill = [], OpenFile.fill

    def noted(file, memory, at):
        read.append(memory.numel())
        fill(file, memory, at)

    monkeypatch.setattr(OpenFile, "fill", noted)
    held = weights(catalog)
    for recipe, nbytes in ((under(BACKBONE, (1, 0.8)), THIN_BYTES), (under(CLIP, (1, 0.8)), MERGED_BYTES)):
        assert list(held.needs.of(recipe).nbytes.values())[1] == nbytes
    assert sum(read) <= 1, "its alpha"


def test_merged_weights_make_room_for_others(catalog):
    one = weights(catalog)
    one.backbone(BACKBONE)
    merged_bytes = 4 * 32 * 32
    held = weights(catalog, 2 * one.resident_bytes + THIN_BYTES + merged_bytes // 2)
    in_use = held.backbone(under(BACKBONE, (1, 0.8)), held.open(under(BACKBONE, (1, 0.8))))
    for _ in range(12):
        denoised(in_use)
    assert held.resident_bytes == one.resident_bytes + THIN_BYTES + merged_bytes
    b = Recipe("backbone", "checkpoints", "b.safetensors")
    assert held.fits(held.needs.of(b))
    other = held.backbone(b, held.open(b))
    assert held.resident_bytes == 2 * one.resident_bytes + THIN_BYTES
    assert in_use.key != other.key


def test_a_file_without_a_layer_of_the_part_is_remarked_and_changes_nothing(catalog):
    held = weights(catalog)
    foreign = BACKBONE.with_patch(Lora("foreign.safetensors", 1.0))
    assert held.remarks(foreign) == ()
    backbone = held.backbone(foreign)
    [remark] = held.remarks(foreign)
    assert "'foreign.safetensors' changes nothing of this diffusion network" in remark
    assert held.remarks(BACKBONE) == ()
    assert torch.equal(denoised(backbone)[0], denoised(held.backbone(BACKBONE))[0])


def test_a_lora_that_is_absent_is_named(catalog):
    with pytest.raises(ModelFileError, match=r"loras file 'style3.safetensors' is not in .*; did you mean 'style"):
        weights(catalog).backbone(under(BACKBONE, (3, 1.0)))
