"""Classes each of which does one small thing: what it gives is known without a model and without ComfyUI."""

from __future__ import annotations

from typing import Any
from unittest.mock import AsyncMock

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.registry import BUILTIN
from serve_app.recipe.guidance import SkipLayerGuidance, SkippedBlocks, WeakNegative
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import ComputedIn, Scale, Share
from serve_app.sampling.schedules.levels import TableLevels

MODEL, OTHER = (Recipe("backbone", "checkpoints", name) for name in ("a.safetensors", "b.safetensors"))
CLIP, CLIP2 = (Recipe("clip", "checkpoints", name) for name in ("a.safetensors", "b.safetensors"))


def run(class_type: str, **inputs: Any) -> Any:
    node: Any = BUILTIN[class_type]()
    return getattr(node, node.FUNCTION)(**inputs)


def latent(*values: float, size: tuple[int, int] = (2, 3), **members: Any) -> dict[str, Any]:
    return {"samples": torch.stack([torch.full((4, *size), value) for value in values]), **members}


def test_a_gguf_loader_with_more_settings_loads_what_the_plain_one_does() -> None:
    more = {"dequant_dtype": "default", "patch_dtype": "default", "patch_on_device": True}
    assert run("UnetLoaderGGUFAdvanced", unet_name="a.gguf", **more) == run("UnetLoaderGGUF", unet_name="a.gguf")


def test_kjnodes_loaders_load_what_the_plain_ones_do_in_the_dtypes_that_are_asked_for() -> None:
    speed = {"patch_cublaslinear": True, "sage_attention": "auto", "enable_fp16_accumulation": True}

    def loaded(weights: str, computed: str) -> Recipe:
        name = {"model_name": "a.safetensors", "weight_dtype": weights, "compute_dtype": computed}
        (recipe,) = run("DiffusionModelLoaderKJ", **name, **speed)
        return recipe

    (plain,) = run("UNETLoader", unet_name="a.safetensors", weight_dtype="default")
    (rounded,) = run("UNETLoader", unet_name="a.safetensors", weight_dtype="fp8_e5m2")
    assert loaded("default", "default") == plain
    assert loaded("fp8_e5m2", "bf16") == rounded.with_patch(ComputedIn("bf16"))
    assert loaded("fp16", "default") == plain.with_patch(ComputedIn("fp16"))
    assert run("GGUFLoaderKJ", model_name="a.gguf", patch_on_device=True) == run("UnetLoaderGGUF", unet_name="a.gguf")
    with pytest.raises(NodeError, match="no second file"):
        run("GGUFLoaderKJ", model_name="a.gguf", extra_model_name="vace.gguf")


@pytest.mark.parametrize(
    ("class_type", "plain", "count"),
    [
        ("CLIPLoaderGGUF", "CLIPLoader", 1),
        ("TripleCLIPLoaderGGUF", "TripleCLIPLoader", 3),
        ("QuadrupleCLIPLoaderGGUF", "QuadrupleCLIPLoader", 4),
    ],
)
def test_a_gguf_loader_of_text_encoders_differs_from_the_plain_one_by_its_folder(
    class_type: str, plain: str, count: int
) -> None:
    names = {"clip_name" if count == 1 else f"clip_name{i + 1}": f"{i}.gguf" for i in range(count)}
    (ours,), (theirs,) = run(class_type, **names), run(plain, **names)
    assert (ours.name, ours.extra_files, ours.patches) == (theirs.name, theirs.extra_files, theirs.patches)
    assert ours.folder != theirs.folder


def test_a_checkpoint_as_a_hook_of_the_model_alone_leaves_the_text_encoder() -> None:
    ((hook,),) = run("CreateHookModelAsLoraModelOnly", ckpt_name="b.safetensors", strength_model=0.7)
    assert (hook.name, hook.strength, hook.clip_strength, hook.folder) == ("b.safetensors", 0.7, 0.0, "checkpoints")


def test_keyframes_from_numbers_are_spread_evenly() -> None:
    (keyframes,) = run(
        "CreateHookKeyframesFromFloats", floats_strength=[1.0, 0.5, 0.0], start_percent=0.2, end_percent=0.6
    )
    assert [keyframe.factor for keyframe in keyframes] == [1.0, 0.5, 0.0]
    assert [keyframe.start_percent for keyframe in keyframes] == pytest.approx([0.2, 0.4, 0.6])


def test_the_adaptive_samplers_numbers_go_by_their_names_here() -> None:
    same = {"rtol": 0.05, "atol": 0.0078, "h_init": 0.05, "eta": 0.0, "s_noise": 1.0}
    numbers = {"order": 2, "pcoeff": 0.1, "icoeff": 0.2, "dcoeff": 0.3, "accept_safety": 0.5}
    (choice,) = run("SamplerDPMAdaptative", **numbers, **same)
    assert choice.name == "dpm_adaptive"
    assert choice.options == {"order": 2, "p": 0.1, "i": 0.2, "d": 0.3, "safety": 0.5, **same}


async def test_a_share_of_the_sampling_becomes_a_level_of_the_model() -> None:
    levels = TableLevels()
    runtime = AsyncMock()
    runtime.levels.return_value = levels
    bounds = {"sde_start_percent": 0.2, "sde_end_percent": 0.8}
    orders = {"predictor_order": 3, "corrector_order": 4, "use_pece": True, "simple_order_2": False}
    (choice,) = await run("SamplerSASolver", model=MODEL, eta=1.0, s_noise=1.0, **bounds, **orders, runtime=runtime)
    assert choice.options["interval"] == (levels.at_progress(0.2), levels.at_progress(0.8))
    assert choice.options["evaluate_corrected"] is True

    async def sigma(share: float, own: bool) -> float:
        given = {"model": MODEL, "sampling_percent": share, "return_actual_sigma": own, "runtime": runtime}
        (found,) = await run("SamplingPercentToSigma", **given)
        return float(found)

    assert await sigma(0.2, False) == levels.at_progress(0.2)
    assert [await sigma(share, True) for share in (0.0, 1.0)] == [levels.sigma_max, levels.sigma_min]
    assert await sigma(0.0, False) > levels.sigma_max


def test_a_model_patch_is_put_on_a_model_unless_its_strength_is_zero() -> None:
    (patch,) = run("ModelPatchLoader", name="p.safetensors")
    assert (patch.part, patch.name) == ("model_patch", "p.safetensors")
    given = {"model": MODEL, "model_patch": patch, "vae": OTHER, "image": torch.rand(1, 8, 8, 4)}
    (controlled,) = run("QwenImageDiffsynthControlnet", **given, strength=0.5)
    (control,) = controlled.patches
    assert (control.strength, control.image.shape[-1]) == (0.5, 3)
    assert run("QwenImageDiffsynthControlnet", **given, strength=0) == (MODEL,)


def test_attention_is_multiplied_by_the_names_of_its_layers() -> None:
    (clip,) = run("CLIPAttentionMultiply", clip=CLIP, q=1.5, k=1.0, v=1.0, out=0.5)
    (scale,) = clip.patches
    assert isinstance(scale, Scale)
    factors = {name.rpartition(".")[2]: factor for name, factor in scale.factors}
    assert factors.items() >= {"q_proj": 1.5, "out_proj": 0.5}.items()
    factors = {"self_structural": 1.2, "self_temporal": 3.0, "cross_structural": 0.8, "cross_temporal": 3.0}
    (model,) = run("UNetTemporalAttentionMultiply", model=MODEL, **factors)
    assert dict(model.patches[0].factors) == {"attn1.to_out.0": 1.2, "attn2.to_out.0": 0.8}


@pytest.mark.parametrize(
    ("class_type", "given", "shares"),
    [("CLIPMergeSubtract", {"multiplier": 0.5}, (0.5, -0.5)), ("CLIPMergeAdd", {}, (1.0, 1.0))],
)
def test_text_encoders_are_added_and_subtracted(
    class_type: str, given: dict[str, float], shares: tuple[float, float]
) -> None:
    (recipe,) = run(class_type, clip1=CLIP, clip2=CLIP2, **given)
    assert recipe.patches[0].shares == (Share("", *shares),)


@pytest.mark.parametrize(
    ("class_type", "first", "some", "count"),
    [
        ("ModelMergeSD2", "time_embed.", "output_blocks.11.", 30),
        ("ModelMergeSDXL", "time_embed.", "output_blocks.8", 24),
        ("ModelMergeSD3_2B", "pos_embed.", "joint_blocks.23.", 30),
        ("ModelMergeSD35_Large", "pos_embed.", "joint_blocks.37.", 44),
        ("ModelMergeAuraflow", "init_x_linear.", "single_layers.31.", 43),
        ("ModelMergeQwenImage", "pos_embeds.", "transformer_blocks.59.", 66),
        ("ModelMergeKrea2", "first.", "blocks.27.", 38),
        ("ModelMergeWAN2_1", "patch_embedding.", "blocks.39.", 46),
    ],
)
def test_two_models_of_a_family_are_merged_part_by_part(class_type: str, first: str, some: str, count: int) -> None:
    node: Any = BUILTIN[class_type]
    parts = [name for name in node.INPUT_TYPES()["required"] if name not in ("model1", "model2")]
    assert (parts[0], len(parts)) == (first, count)
    (recipe,) = run(class_type, model1=MODEL, model2=OTHER, **{**dict.fromkeys(parts, 1.0), first: 0.75, some: 0.25})
    shares = {share.prefix: (share.own, share.other) for share in recipe.patches[0].shares}
    assert (shares[""], shares[some], shares[parts[-1]]) == ((0.75, 0.25), (0.25, 0.75), (1.0, 0.0))


async def test_an_extracted_lora_has_the_given_rank_and_no_file_without_a_difference() -> None:
    runtime, store = AsyncMock(), AsyncMock()
    asked = {"filename_prefix": "loras/x", "rank": 4, "lora_type": "full_diff", "bias_diff": False}
    assert await run("LoraSave", **asked, runtime=runtime, store=store) == {}
    store.save.assert_not_awaited()
    await run("LoraSave", **asked, runtime=runtime, store=store, model_diff=MODEL)
    model, clip, extraction = runtime.lora_file.await_args.args
    assert (model, clip, extraction.rank) == (MODEL, None, 4)
    assert store.save.await_args.args[:2] == ("output", "loras/x")


def test_layers_are_skipped_by_their_numbers() -> None:
    span = {"start_percent": 0.1, "end_percent": 0.5}
    (led,) = run("SkipLayerGuidanceSD3", model=MODEL, layers="7, 8", scale=3.0, **span)
    assert led.patches == (SkipLayerGuidance(SkippedBlocks((7, 8)), 3.0, 0.1, 0.5),)
    both = {"double_layers": "1", "single_layers": "2, 3"}
    (led,) = run("SkipLayerGuidanceDiT", model=MODEL, **both, scale=2.0, rescaling_scale=0.5, **span)
    assert led.patches == (SkipLayerGuidance(SkippedBlocks((1,), (2, 3)), 2.0, 0.1, 0.5, 0.5),)
    (weak,) = run("SkipLayerGuidanceDiTSimple", model=MODEL, **both, **span)
    assert weak.patches == (WeakNegative(SkippedBlocks((1,), (2, 3)), 0.1, 0.5),)
    assert run("SkipLayerGuidanceDiTSimple", model=MODEL, double_layers="", single_layers="", **span) == (MODEL,)


def test_latents_are_calculated_with() -> None:
    a, b = latent(3.0, batch_index=[5]), latent(1.0)
    results = {
        "LatentAdd": run("LatentAdd", samples1=a, samples2=b),
        "LatentSubtract": run("LatentSubtract", samples1=a, samples2=b),
        "LatentMultiply": run("LatentMultiply", samples=a, multiplier=-2.0),
        "LatentBlend": run("LatentBlend", samples1=a, samples2=b, blend_factor=0.25),
    }
    expected = {"LatentAdd": 4.0, "LatentSubtract": 2.0, "LatentMultiply": -6.0, "LatentBlend": 1.5}
    assert {name: float(out["samples"].unique()) for name, (out,) in results.items()} == expected
    assert all(out["batch_index"] == [5] for (out,) in results.values())


def test_a_latent_is_flipped_along_the_axis_named() -> None:
    samples = torch.arange(12.0).reshape(1, 1, 3, 4)
    (upside,) = run("LatentFlip", samples={"samples": samples}, flip_method="x-axis: vertically")
    (mirrored,) = run("LatentFlip", samples={"samples": samples}, flip_method="y-axis: horizontally")
    assert upside["samples"][0, 0, 0].tolist() == [8, 9, 10, 11]
    assert mirrored["samples"][0, 0, 0].tolist() == [3, 2, 1, 0]


def test_a_batch_has_one_noise_or_each_its_own() -> None:
    batch = latent(1.0, 2.0, batch_index=[7, 9])
    assert run("LatentBatchSeedBehavior", samples=batch, seed_behavior="fixed")[0]["batch_index"] == [7, 7]
    assert "batch_index" not in run("LatentBatchSeedBehavior", samples=batch, seed_behavior="random")[0]


def test_latents_move_towards_a_reference_of_another_size_and_fewer_rows() -> None:
    batch = latent(0.0, 4.0, size=(4, 6))
    (operation,) = run("LatentOperationBlend", reference=latent(2.0, size=(2, 3)), strength=0.25)
    (blended,) = run("LatentApplyOperation", samples=batch, operation=operation)
    assert [float(row.unique()) for row in blended["samples"]] == [0.5, 3.5]
    (nothing,) = run("LatentOperationBlend", reference=latent(2.0), strength=0.0)
    assert nothing(latent=batch["samples"]) is batch["samples"]
    with pytest.raises(NodeError, match=r"\(1, 4, 2, 3\).*\(1, 16, 2, 3\)"):
        run("LatentOperationBlend", reference=latent(2.0), strength=1.0)[0](latent=torch.zeros(1, 16, 2, 3))


def test_the_size_of_latents_is_in_cells() -> None:
    assert run("GetLatentSize", latent=latent(0.0, 1.0, size=(2, 3))) == (3, 2, 1, 2)
    assert run("GetLatentSize", latent={"samples": torch.zeros(1, 16, 5, 2, 3)}) == (3, 2, 5, 1)


async def test_a_model_that_inpaints_is_shown_what_surrounds_the_mask() -> None:
    runtime = AsyncMock()
    runtime.encode.side_effect = [torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)]
    pixels, mask = torch.ones(1, 16, 16, 3), torch.zeros(1, 16, 16)
    mask[:, :, 8:] = 1
    texts = {"positive": [[torch.zeros(1, 1, 1), {}]], "negative": [[torch.zeros(1, 1, 1), {}]]}
    given = {**texts, "pixels": pixels, "vae": OTHER, "mask": mask, "noise_mask": True, "runtime": runtime}
    positive, negative, out = await run("InpaintModelConditioning", **given)
    shown = runtime.encode.await_args_list[0].args[1]
    assert (float(shown[:, :, 8:].unique()), float(shown[:, :, :8].unique())) == (0.5, 1.0)
    assert float(out["samples"].unique()) == 1.0
    for side in (positive, negative):
        assert float(side[0][1]["concat_latent_image"].unique()) == 0.0
        assert torch.equal(side[0][1]["concat_mask"], out["noise_mask"])


def test_masks_are_inverted_cut_and_made_hard() -> None:
    mask = torch.tensor([[[0.0, 0.25, 0.5], [0.75, 1.0, 0.1]]])
    assert torch.equal(run("InvertMask", mask=mask)[0], 1 - mask)
    assert run("CropMask", mask=mask, x=1, y=0, width=2, height=1)[0].tolist() == [[[0.25, 0.5]]]
    assert run("ThresholdMask", mask=mask, value=0.5)[0].tolist() == [[[0, 0, 0], [1, 1, 0]]]


async def test_each_of_hidreams_encoders_reads_a_text_of_its_own() -> None:
    runtime = AsyncMock()
    texts = {"clip_l": "a", "clip_g": "b", "t5xxl": "c", "llama": "d"}
    await run("CLIPTextEncodeHiDream", clip=CLIP, **texts, runtime=runtime)
    clip, told = runtime.encode_text.await_args.args
    assert (clip, told.l, told.g, told.t5xxl, told.llama) == (CLIP, "a", "b", "c", "d")


def test_what_is_kept_of_a_loop_is_a_list_without_what_it_waited_for() -> None:
    assert run("LoopOutputs", output0=[1, 2], output1=[3], waited0=[9]) == ([1, 2, 3],)
