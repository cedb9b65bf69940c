"""Where files are, as the configuration says it."""

from __future__ import annotations

from functools import partial

import pytest

from serve_app import config
from serve_app.config import AppConfig
from serve_app.config.storage import BucketConfig
from serve_app.errors import ConfigError
from serve_app.replica.files import models_location
from serve_app.store.files.location import Location

location = partial(Location, patience_s=30.0, timeout_s=30.0)
S3 = {"kind": "s3", "bucket": "images", "endpoint": "http://store:9000", "path_style": True}


def test_clients_files_are_on_a_volume_unless_a_bucket_is_named():
    assert AppConfig().store.kind == "volume"
    stored = config.parse({"store": {**S3, "prefix": "site", "public_endpoint": "https://files.example"}}, "here").store
    assert isinstance(stored, BucketConfig)
    assert Location.of(stored) == location(
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
    assert models_location(AppConfig()) is None
    near = models_location(config.parse({"models": "s3://models/sd/all", "store": S3}, "here"))
    assert near == location("models", "sd/all", "http://store:9000", path_style=True)
    apart = {"bucket": "models", "endpoint": "https://elsewhere"}
    assert models_location(config.parse({"models": apart, "store": S3}, "here")).endpoint == "https://elsewhere"
    assert models_location(config.parse({"models": "s3://models"}, "here")) == location("models")
    with pytest.raises(ConfigError, match="s3://BUCKET/PREFIX"):
        config.parse({"models": "/models"}, "here")


def test_a_host_with_its_files_in_a_bucket_needs_no_directories_for_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.parse({"store": S3}, "here").resolved()
    assert not (tmp_path / "output").exists()


def test_a_configuration_with_a_bucket_survives_its_way_through_a_file():
    parsed = config.parse({"store": S3, "models": "s3://models/sd"}, "here")
    assert config.parse(parsed.model_dump(mode="json"), "there") == parsed
