"""The configuration as a whole: what files may say, and how a mistake is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app import config
from serve_app.config import AppConfig
from serve_app.errors import ConfigError
from serve_app.graph.plan import Pool, takes
from serve_app.nodes.registry import specs

SHIPPED = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_file_is_valid(path):
    assert config.load(path).pools


def test_shipped_files_are_found():
    assert {path.name for path in SHIPPED} >= {"local.yaml", "gpu.yaml", "cluster.yaml"}


def test_an_unknown_key_is_refused_by_its_path():
    said = r"^here: pools\.0\.num_gpu: there is no such key; did you mean 'num_gpus'\?$"
    with pytest.raises(ConfigError, match=said):
        config.parse({"pools": [{"name": "gpu", "num_gpu": 1}]}, "here")


def test_every_wrong_key_is_named():
    with pytest.raises(ConfigError) as refused:
        config.parse({"max_queue": 0, "max_attempts": "many"}, "here")
    assert "max_queue" in str(refused.value)
    assert "max_attempts" in str(refused.value)


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
    pools = [Pool.of(pool) for pool in cluster.pools if pool.runtime]
    needing = [spec for spec in specs().values() if spec.runtime]
    assert len(needing) > 10
    for spec in needing:
        assert sum(takes(pool, spec) for pool in pools) == 1, spec.class_type


def test_the_split_clusters_model_pools_fit_on_one_card_together():
    cluster = config.load(SHIPPED[0].parent / "cluster.yaml")
    assert sum(pool.gpus for pool in cluster.pools) == pytest.approx(1)
