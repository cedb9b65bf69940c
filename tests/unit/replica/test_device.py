"""Where a pool's models are, and what is said where that cannot be."""

from __future__ import annotations

import pytest
import torch

from serve_app.config import PoolConfig
from serve_app.errors import ConfigError
from serve_app.replica.assemble import device_of


@pytest.mark.parametrize(
    ("given", "found", "device"),
    [
        ({"num_gpus": 0}, True, "cpu"),
        ({"num_gpus": 0.5}, True, "cuda"),
        ({"num_gpus": 1, "device": "cpu"}, True, "cpu"),
        ({"num_gpus": 1, "device": "cpu"}, False, "cpu"),
        ({"num_gpus": 0}, False, "cpu"),
    ],
)
def test_models_are_on_the_gpu_that_a_pool_has(monkeypatch, given, found, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert device_of(PoolConfig(name="a", **given)).type == device


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"pool a: num_gpus is 0\.5, and torch finds no GPU here"):
        device_of(PoolConfig(name="a", num_gpus=0.5))
