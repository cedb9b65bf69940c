from __future__ import annotations

import pytest

from serve_app.errors import InvalidGraphError, Problem, did_you_mean


@pytest.mark.parametrize(
    ("given", "allowed", "meant"),
    [
        ("eular", "euler", True),
        ("sede", "seed", True),
        ("ksampler", "KSampler", True),
        ("dreamshapr.safetensors", "dreamshaper.safetensors", True),
        ("SetNode", "SeedNode", False),
        ("GetNode", "SeedNode", False),
        ("IPAdapter", "Painter", False),
        ("moss_image", "joyimage", False),
        ("KSampler (Efficient)", "KSampler (inspire)", False),
        ("ab", "", False),
        (None, "None", False),
        ("x" * 101, "x" * 101, False),
    ],
)
def test_only_a_typing_error_is_guessed_at(given, allowed, meant):
    assert did_you_mean(given, [allowed, "something else"]) == (f"; did you mean {allowed!r}?" if meant else "")


def test_the_nearest_word_is_the_one_meant():
    assert did_you_mean("sampler_b.safetensor", ["sampler_c.safetensors", "sampler_b.safetensors"]).endswith(
        "_b.safetensors'?"
    )


def test_the_words_of_many_problems_are_few():
    error = InvalidGraphError([Problem("missing_node_type", "x" * 50, node_id=str(n)) for n in range(3000)])
    assert len(error.problems) == 3000
    assert len(str(error)) < 2000
    assert str(error).endswith("; and 2980 more problems")
