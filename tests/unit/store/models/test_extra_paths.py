"""Further directories of models, named by a file as ComfyUI reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serve_app.errors import ConfigError, ModelFileError
from serve_app.store.models.catalog import Catalog
from serve_app.store.models.extra_paths import directories_with, read_extra_paths
from tests.unit.store.models.test_catalog import put

COMFYUI = """
comfyui:
    base_path: comfy/
    checkpoints: models/checkpoints/
    clip: |
        models/text_encoders/
        models/clip/
    unet: models/unet
    custom_nodes: custom_nodes/
a1111:
    base_path: $WEBUI
    is_default: true
    loras: |
        models/Lora
        models/LyCORIS
empty:
plain:
    vae: alone
"""


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.setenv("WEBUI", str(tmp_path / "webui"))
    (tmp_path / "extra_model_paths.yaml").write_text(COMFYUI)
    put(tmp_path / "models/loras/a.safetensors", b"own")
    for name in ("a", "b"):
        put(tmp_path / f"webui/models/Lora/{name}.safetensors", b"first")
    for path in ("models/checkpoints/c", "models/clip/d", "models/unet/e"):
        put(tmp_path / f"comfy/{path}.safetensors")
    put(tmp_path / "comfy/models/unet/f.gguf")
    put(tmp_path / "alone/g.safetensors")
    return Catalog(tmp_path / "models", directories_with(read_extra_paths(tmp_path / "extra_model_paths.yaml")))


def test_files_of_every_directory_are_listed_and_found(catalog: Catalog, tmp_path: Path) -> None:
    listed = {
        "checkpoints": ["c.safetensors"],
        "text_encoders": ["d.safetensors"],
        "clip": ["d.safetensors"],
        "diffusion_models": ["e.safetensors"],
        "unet_gguf": ["f.gguf"],
        "loras": ["a.safetensors", "b.safetensors"],
        "vae": ["g.safetensors"],
    }
    for folder, names in listed.items():
        assert catalog.names(folder) == names
        assert all(catalog.path(folder, name).is_file() for name in names)
        assert all(catalog.fingerprint(folder, name) != "absent" for name in names)
    assert catalog.path("vae", "g.safetensors") == tmp_path / "alone/g.safetensors"


def test_a_default_section_is_searched_first(catalog: Catalog) -> None:
    assert catalog.path("loras", "a.safetensors").read_bytes() == b"first"


def test_clients_do_not_learn_where_the_directories_are(catalog: Catalog) -> None:
    assert catalog.directories("loras") == ["extra/0", "extra/1", "models/loras"]
    assert catalog.directory_index("loras", "b.safetensors") == 1


def test_extra_directories_are_only_read(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"loras file 'b\.safetensors' is in a folder of extra_model_paths"):
        catalog.delete("loras", "b.safetensors")
    before = sorted(os.listdir(tmp_path / "webui/models/Lora"))
    with pytest.raises(FileExistsError):
        catalog.put("loras", "b.safetensors", iter([b"x"]))
    assert sorted(os.listdir(tmp_path / "webui/models/Lora")) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "is no mapping of sections"),
        ("comfyui: models", "comfyui is no mapping of folders to paths"),
        ("comfyui: {loras: [a, b]}", r"comfyui\.loras and base_path must be text, not \['a', 'b'\]"),
        ("comfyui: {", "cannot be read"),
    ],
)
def test_a_file_of_another_form_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "paths.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_extra_paths(file)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nosuch\.yaml cannot be read"):
        read_extra_paths(tmp_path / "nosuch.yaml")
