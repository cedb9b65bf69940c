"""Pools, as the configuration says them."""

from __future__ import annotations

import pytest

from serve_app import config
from serve_app.config import parse
from serve_app.config.pool import PoolConfig
from serve_app.errors import ConfigError

GPUS = {"none": 0, "half": 0.5, "one": 1, "two": 2}


@pytest.mark.parametrize(
    ("old", "says"),
    [
        ({"max_rows": 16}, "max_rows is max_cells now: latent cells instead of rows"),
        ({"batching": False}, "strict: true"),
    ],
)
def test_a_key_that_is_no_more_says_what_is_there_instead(old, says):
    with pytest.raises(ConfigError, match=says):
        config.parse({"pools": [{"name": "gpu", **old}]}, "here")


def test_two_pools_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="different names"):
        config.parse({"pools": [{"name": "a"}, {"name": "a"}]}, "here")


def test_a_minimum_over_the_maximum_is_refused():
    with pytest.raises(ConfigError, match="min_replicas 3 exceeds 2"):
        config.parse({"pools": [{"name": "a", "min_replicas": 3, "max_replicas": 2}]}, "here")


def test_a_share_of_a_card_is_a_share_of_its_memory_and_whole_cards_have_no_limit():
    shares = {name: PoolConfig(name="a", num_gpus=gpus).memory_fraction for name, gpus in GPUS.items()}
    assert shares == {"none": None, "half": 0.5, "one": None, "two": None}


@pytest.mark.parametrize(
    ("pools", "gpus", "given"),
    [
        ([{"name": "a"}], 0, [0]),
        ([{"name": "a"}], 1, [1]),
        ([{"name": "a"}], 8, [1]),
        ([{"name": "a"}, {"name": "b"}, {"name": "worker", "runtime": False}], 1, [0.5, 0.5, 0]),
        ([{"name": "a"}, {"name": "b"}, {"name": "c"}], 1, [0.3333, 0.3333, 0.3333]),
        ([{"name": "a"}, {"name": "b", "num_gpus": 0.6}], 1, [0.4, 0.6]),
        ([{"name": "a"}, {"name": "b", "num_gpus": 2}], 1, [0, 2]),
        ([{"name": "a", "device": "cpu"}, {"name": "b", "num_gpus": 0}], 1, [0, 0]),
        ([{"name": "a"}, {"name": "theirs", "comfyui": {"url": "http://x:1"}}], 1, [1, 0]),
    ],
)
def test_a_pool_that_does_not_say_takes_a_gpu_if_there_is_one_left(pools, gpus, given):
    on = config.parse({"pools": pools}, "here").on(gpus)
    assert [pool.num_gpus for pool in on.pools] == pytest.approx(given)


@pytest.mark.parametrize(
    ("pools", "most"),
    [
        ([{"name": "cpu"}], 131_072),
        ([{"name": "cpu"}, {"name": "gpu", "num_gpus": 0.5}], 1_048_576),
        ([{"name": "gpu", "num_gpus": 1, "latent_cells": 5}, {"name": "less", "latent_cells": 4}], 5),
        ([{"name": "worker", "runtime": False}], None),
        ([{"name": "theirs", "comfyui": {"url": "http://x:1"}}], None),
    ],
)
def test_the_largest_latents_are_those_of_the_shared_pool_that_takes_most(pools, most):
    latents = config.parse({"pools": pools}, "here").latents
    assert (latents and latents.cells) == most


@pytest.mark.parametrize(
    "warm",
    [
        *("sd15.safetensors", "loras/x.safetensors", "checkpoints/", "text_encoders/ as flux", "text_encoders/l as "),
        *("text_encoders/l + ", "clip_gguf/ + t5.gguf as flux"),
    ],
)
def test_what_cannot_be_loaded_ahead_is_refused(warm: str) -> None:
    named = [
        "checkpoints/sd15.safetensors",
        "vae/x.safetensors",
        "text_encoders/l.safetensors + t5.safetensors as flux",
    ]
    parse({"pools": [{"name": "gpu", "warm": named}]}, "here")
    with pytest.raises(
        ConfigError, match="must be FOLDER/NAME, of checkpoints, diffusion_models, unet_gguf, vae, text"
    ):
        parse({"pools": [{"name": "gpu", "warm": [warm]}]}, "here")


@pytest.mark.parametrize("option", [{"attention": "sage"}, {"compile": True}, {"step_cache": 0.2}])
def test_a_setting_for_speed_by_which_pictures_differ_is_refused_with_strict_and_without_models(option):
    [key] = option
    assert PoolConfig(name="a", **option).optimizations == option
    with pytest.raises(ConfigError, match=f"strict is true, and pool a has {key}; give one or the other"):
        config.parse({"strict": True, "pools": [{"name": "a", **option}]}, "here")
    with pytest.raises(ConfigError, match=f"pool a: {key} is for a pool whose replicas hold models"):
        config.parse({"pools": [{"name": "a", "runtime": False, **option}]}, "here")
    with pytest.raises(ConfigError, match=f"pool a: {key} is not for a pool with comfyui"):
        config.parse({"pools": [{"name": "a", "comfyui": {"url": "http://x:1"}, **option}]}, "here")


def test_settings_for_speed_are_named_unless_they_are_the_default():
    assert PoolConfig(name="a").optimizations == {}
    assert PoolConfig(name="a", fast=True, fp8_matmul=True).optimizations == {"fast": True, "fp8_matmul": True}


@pytest.mark.parametrize(
    ("pool", "says"),
    [
        ({"devices_per_replica": 2, "num_gpus": 0.5}, "num_gpus is of each of devices_per_replica 2"),
        ({"devices_per_replica": 2, "num_gpus": 2}, "it is 0 or 1, not 2"),
        ({"devices_per_replica": 2, "runtime": False}, "whose replicas hold models"),
        ({"parallel": "rows"}, "devices_per_replica of 2 or more"),
        ({"shard_weights": "auto"}, "shard_weights is for a pool with devices_per_replica of 2 or more"),
        ({"spans_hosts": True}, "spans_hosts is for a pool with devices_per_replica of 2 or more"),
    ],
)
def test_devices_of_a_replica_are_whole_and_compute_with_models(pool: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse({"pools": [{"name": "gpu", **pool}]}, "here")


def test_each_device_of_a_replica_gets_a_gpu_and_too_few_are_refused_in_a_line() -> None:
    both = [{"name": "video", "devices_per_replica": 4}, {"name": "gpu"}]
    given = parse({"pools": both}, "here")
    assert [pool.gpus for pool in given.on(5).pools] == [1, 1]
    assert [pool.gpus for pool in given.on(4).pools] == [1, 0]
    assert [pool.gpus for pool in given.on(0).pools] == [0, 0]
    with pytest.raises(ConfigError, match="devices_per_replica is 4, and the cluster has 2 GPUs, 2 fewer"):
        given.on(2)
