"""Functions of node packs in the UNet, on rows that share a forward, with a small network of diffusers' kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from serve_app.models.families.family import Rows
from serve_app.models.families.unet.unet import stack_contexts
from serve_app.models.families.unet.unet_blocks import attention
from serve_app.models.families.unet.unet_functions import places, with_functions

ATTENTIONS = [("input", 3), ("middle", 0), ("output", 2), ("output", 3)]
"""The blocks of the small network that have a transformer, as ComfyUI counts: conv_in is ("input", 0)."""


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        layers_per_block=1,
    ).eval()


def rows(seed: int, count: int = 1, *, functions: Mapping[str, Any] | None = None, text: int = 3, **more: Any) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, 8, 8, generator=generator)
    inputs = SimpleNamespace(context=torch.randn(count, text, 8, generator=generator))
    given = () if functions is None else (functions,)
    return Rows(x, 2.0, torch.full((count,), 500.0), inputs, functions=given, **more)


def run(network: Any, *asked: Rows) -> list[Tensor]:
    context, mask = stack_contexts([row.inputs.context for row in asked])
    x = torch.cat([row.x for row in asked])
    with torch.no_grad(), with_functions(network, asked):
        output = network(x, torch.tensor(500), context, encoder_attention_mask=mask, return_dict=False)[0]
    return list(torch.split(output, [row.count for row in asked]))


def patches(**functions: Callable[..., Any]) -> dict[str, Any]:
    return {"patches": {name: [function] for name, function in functions.items()}}


def replaced(name: str, function: Callable[..., Any], *places: Any) -> dict[str, Any]:
    return {"patches_replace": {name: dict.fromkeys(places, function)}}


def usual(q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> Tensor:
    return attention(q, k, v, options["n_heads"])


def halved(first: Tensor, *rest: Any) -> Any:
    """Half of what a function is given first, in the form that it returns."""
    if isinstance(rest[-1], dict) and len(rest) == 3:
        return first / 2, rest[0], rest[1]
    return (first / 2, rest[0]) if len(rest) == 2 else first / 2


FUNCTIONS: dict[str, dict[str, Any]] = {
    **{name: patches(**{name: halved}) for name in ("attn1_patch", "attn2_patch", "output_block_patch")},
    **{
        name: patches(**{name: halved})
        for name in (
            "attn1_output_patch",
            "attn2_output_patch",
            "input_block_patch",
            "input_block_patch_after_skip",
        )
    },
    "attn1_replace": replaced("attn1", lambda q, k, v, options: v / 2, *ATTENTIONS),
    "attn2_replace": replaced("attn2", lambda q, k, v, options: q / 2, *ATTENTIONS),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_changes_its_rows_and_no_bit_of_others(network: Any, name: str) -> None:
    others = [rows(1, 2), rows(3, text=5)]
    before = run(network, others[0], rows(2), others[1])
    after = run(network, others[0], rows(2, functions=FUNCTIONS[name]), others[1])
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.allclose(before[1], after[1], atol=1e-4)
    [alone] = run(network, rows(2, functions=FUNCTIONS[name]))
    torch.testing.assert_close(after[1], alone, rtol=1e-4, atol=1e-5)


def test_functions_that_do_what_is_done_anyway_change_nothing(network: Any) -> None:
    same = replaced("attn2", usual, *ATTENTIONS)
    same["patches_replace"]["attn1"] = dict.fromkeys(ATTENTIONS, usual)
    same |= patches(
        attn1_patch=lambda n, k, v, options: (n, k, v),
        output_block_patch=lambda h, skipped, options: (h, skipped),
        input_block_patch=lambda h, options: h,
    )
    before, after = run(network, rows(1, 2)), run(network, rows(1, 2, functions=same))
    torch.testing.assert_close(after[0], before[0], rtol=1e-4, atol=1e-5)
    assert not any("forward" in vars(module) for module in network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_every_block_is_known_by_comfyuis_number(network: Any) -> None:
    told: list[Any] = []

    def see(q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> Tensor:
        told.append((options["block"], options["block_index"], options["transformer_index"]))
        assert (options["n_heads"], options["cond_or_uncond"]) == (2, [1])
        assert options["dim_head"] * 2 == q.shape[-1]
        assert options["original_shape"] == [2, 4, 8, 8]
        assert options["sigmas"].tolist() == [2.0, 2.0]
        return usual(q, k, v, options)

    run(network, rows(1, 2, functions=replaced("attn2", see, *ATTENTIONS), role="negative"))
    assert told == [(block, 0, number) for number, block in enumerate(ATTENTIONS)]
    inputs, _, outputs = places(network)
    assert [place.block for place in inputs] == [("input", n) for n in range(6)]
    assert [place.block for place in outputs] == [("output", n) for n in range(6)]


def test_one_place_may_be_replaced_and_the_more_exact_one_counts(network: Any) -> None:
    told: list[str] = []

    def named(name: str) -> Callable[..., Tensor]:
        def function(q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> Tensor:
            told.append(name)
            return usual(q, k, v, options)

        return function

    given = {"patches_replace": {"attn1": {("output", 2): named("block"), ("output", 2, 0): named("exact")}}}
    run(network, rows(1, functions=given))
    assert told == ["exact"]


def test_layers_that_know_rows_by_their_place_are_given_all_of_them(network: Any) -> None:
    """As layers with LoRAs are: they take the whole batch, and a function's rows lie where they do."""
    whole = [rows(1, 2), rows(2, functions=FUNCTIONS["attn1_patch"]), rows(3)]
    expected = run(network, *whole)
    loras: Any = object()
    whole[0] = rows(1, 2, loras=loras)
    sizes = set()
    layer = network.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    hook = layer.register_forward_pre_hook(lambda module, given: sizes.add(len(given[0])))
    try:
        for before, after in zip(expected, run(network, *whole), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    finally:
        hook.remove()
    assert sizes == {4}
