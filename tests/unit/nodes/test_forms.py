"""Classes that are another form of one that is tested elsewhere: each gives what that one gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve_app.nodes.registry import BUILTIN

A, B, C, D = ([[torch.full((1, 2, 3), float(value)), {"mine": value}]] for value in range(4))
PROPERTIES = {"strength": 0.5, "set_cond_area": "default", "mask": torch.ones(1, 4, 4)}


def run(class_type: str, **inputs: Any) -> Any:
    node: Any = BUILTIN[class_type]()
    return getattr(node, node.FUNCTION)(**inputs)


def test_a_pair_of_conditionings_is_combined_as_each_of_them() -> None:
    (positive,) = run("ConditioningCombine", conditioning_1=A, conditioning_2=C)
    (negative,) = run("ConditioningCombine", conditioning_1=B, conditioning_2=D)
    pair = run("PairConditioningCombine", positive_A=A, negative_A=B, positive_B=C, negative_B=D)
    assert pair == (positive, negative)


def test_a_pair_is_given_defaults_as_each_of_them() -> None:
    pair = run("PairConditioningSetDefaultCombine", positive=A, negative=B, positive_DEFAULT=C, negative_DEFAULT=D)
    each = ((A, C), (B, D))
    alone = [run("ConditioningSetDefaultCombine", cond=cond, cond_DEFAULT=default)[0] for cond, default in each]
    assert [entry[1] for entry in pair[0]] == [entry[1] for entry in alone[0]]
    assert [entry[1] for entry in pair[1]] == [entry[1] for entry in alone[1]]
    assert [entry[1].get("default", False) for entry in pair[0]] == [False, True]


def test_what_is_given_properties_comes_after_what_was_there() -> None:
    (new,) = run("ConditioningSetProperties", cond_NEW=C, **PROPERTIES)
    (combined,) = run("ConditioningSetPropertiesAndCombine", cond=A, cond_NEW=C, **PROPERTIES)
    assert [entry[1] for entry in combined] == [A[0][1], new[0][1]]
    assert new[0][1]["mask_strength"] == 0.5
    news = {"positive_NEW": C, "negative_NEW": D}
    pair = run("PairConditioningSetPropertiesAndCombine", positive=A, negative=B, **news, **PROPERTIES)
    assert [entry[1] for entry in pair[0]] == [entry[1] for entry in combined]
    assert [entry[1]["mine"] for entry in pair[1]] == [1, 3]


@pytest.mark.parametrize("class_type", ["CombineHooks2", "CombineHooks8"])
def test_hooks_are_combined_however_many_places_there_are(class_type: str) -> None:
    hooks = [run("CreateHookLoraModelOnly", lora_name=f"{n}.safetensors", strength_model=1.0)[0] for n in "ab"]
    places = {"hooks_A": hooks[0], "hooks_B": hooks[1]}
    assert run(class_type, **places) == run("CombineHooks4", **places)
    assert run(class_type, hooks_A=None, hooks_B=None) == (None,)


@pytest.mark.parametrize(("class_type", "value"), [("PrimitiveFloat", 0.25), ("PrimitiveStringMultiline", "a\nb")])
def test_a_primitive_gives_its_value(class_type: str, value: Any) -> None:
    assert run(class_type, value=value) == (value,)


@pytest.mark.parametrize(
    ("class_type", "name", "given", "kept"),
    [
        ("SamplerLCM", "lcm", {"s_noise": 0.5, "s_noise_end": 0.25, "noise_clip_std": 2.0}, {"s_noise_end": 0.25}),
        ("SamplerSEEDS2", "seeds_2", {"solver_type": "phi_2", "eta": 0.5, "s_noise": 0.9, "r": 0.4}, {"r": 0.4}),
    ],
)
def test_a_sampler_with_numbers_of_its_own_is_that_sampler(
    class_type: str, name: str, given: dict[str, Any], kept: dict[str, Any]
) -> None:
    (choice,) = run(class_type, **given)
    assert choice.name == name
    assert choice.options.items() >= kept.items()
