from __future__ import annotations

import os
from pathlib import Path

import pytest

from serve_app.errors import ModelFileError
from serve_app.store.models.catalog import Catalog


def put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_names_are_sorted_recursive_and_only_model_files(tmp_path: Path) -> None:
    for name in ("b.safetensors", "sub/deep/A.SFT", "a.safetensors", "notes.txt", "old.ckpt", ".git/x.safetensors"):
        put(tmp_path / "checkpoints" / name)
    assert Catalog(tmp_path).names("checkpoints") == ["a.safetensors", "b.safetensors", "sub/deep/A.SFT"]


def test_upscale_models_may_be_pickles_of_tensors(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pt", "c.safetensors", "d.ckpt"):
        put(tmp_path / "upscale_models" / name)
    catalog = Catalog(tmp_path)
    assert catalog.names("upscale_models") == ["a.pth", "b.pt", "c.safetensors"]
    assert catalog.path("upscale_models", "a.pth") == tmp_path / "upscale_models" / "a.pth"
    with pytest.raises(ModelFileError, match=r"allowed: .*\.safetensors, \.sft, \.pth, \.pt$"):
        catalog.path("upscale_models", "d.ckpt")


def test_a_folder_that_was_never_made_is_empty(tmp_path: Path) -> None:
    assert Catalog(tmp_path / "nowhere").names("loras") == []


def test_old_and_new_folder_names_show_the_same_files(tmp_path: Path) -> None:
    old, new = put(tmp_path / "clip/a.safetensors"), put(tmp_path / "text_encoders/b.safetensors")
    catalog = Catalog(tmp_path)
    assert catalog.names("clip") == catalog.names("text_encoders") == ["a.safetensors", "b.safetensors"]
    assert catalog.path("text_encoders", "a.safetensors") == old
    assert catalog.path("clip", "b.safetensors") == new


def test_a_name_in_a_subfolder_has_a_path(tmp_path: Path) -> None:
    path = put(tmp_path / "loras/style/x.safetensors")
    assert Catalog(tmp_path).path("loras", "style/x.safetensors") == path


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    put(tmp_path / "checkpoints/dreamshaper.safetensors")
    with pytest.raises(ModelFileError, match=r"did you mean 'dreamshaper\.safetensors'"):
        Catalog(tmp_path).path("checkpoints", "dreamshapr.safetensors")


def test_an_unknown_folder_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="did you mean 'loras'"):
        Catalog(tmp_path).names("lorras")


def test_a_pickle_is_refused_even_where_it_exists(tmp_path: Path) -> None:
    put(tmp_path / "checkpoints/x.ckpt")
    with pytest.raises(ModelFileError, match=r"allowed: \.safetensors"):
        Catalog(tmp_path).path("checkpoints", "x.ckpt")


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/x.safetensors", "a/../../secret.safetensors", "\0.sft"]
)
def test_a_name_does_not_leave_its_folder(tmp_path: Path, name: str) -> None:
    put(tmp_path / "secret.safetensors")
    put(tmp_path / "checkpoints/a/x.safetensors")
    catalog = Catalog(tmp_path)
    with pytest.raises(ModelFileError):
        catalog.path("checkpoints", name)
    assert catalog.fingerprint("checkpoints", name) == "absent"


def test_links_to_other_disks_are_followed_and_circles_end(tmp_path: Path) -> None:
    put(tmp_path / "disk/big.safetensors")
    models = tmp_path / "models"
    put(models / "checkpoints/own.safetensors")
    (models / "checkpoints/disk").symlink_to(tmp_path / "disk")
    (models / "checkpoints/self").symlink_to(models / "checkpoints")
    (models / "checkpoints/broken.safetensors").symlink_to(tmp_path / "nowhere")
    catalog = Catalog(models)
    assert catalog.names("checkpoints") == ["disk/big.safetensors", "own.safetensors"]
    assert catalog.path("checkpoints", "disk/big.safetensors").read_bytes() == b"x"


def test_a_fingerprint_changes_with_size_and_with_time_only(tmp_path: Path) -> None:
    path = put(tmp_path / "vae/x.safetensors", b"one")
    catalog = Catalog(tmp_path)
    first = catalog.fingerprint("vae", "x.safetensors")
    assert catalog.fingerprint("vae", "x.safetensors") == first
    put(path, b"longer")
    assert catalog.fingerprint("vae", "x.safetensors") != first
    put(path, b"one")
    os.utime(path, ns=(1, 1))
    assert catalog.fingerprint("vae", "x.safetensors") != first


def test_a_taesd_is_a_vae_once_both_of_its_halves_are_there(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    put(tmp_path / "vae/own.safetensors")
    put(tmp_path / "vae_approx/taesd_encoder.safetensors")
    assert catalog.choices("vae") == ["own.safetensors", "pixel_space"]
    put(tmp_path / "vae_approx/taesd_decoder.safetensors")
    assert catalog.choices("vae") == ["own.safetensors", "taesd", "pixel_space"]
    assert catalog.names("vae") == ["own.safetensors"]
    before = catalog.fingerprint("vae", "taesd")
    put(tmp_path / "vae_approx/taesd_decoder.safetensors", b"other")
    assert catalog.fingerprint("vae", "taesd") != before


def test_a_tiny_autoencoder_of_videos_is_a_vae_by_the_name_of_its_file(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    put(tmp_path / "vae_approx/taehv.safetensors")
    put(tmp_path / "vae_approx/taehv_of_mine.safetensors")
    assert catalog.choices("vae") == ["taehv.safetensors", "pixel_space"]
    assert catalog.names("vae") == []
    before = catalog.fingerprint("vae", "taehv.safetensors")
    put(tmp_path / "vae_approx/taehv.safetensors", b"other")
    assert catalog.fingerprint("vae", "taehv.safetensors") != before


def test_a_folder_in_diffusers_layout_is_one_name_for_the_files_of_its_parts(tmp_path: Path) -> None:
    put(tmp_path / "diffusers/sd/mine/model_index.json")
    put(tmp_path / "diffusers/unfinished/unet/diffusion_pytorch_model.safetensors")
    inside = tmp_path / "diffusers/sd/mine"
    unet = put(inside / "unet/diffusion_pytorch_model.safetensors")
    half = put(inside / "unet/diffusion_pytorch_model.fp16.safetensors")
    texts = [put(inside / name / "model.safetensors") for name in ("text_encoder", "text_encoder_2")]
    catalog = Catalog(tmp_path)
    assert catalog.names("diffusers") == ["sd/mine"]
    assert catalog.paths("diffusers", "sd/mine", "backbone") == [half]
    assert catalog.paths("diffusers", "sd/mine", "clip") == texts
    before = catalog.fingerprint("diffusers", "sd/mine")
    half.unlink()
    assert catalog.paths("diffusers", "sd/mine", "backbone") == [unet]
    assert catalog.fingerprint("diffusers", "sd/mine") != before
    with pytest.raises(ModelFileError, match=r"'sd/mine' in .* has no vae/diffusion_pytorch_model\.safetensors"):
        catalog.paths("diffusers", "sd/mine", "vae")
