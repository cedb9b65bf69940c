"""The nodes of image encoders, style models and unCLIP: values in, values out."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.execution.size import size_of
from serve_app.nodes.conditioning.vision import (
    clip_vision_encode,
    clip_vision_loader,
    style_model_apply,
    style_model_loader,
    unclip_checkpoint_loader,
    unclip_conditioning,
)
from serve_app.nodes.model.controls import uso_style_reference
from serve_app.nodes.registry import DISPLAY_NAMES, specs
from serve_app.recipe.controls import ModelControl
from serve_app.recipe.recipe import Recipe
from serve_app.values import ClipVisionOutput, Conditioning

ENCODER = Recipe("clip_vision", "clip_vision", "sigclip.safetensors")
STYLE = Recipe("style_model", "style_models", "redux.safetensors")
SEEN = ClipVisionOutput(torch.ones(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 4))
TOKENS = torch.full((1, 2, 8), 3.0)


def test_a_style_is_what_siglip_sees_at_three_depths() -> None:
    model, patch = Recipe("backbone", "unet", "flux.safetensors"), Recipe("model_patch", "model_patches", "uso")
    depths = torch.stack([torch.full((2, 3, 4), 20.0), torch.full((2, 3, 4), 11.0)], dim=1)
    styled = uso_style_reference(model, patch, replace(SEEN, style_hidden_states=depths))
    (control,) = styled.all(ModelControl)
    assert (control.recipe, control.vae) == (patch, None)
    assert [float(states.mean()) for states in control.seen] == [20.0, 11.0, 0.0]
    with pytest.raises(NodeError, match="style is read from what SigLIP sees"):
        uso_style_reference(model, patch, SEEN)


class Oracle:
    """A runtime that answers with what it was asked."""

    asked: tuple[Recipe, bool] | None = None

    async def see(self, encoder: Recipe, images: Tensor, *, crop: bool) -> ClipVisionOutput:
        self.asked = (encoder, crop)
        return SEEN

    async def style(self, style_model: Recipe, seen: ClipVisionOutput) -> Tensor:
        assert (style_model, seen) == (STYLE, SEEN)
        return TOKENS


def styled(conditioning: Conditioning, strength: float, kind: str) -> Conditioning:
    runtime: Any = Oracle()
    return asyncio.run(style_model_apply(conditioning, STYLE, SEEN, strength, kind, runtime))


def text(tokens: int = 5, width: int = 8, **options: Any) -> Conditioning:
    return [(torch.zeros(1, tokens, width), options)]


def test_loaders_name_their_files() -> None:
    assert clip_vision_loader("sigclip.safetensors") == ENCODER
    assert style_model_loader("redux.safetensors") == STYLE
    parts = unclip_checkpoint_loader("unclip.safetensors")
    assert [(recipe.part, recipe.folder, recipe.name) for recipe in parts] == [
        (part, "checkpoints", "unclip.safetensors") for part in ("backbone", "clip", "vae", "clip_vision")
    ]


@pytest.mark.parametrize(("crop", "asked"), [("center", True), ("none", False)])
def test_an_image_is_cropped_for_the_encoder_as_the_input_says(crop: str, asked: bool) -> None:
    runtime: Any = Oracle()
    output = asyncio.run(clip_vision_encode(ENCODER, torch.zeros(1, 8, 8, 3), crop, runtime))
    assert output is SEEN
    assert runtime.asked == (ENCODER, asked)


def test_a_style_follows_the_text_with_its_strength() -> None:
    given = text(guidance=3.5)
    [(cond, options)] = styled(given, 0.5, "multiply")
    assert torch.equal(cond, torch.cat([given[0][0], TOKENS * 0.5], dim=1))
    assert options == {"guidance": 3.5}


def test_at_strength_one_attention_has_no_bias() -> None:
    [(cond, options)] = styled(text(), 1.0, "attn_bias")
    assert cond.shape == (1, 7, 8)
    assert options == {}


def test_text_and_image_attend_to_a_style_with_a_bias_and_it_to_all_alike() -> None:
    [(_, options)] = styled(text(), 0.5, "attn_bias")
    mask = options["attention_mask"][0]
    assert options["attention_mask_img_shape"] == (1, 1)
    assert mask.shape == (8, 8)
    assert float(mask[0, 5]) == float(mask[7, 6]) == pytest.approx(-0.693, abs=1e-3)
    assert float(mask[:, :5].abs().max()) == float(mask[5:7].abs().max()) == float(mask[:, 7].abs().max()) == 0


def test_a_second_style_keeps_the_first_ones_bias() -> None:
    [(cond, options)] = styled(styled(text(), 0.5, "attn_bias"), 1.0, "multiply")
    mask = options["attention_mask"][0]
    assert cond.shape[1] + 1 == len(mask) == 10
    assert float(mask[9, 5]) == float(mask[0, 6]) == pytest.approx(-0.693, abs=1e-3)
    assert float(mask[:, 7:9].abs().max()) == 0


def test_a_strength_of_zero_forbids_attention_without_an_infinity() -> None:
    [(_, options)] = styled(text(), 0.0, "attn_bias")
    mask = options["attention_mask"][0]
    assert bool(mask.isfinite().all())
    assert float(mask[0, 5]) < -6e4


def test_a_mask_of_what_there_is_becomes_a_bias() -> None:
    there = torch.ones(1, 6, 6, dtype=torch.bool)
    there[:, :, 2] = False
    [(_, options)] = styled(text(attention_mask=there), 1.0, "multiply")
    mask = options["attention_mask"][0]
    assert mask.shape == (8, 8)
    assert float(mask[0, 2]) < -6e4
    assert float(mask[0, 3]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (text(width=6), "makes tokens 8 wide, and the conditioning is 6 wide: they are of different families"),
        (text(attention_mask=torch.ones(1, 5)), r"is of shape 1×5; with 5 tokens of text a style model can change"),
    ],
)
def test_a_text_of_another_kind_is_refused(given: Conditioning, message: str) -> None:
    with pytest.raises(NodeError, match=message):
        styled(given, 0.5, "attn_bias")


def test_unclip_adds_to_what_a_conditioning_has() -> None:
    given = text(guidance=1.0)
    once = unclip_conditioning(given, SEEN, 0.5, 0.1)
    twice = unclip_conditioning(once, SEEN, 1.0, 0.2)
    assert [told["strength"] for told in twice[0][1]["unclip_conditioning"]] == [0.5, 1.0]
    assert [told["noise_augmentation"] for told in once[0][1]["unclip_conditioning"]] == [0.1]
    assert given[0][1] == {"guidance": 1.0}
    assert unclip_conditioning(given, SEEN, 0.0, 0.1) is given


def test_what_is_seen_counts_among_what_a_replica_holds() -> None:
    assert 4 * (24 + 24 + 8) <= size_of(SEEN) < 1000


def test_the_nodes_are_registered_under_comfyuis_titles() -> None:
    known = specs()
    assert known["CLIPVisionLoader"].inputs[0].folder == "clip_vision"
    assert known["StyleModelLoader"].inputs[0].folder == "style_models"
    assert known["unCLIPCheckpointLoader"].inputs[0].folder == "checkpoints"
    assert known["StyleModelApply"].search_aliases == ("style transfer",)
    assert DISPLAY_NAMES["StyleModelApply"] == "Apply Style Model"
