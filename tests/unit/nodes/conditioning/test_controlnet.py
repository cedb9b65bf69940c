"""The nodes that put conditionings under ControlNets: values in, values out."""

import torch

from serve_app.execution.size import size_of
from serve_app.nodes.conditioning.controlnet import (
    control_net_apply,
    control_net_apply_advanced,
    control_net_inpainting_ali_mama_apply,
    control_net_loader,
    diff_control_net_loader,
    set_union_control_net_type,
)
from serve_app.nodes.registry import DISPLAY_NAMES, specs
from serve_app.recipe.controls import DiffControlNetBase, HintKind
from serve_app.recipe.recipe import Recipe
from serve_app.values import Control

NET = Recipe("controlnet", "controlnet", "canny.safetensors")
HINT = torch.zeros(1, 16, 16, 3)


def conditioning(entries=1, **options):
    return [(torch.zeros(1, 77, 8), dict(options)) for _ in range(entries)]


def test_loading_names_the_file():
    assert control_net_loader("canny.safetensors") == NET


def test_a_file_of_differences_goes_on_top_of_its_model():
    model = Recipe("backbone", "checkpoints", "sd15.safetensors")
    assert diff_control_net_loader(model, "canny.safetensors") == NET.with_patch(DiffControlNetBase(model))


def test_applying_at_strength_zero_changes_nothing():
    given = conditioning()
    assert control_net_apply(given, NET, HINT, 0.0) is given
    positive, negative = control_net_apply_advanced(given, given, NET, HINT, 0.0, 0.0, 1.0)
    assert positive is given
    assert negative is given


def test_applying_leaves_the_given_conditioning_as_it_was():
    given = conditioning(pooled_output=HINT)
    control_net_apply(given, NET, HINT, 1.0)
    assert list(given[0][1]) == ["pooled_output"]


def test_the_plain_node_reaches_the_negative_too_and_the_advanced_one_does_not():
    ((_, plain),) = control_net_apply(conditioning(), NET, HINT, 0.5)
    advanced = control_net_apply_advanced([(HINT, plain)], conditioning(), NET, HINT, 0.5, 0.1, 0.8)
    assert plain["control_apply_to_uncond"] is True
    assert [options["control_apply_to_uncond"] for ((_, options),) in advanced] == [False, False]


def test_a_control_says_how_strongly_and_when_it_acts():
    applied = control_net_apply_advanced(conditioning(), conditioning(), NET, HINT, 0.5, 0.1, 0.8)
    for ((_, options),) in applied:
        control = options["control"]
        assert (control.recipe, control.strength, control.start_percent, control.end_percent) == (NET, 0.5, 0.1, 0.8)
        assert control.hint is HINT


def test_entries_under_one_chain_stay_under_one_and_others_under_their_own():
    first = control_net_apply(conditioning(2), NET, HINT, 1.0)
    mixed = [*first, *conditioning(1)]
    positive, negative = control_net_apply_advanced(mixed, conditioning(1), NET, HINT, 0.5, 0.0, 1.0)
    a, b, c = (options["control"] for _, options in positive)
    assert a is b
    assert a.previous is first[0][1]["control"]
    assert c is not a
    assert c.previous is None
    assert negative[0][1]["control"] is c


def test_the_last_named_kind_of_hint_counts():
    named = set_union_control_net_type(NET, "depth")
    again = set_union_control_net_type(named, "auto")
    assert named.patches == (HintKind(1),)
    assert again.patches == (HintKind(1), HintKind(None))


def test_a_mask_changes_nothing_for_controlnets_that_read_none():
    vae = Recipe("vae", "checkpoints", "sd15.safetensors")
    applied = control_net_inpainting_ali_mama_apply(
        conditioning(), conditioning(), NET, vae, HINT, torch.ones(1, 16, 16), 0.5, 0.0, 1.0
    )
    assert applied[0][0][1]["control"].hint is HINT


def test_the_nodes_are_registered_under_comfyuis_titles():
    known = specs()
    assert [i.name for i in known["ControlNetApplySD3"].inputs][:5] == [
        "positive",
        "negative",
        "control_net",
        "vae",
        "image",
    ]
    assert known["ControlNetLoader"].inputs[0].folder == "controlnet"
    assert DISPLAY_NAMES["ControlNetApply"] == "Apply ControlNet (DEPRECATED)"


def test_the_hints_of_a_chain_count_among_what_a_replica_holds():
    chain = Control(NET, torch.zeros(1, 8, 8, 3), 1.0, previous=Control(NET, HINT, 1.0))
    tensors = (8 * 8 * 3 + 16 * 16 * 3) * 4
    assert tensors <= size_of([("cond", {"control": chain})]) < tensors + 1000
