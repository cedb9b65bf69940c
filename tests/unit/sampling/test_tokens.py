"""The next token of a text: which are left to be drawn, and how those that came before count."""

from dataclasses import replace

import pytest
import torch

from serve_app.sampling.tokens import next_token
from serve_app.values import TokenSampling

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
"""Shares of .64, .24, .09 and .03."""
ALL = TokenSampling(top_k=0)


def drawn(sampling, before=(), logits=LOGITS, times=200):
    generator = torch.Generator().manual_seed(0)
    return {next_token(logits, sampling, before, generator) for _ in range(times)}


def test_without_sampling_it_is_the_likeliest():
    assert next_token(LOGITS, None, (0,), None) == 0


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"top_p": 0.9}, {0, 1}),
        ({"top_p": 0.0}, {0}),
        ({"min_p": 0.1}, {0, 1, 2}),
        ({"min_p": 0.1, "top_k": 2}, {0, 1}),
        ({"temperature": 0.01}, {0}),
    ],
)
def test_what_is_unlikely_is_left_out(changes, left):
    assert drawn(replace(ALL, **changes)) == left


def test_a_token_that_came_before_is_less_likely_once_however_often_it_came():
    penalized = replace(ALL, presence_penalty=3.0, temperature=0.01)
    assert drawn(penalized, before=(0, 0, 0)) == {1}
    assert drawn(replace(penalized, presence_penalty=0.9), before=(0, 0, 0)) == {0}
    repeated = replace(ALL, repetition_penalty=3.0, temperature=0.01)
    assert drawn(repeated, before=(0,)) == {1}
    # A logit below zero is multiplied, and so falls too.
    assert drawn(repeated, before=(0,), logits=torch.tensor([[-1.0, -2.0]])) == {1}


def test_the_logits_are_not_changed():
    logits = LOGITS.clone()
    drawn(replace(ALL, top_p=0.5, min_p=0.1, presence_penalty=1.0, repetition_penalty=2.0), (0, 1), logits, times=1)
    assert torch.equal(logits, LOGITS)
