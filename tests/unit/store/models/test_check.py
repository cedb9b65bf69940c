"""What the headers of model files say of them, before a job with them is accepted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serve_app.store.models.catalog import Catalog
from serve_app.store.models.check import ModelCheck
from serve_app.store.models.kinds import ROLES

FOLDER = {
    "backbone": "diffusion_models",
    "clip": "text_encoders",
    "vae": "vae",
    "controlnet": "controlnet",
    "model_patch": "model_patches",
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for directories in ("unet", "diffusion_models", "text_encoders", "vae", "controlnet", "model_patches", "loras"):
        (tmp_path / directories).mkdir()
    return tmp_path


def written(models: Path, part: str, *names: str, rows: int = 1) -> str | None:
    """Return why a file with tensors of these names cannot be the part."""
    path = models / FOLDER[part] / "a.safetensors"
    save_file({name: torch.zeros(rows, 1) for name in names}, path)
    return ModelCheck(Catalog(models)).refusal(part, FOLDER[part], "a.safetensors")


@pytest.mark.parametrize(
    ("part", "title", "names"),
    [
        ("backbone", "Wan Dancer", ("head.modulation", "patch_embedding_global.weight")),
        ("backbone", "PixelDiT", ("core.pixel_embedder.proj.weight",)),
        ("backbone", "HunyuanImage", ("txt_in.individual_token_refiner.blocks.0.norm1.weight",)),
        ("backbone", "Lens", ("transformer_blocks.0.img_mlp.w1.weight",)),
        ("vae", "CogVideoX", ("decoder.conv_in.conv.weight",)),
        ("model_patch", "Uni3C's of Wan", ("controlnet_patch_embedding.weight",)),
        ("controlnet", "Hunyuan-DiT", ("after_proj_list.18.bias", "controlnet_blocks.0.weight")),
    ],
)
def test_a_family_that_is_known_and_lacking_is_refused_by_name(
    models: Path, part: str, title: str, names: tuple[str, ...]
) -> None:
    wanted = ROLES[part].wanted
    reason = written(models, part, *names)
    assert reason is not None
    assert reason.startswith(f"holds a {wanted} of {title}, which is not supported; supported are ")


def test_similar_text_encoders_are_distinguished_by_their_tensors(models: Path) -> None:
    names = ("model.layers.0.post_attention_layernorm.weight", "model.layers.0.self_attn.q_norm.weight")
    assert written(models, "clip", *names, rows=2560) is None
    assert "GPT-OSS, which is not supported" in str(written(models, "clip", *names, "model.layers.0.self_attn.sinks"))


def test_a_file_of_no_family_says_what_it_looks_like_and_what_is_wanted(models: Path) -> None:
    reason = str(written(models, "backbone", "some.weight"))
    assert reason.startswith("holds no diffusion network that is known; supported are ACE-Step 1.5, Anima, ")
    lora = str(written(models, "backbone", "diffusion_model.blocks.0.lora_A.weight"))
    assert "no diffusion network that is known (it looks like a LoRA)" in lora
    vae = str(written(models, "backbone", "decoder.conv_in.weight"))
    assert "(it looks like a VAE of Stable Diffusion, Flux.1 and Flux.2)" in vae


def test_adapters_that_are_laid_out_like_other_networks_are_left_to_the_loading(models: Path) -> None:
    assert written(models, "controlnet", "conv_in.weight", "body.0.block1.weight") is None


def test_a_file_that_is_absent_or_of_a_format_of_its_own_is_left_to_who_reads_it(models: Path) -> None:
    check = ModelCheck(Catalog(models))
    assert check.refusal("vae", "vae", "absent.safetensors") is None
    assert check.refusal("vae", "vae", "taesd") is None
    assert check.refusal("backbone", "diffusers", "folder") is None


def test_a_tiny_autoencoder_of_videos_is_checked_where_it_is(models: Path) -> None:
    (models / "vae_approx").mkdir()
    save_file({"some.weight": torch.zeros(1)}, models / "vae_approx" / "taehv.safetensors")
    save_file({"decoder.22.bias": torch.zeros(3)}, models / "vae_approx" / "taeh3.safetensors")
    check = ModelCheck(Catalog(models))
    assert "holds no VAE that is known" in str(check.refusal("vae", "vae", "taehv.safetensors"))
    assert check.refusal("vae", "vae", "taeh3.safetensors") is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no safetensors file: its header is not there"),
        (b"GGUF\3\0\0\0" + bytes(100), "is no safetensors file: its header is not there"),
        ((5).to_bytes(8, "little") + b"{not ", "is no safetensors file: its header cannot be read"),
        ((50).to_bytes(8, "little") + b"{}", "is no safetensors file: its header cannot be read"),
        ((2).to_bytes(8, "little") + b"[]", "its header says nothing of tensors"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "its header has no shapes of tensors"),
    ],
)
def test_a_damaged_file_is_refused(models: Path, content: bytes, reason: str) -> None:
    (models / "vae" / "a.safetensors").write_bytes(content)
    assert reason in str(ModelCheck(Catalog(models)).refusal("vae", "vae", "a.safetensors"))


def test_a_file_that_is_cut_off_says_how_much_of_it_is_there(models: Path) -> None:
    path = models / "vae" / "a.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(100)}, path)
    whole = path.stat().st_size
    os.truncate(path, whole - 1)
    reason = ModelCheck(Catalog(models)).refusal("vae", "vae", "a.safetensors")
    assert reason == f"is cut off: it has {whole - 1:,} of {whole:,} bytes"


def test_a_file_is_read_once_until_it_changes(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models / "vae" / "a.safetensors"
    save_file({"some.weight": torch.zeros(1)}, path)
    catalog = Catalog(models)
    opened: list[str] = []
    open_ = catalog.open
    monkeypatch.setattr(catalog, "open", lambda folder, name: (opened.append(name), open_(folder, name))[1])
    check = ModelCheck(catalog)
    assert [check.refusal("vae", "vae", "a.safetensors") is None for _ in range(3)] == [False] * 3
    assert len(opened) == 1
    save_file({"decoder.conv_in.weight": torch.zeros(2)}, path)
    assert check.refusal("vae", "vae", "a.safetensors") is None
    assert len(opened) == 2
