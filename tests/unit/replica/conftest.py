"""A folder with one small checkpoint, for every replica of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.models.sample import write_sample_checkpoint


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one small checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    write_sample_checkpoint(folder / "checkpoints" / "tiny.safetensors")
    return folder


@pytest.fixture
def root(tmp_path: Path, models: Path) -> Path:
    """A server's folder with those models."""
    (tmp_path / "models").symlink_to(models)
    return tmp_path
