"""A pool's ComfyUI, as the configuration says it."""

from __future__ import annotations

import pytest

from serve_app import config
from serve_app.errors import ConfigError
from serve_app.graph.plan import Pool


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
    assert (Pool.of(pool).whole, Pool.of(pool).prefers) == (True, ("Wan*",))
    with pytest.raises(ConfigError, match="accepts is not for a pool with comfyui"):
        config.parse({"pools": [settings | {"accepts": ["K*"]}]}, "here")
    with pytest.raises(ConfigError, match="a url is one replica, not 2"):
        config.parse({"pools": [settings | {"comfyui": {"url": "http://x:1"}, "max_replicas": 2}]}, "here")
    with pytest.raises(ConfigError, match="prefers is for a pool with comfyui"):
        config.parse({"pools": [{"name": "ours", "prefers": ["Wan*"]}]}, "here")
