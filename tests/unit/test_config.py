"""Configuration: what files may say, and how a mistake is answered."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from serve_app import config
from serve_app.config import AppConfig, PoolConfig, parse
from serve_app.errors import ConfigError
from serve_app.graph.plan import takes
from serve_app.nodes.registry import specs
from serve_app.store.location import Location
from serve_app.store.retention import KINDS, Bounds

GPUS = {"none": 0, "half": 0.5, "one": 1, "two": 2}
SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_file_is_valid(path):
    assert config.load(path).pools


def test_shipped_files_are_found():
    assert {path.name for path in SHIPPED} >= {"local.yaml", "gpu.yaml", "cluster.yaml"}


def test_an_unknown_key_is_refused_by_its_path():
    with pytest.raises(ConfigError, match=r"here: pools\.0\.num_gpu: Extra inputs"):
        config.parse({"pools": [{"name": "gpu", "num_gpu": 1}]}, "here")


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


def test_every_wrong_key_is_named():
    with pytest.raises(ConfigError) as refused:
        config.parse({"max_queue": 0, "max_attempts": "many"}, "here")
    assert "max_queue" in str(refused.value)
    assert "max_attempts" in str(refused.value)


def test_two_pools_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="different names"):
        config.parse({"pools": [{"name": "a"}, {"name": "a"}]}, "here")


def test_a_minimum_over_the_maximum_is_refused():
    with pytest.raises(ConfigError, match="min_replicas 3 exceeds 2"):
        config.parse({"pools": [{"name": "a", "min_replicas": 3, "max_replicas": 2}]}, "here")


def test_a_file_that_is_no_serve_config_is_refused_with_its_path(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("applications: []")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        config.load(path)


def test_resolving_makes_paths_absolute_and_directories_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resolved = AppConfig().resolved()
    assert resolved.output_dir == tmp_path / "output"
    assert resolved.database_url == f"sqlite:///{tmp_path}/state/jobs.sqlite"
    assert (tmp_path / "state").is_dir()
    assert not (tmp_path / "models").exists()


def test_a_database_elsewhere_is_left_as_it_is():
    url = "postgresql+psycopg://db/jobs"
    assert AppConfig(database_url=url).resolved().database_url == url


def test_every_node_that_needs_models_has_exactly_one_pool_in_the_split_cluster():
    cluster = config.load(SHIPPED[0].parent / "cluster.yaml")
    pools = [pool.pool for pool in cluster.pools if pool.runtime]
    needing = [spec for spec in specs().values() if spec.runtime]
    assert len(needing) > 10
    for spec in needing:
        assert sum(takes(pool, spec) for pool in pools) == 1, spec.class_type


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


def test_the_split_clusters_model_pools_fit_on_one_card_together():
    cluster = config.load(SHIPPED[0].parent / "cluster.yaml")
    assert sum(pool.gpus for pool in cluster.pools) == pytest.approx(1)


location = partial(Location, patience_s=30.0, timeout_s=30.0)
S3 = {"kind": "s3", "bucket": "images", "endpoint": "http://store:9000", "path_style": True}


def test_clients_files_are_on_a_volume_unless_a_bucket_is_named():
    assert AppConfig().store.kind == "volume"
    stored = config.parse({"store": {**S3, "prefix": "site", "public_endpoint": "https://files.example"}}, "here").store
    assert stored.location == location(
        "images", "site", "http://store:9000", public_endpoint="https://files.example", path_style=True
    )


@pytest.mark.parametrize(
    ("store", "wrong"),
    [
        ({"kind": "s3"}, "store.s3.bucket"),
        ({"kind": "ftp"}, "store"),
        ({**S3, "endpoint": "store:9000"}, "must be a URL"),
        ({**S3, "endpoint": "http://me:secret@store:9000"}, "must hold no credentials"),
        ({**S3, "secret_access_key": "x"}, "store.s3.secret_access_key"),
        ({**S3, "bucket": "a/b"}, "store.s3.bucket"),
    ],
)
def test_a_store_that_cannot_be_is_refused_by_its_key(store, wrong):
    with pytest.raises(ConfigError, match=wrong) as refused:
        config.parse({"store": store}, "here")
    assert "secret@" not in str(refused.value)


def test_models_are_in_a_bucket_by_url_or_keys_and_with_the_store_unless_they_say_where():
    assert AppConfig().models_location is None
    near = config.parse({"models": "s3://models/sd/all", "store": S3}, "here").models_location
    assert near == location("models", "sd/all", "http://store:9000", path_style=True)
    apart = {"bucket": "models", "endpoint": "https://elsewhere"}
    assert config.parse({"models": apart, "store": S3}, "here").models_location.endpoint == "https://elsewhere"
    assert config.parse({"models": "s3://models"}, "here").models_location == location("models")
    with pytest.raises(ConfigError, match="s3://BUCKET/PREFIX"):
        config.parse({"models": "/models"}, "here")


def test_a_host_with_its_files_in_a_bucket_needs_no_directories_for_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.parse({"store": S3}, "here").resolved()
    assert not (tmp_path / "output").exists()


def test_a_configuration_with_a_bucket_survives_its_way_through_a_file():
    parsed = config.parse({"store": S3, "models": "s3://models/sd"}, "here")
    assert config.parse(parsed.model_dump(mode="json"), "there") == parsed


@pytest.mark.parametrize(
    ("comfyui", "words"),
    [
        ({}, "must have either directory or url"),
        ({"directory": "/opt/ComfyUI", "url": "http://here:8188"}, "must have either directory or url"),
        ({"url": "http://here:8188", "arguments": ["--fast"]}, "go with directory"),
        ({"url": "here:8188"}, "must be a URL"),
        ({"directory": "/opt/ComfyUI", "arguments": ["--port", "8188"]}, "--port must be left out"),
        ({"directory": "/opt/ComfyUI", "arguments": ["--listen=0.0.0.0"]}, "--listen=0.0.0.0 must be left out"),
    ],
)
def test_a_comfyui_that_cannot_be_is_refused(comfyui, words):
    with pytest.raises(ConfigError, match=words):
        config.parse({"pools": [{"name": "theirs", "comfyui": comfyui}]}, "here")


def test_a_pool_of_comfyui_runs_whole_graphs_one_at_a_time():
    settings = {"name": "theirs", "comfyui": {"directory": "ComfyUI"}, "prefers": ["Wan*"], "tasks_per_replica": 16}
    [pool] = config.parse({"pools": [settings]}, "here").pools
    assert pool.slots == 1
    assert (pool.pool.whole, pool.pool.prefers) == (True, ("Wan*",))
    with pytest.raises(ConfigError, match="accepts is not for a pool with comfyui"):
        config.parse({"pools": [settings | {"accepts": ["K*"]}]}, "here")
    with pytest.raises(ConfigError, match="a url is one replica, not 2"):
        config.parse({"pools": [settings | {"comfyui": {"url": "http://x:1"}, "max_replicas": 2}]}, "here")
    with pytest.raises(ConfigError, match="prefers is for a pool with comfyui"):
        config.parse({"pools": [{"name": "ours", "prefers": ["Wan*"]}]}, "here")


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
    assert config.parse({"pools": pools}, "here").latent_cells == most


def test_retention_is_off_and_a_tenants_bounds_of_a_kind_replace_everyones() -> None:
    assert not AppConfig().retention.rules.concern(*KINDS)
    given = {"history": {"count": 5}, "outputs": {"bytes": 9}, "tenants": {"acme": {"history": {"age_s": 1}}}}
    rules = parse({"retention": given}, "here").retention.rules
    assert rules.bounds("history", "acme") == Bounds(age_s=1.0)
    assert (rules.bounds("history", "other"), rules.bounds("outputs", "acme")) == (Bounds(count=5), Bounds(bytes=9))


@pytest.mark.parametrize(
    ("retention", "where"),
    [
        ({"history": {"age_s": -1}}, "retention.history.age_s: Input should be greater than or equal to 0"),
        ({"outputs": {"count": 1.5}}, "retention.outputs.count: Input should be a valid integer"),
        ({"temp": {"bytes": "much"}}, "retention.temp.bytes: Input should be a valid integer"),
        ({"histories": {}}, "retention.histories: Extra inputs are not permitted"),
        ({"tenants": {"a": {"history": {"days": 1}}}}, "retention.tenants.a.history.days: Extra inputs"),
    ],
)
def test_nonsense_in_retention_is_named(retention: Any, where: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(where)):
        parse({"retention": retention}, "here")


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
