"""Models saved as files: under the names that were read, with what changes weights in them, and readable again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from serve_app.errors import ModelFileError
from serve_app.models.families import AutoencoderKL, ClipText, Sdxl
from serve_app.models.families.family import Family
from serve_app.models.files import saving
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import reverse, translate
from serve_app.models.files.safetensors_file import SafetensorsFile
from serve_app.recipe.recipe import Recipe, tiny_vae
from serve_app.recipe.text import ClipSkip, LoadedAs
from serve_app.recipe.training import Discrete
from serve_app.recipe.weights import Lora, Rounded
from serve_app.store.models.catalog import Catalog
from tests.parity.dit_cases import noise, weights
from tests.parity.figures import GOLDEN
from tests.unit.models.sample import random_tensors

KEYS = json.loads((GOLDEN / "dit_keys.json").read_text())
BACKBONES = sorted(set(KEYS) - {"flux2_vae", "wan_vae"})
UNET = Sdxl((32, 64), (1, 1), (0, 1), 1, 128, linear=True, vector_dim=1536 + 64)
L, G = ClipText(1, 64, 64, 77), ClipText(31, 64, 64, 77, "g", projection=64)
VAE = AutoencoderKL((32, 32), 1, 4, 3, quantized=True)


def written(file: SafetensorsFile) -> bytes:
    return b"".join(bytes(piece) for piece in file)


def saved(root: Path, name: str, file: SafetensorsFile) -> Catalog:
    (root / "checkpoints").mkdir(exist_ok=True)
    (root / "checkpoints" / name).write_bytes(written(file))
    return Catalog(root)


def tensors(file: SafetensorsFile) -> dict[str, Tensor]:
    return dict(safetensors.torch.load(written(file)))


def model_file(catalog: Catalog, recipe: Recipe) -> SafetensorsFile:
    return saving.checkpoint_file(catalog, recipe, None, None, {}, silent)


def silent(done: int, of: int) -> None:
    pass


@pytest.mark.parametrize("net", BACKBONES)
def test_a_backbone_is_saved_as_it_was_read(tmp_path: Path, net: str) -> None:
    own = weights(KEYS[net])
    (tmp_path / "diffusion_models").mkdir()
    save_file(own, tmp_path / "diffusion_models" / "a.safetensors")
    file = tensors(model_file(Catalog(tmp_path), Recipe("backbone", "diffusion_models", "a.safetensors")))
    # What stands in for a text that is left out in training is not read.
    renamed = {f"{saving.PREFIX}{name}": tensor for name, tensor in own.items() if name != "y_embedder.y_embedding"}
    assert file.keys() == renamed.keys()
    for name, tensor in renamed.items():
        torch.testing.assert_close(file[name].reshape(tensor.shape), tensor, rtol=0, atol=0, msg=name)
        assert file[name].dtype == tensor.dtype
    assert {name: file[name].shape for name in file} == {name: tensor.shape for name, tensor in renamed.items()}


@pytest.fixture
def sdxl(tmp_path: Path) -> Catalog:
    """Return the files of an SDXL in parts: OpenCLIP's encoder under transformers' names, and a LoRA."""
    for folder in ("diffusion_models", "text_encoders", "vae", "loras"):
        (tmp_path / folder).mkdir()
    save_file(random_tensors(UNET), tmp_path / "diffusion_models" / "unet.safetensors")
    for name, family in (("l", L), ("g", G)):
        save_file(text(family), tmp_path / "text_encoders" / f"{name}.safetensors")
    save_file(random_tensors(VAE), tmp_path / "vae" / "vae.safetensors")
    save_file(
        {
            "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_up.weight": noise("up", (64, 2)),
            "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q.lora_down.weight": noise("down", (2, 64)),
        },
        tmp_path / "loras" / "style.safetensors",
    )
    return Catalog(tmp_path)


def text(family: ClipText) -> dict[str, Tensor]:
    """Return a text encoder's file, named as by transformers."""
    names = reverse(family.published(""))
    empty = family.empty().state_dict()
    assert all(translate(name, names) for name in empty)
    return {translate(name, names) or "": noise(f"{family.kind} {name}", t.shape) / 8 for name, t in empty.items()}


MODEL = Recipe("backbone", "diffusion_models", "unet.safetensors")
CLIP = Recipe("clip", "text_encoders", "l.safetensors", (LoadedAs("sdxl"),), ("g.safetensors",))
VAE_RECIPE = Recipe("vae", "vae", "vae.safetensors")


def test_a_checkpoint_is_made_of_parts_under_the_names_of_its_family(sdxl: Catalog, tmp_path: Path) -> None:
    lora = MODEL.with_patch(Lora("style.safetensors", 0.5))
    file = saving.checkpoint_file(sdxl, lora, CLIP.with_patch(ClipSkip(-1)), VAE_RECIPE, {"prompt": "{}"}, silent)
    catalog = saved(tmp_path, "all.safetensors", file)
    path = catalog.path("checkpoints", "all.safetensors")
    with safe_open(str(path), "pt") as opened:
        names, metadata = set(opened.keys()), opened.metadata()
    assert metadata == {
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "sgm",
        "modelspec.title": "ComfyUI",
        "modelspec.predict_key": "epsilon",
        "prompt": "{}",
    }
    assert {name.rpartition("transformer_blocks")[0] or name for name in names} > {
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
        "first_stage_model.decoder.mid.attn_1.q.weight",
    }
    one = Checkpoint(path)
    beside = (
        Checkpoint(sdxl.path("text_encoders", "l.safetensors")),
        Checkpoint(sdxl.path("text_encoders", "g.safetensors")),
    )
    same(one.load("clip"), beside[0].load("clip", beside[1:], loaded_as="sdxl"))
    same(one.load("vae"), Checkpoint(sdxl.path("vae", "vae.safetensors")).load("vae"))
    family, module = one.load("backbone")
    _, plain = Checkpoint(sdxl.path("diffusion_models", "unet.safetensors")).load("backbone")
    changed = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    expected = plain.get_parameter(changed).float() + 0.5 * noise("up", (64, 2)) @ noise("down", (2, 64))
    assert isinstance(family, Sdxl)
    torch.testing.assert_close(module.get_parameter(changed), expected.half(), rtol=0, atol=0)
    assert different(module.state_dict(), plain.state_dict()) == {changed}


def same(one: tuple[Family, torch.nn.Module], other: tuple[Family, torch.nn.Module]) -> None:
    assert type(one[0]) is type(other[0])
    assert different(one[1].state_dict(), other[1].state_dict()) == set()


def different(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name, tensor in one.items() if not torch.equal(tensor, other[name])}


def test_text_encoders_are_saved_apart_and_read_again_together(sdxl: Catalog, tmp_path: Path) -> None:
    files = saving.text_files(sdxl, CLIP, {}, silent)
    assert list(files) == ["_clip_l", "_clip_g"]
    for end, family in (("_clip_l", L), ("_clip_g", G)):
        own, file = text(family), tensors(files[end])
        assert file.keys() == own.keys()
        assert different(file, own) == set()


def test_a_vae_is_saved_as_its_file_has_it(sdxl: Catalog) -> None:
    own = {name.removeprefix("first_stage_model."): t for name, t in random_tensors(VAE).items()}
    file = tensors(saving.vae_file(sdxl, VAE_RECIPE, {}, silent))
    assert file.keys() == own.keys()
    assert different(file, own) == set()


def test_half_a_vae_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "vae_approx").mkdir()
    for half in ("encoder", "decoder"):
        save_file({"0.weight": torch.ones(2)}, tmp_path / "vae_approx" / f"taesd_{half}.safetensors")
    with pytest.raises(ModelFileError, match=r"'taesd_encoder\.safetensors' is a half of a VAE in two files"):
        saving.vae_file(Catalog(tmp_path), tiny_vae("taesd"), {}, silent)


@pytest.mark.parametrize(
    ("extra", "patches", "expected", "key"),
    [
        (("v_pred",), (), {"v_pred"}, "v"),
        (("v_pred", "ztsnr"), (), {"v_pred", "ztsnr"}, "v"),
        (("v_pred",), (Discrete("v_prediction", zsnr=True),), {"v_pred", "ztsnr"}, "v"),
        ((), (), set(), "epsilon"),
    ],
)
def test_a_file_says_what_its_backbone_predicts(
    sdxl: Catalog, tmp_path: Path, extra: Iterable[str], patches: tuple[Discrete, ...], expected: set[str], key: str
) -> None:
    own = random_tensors(UNET) | {name: torch.tensor([]) for name in extra}
    save_file(own, tmp_path / "diffusion_models" / "v.safetensors")
    file = model_file(sdxl, Recipe("backbone", "diffusion_models", "v.safetensors", patches))
    assert {written.name for written in file.tensors if "." not in written.name} == expected
    catalog = saved(tmp_path, "v.safetensors", file)
    path = catalog.path("checkpoints", "v.safetensors")
    assert Checkpoint(path).training() == Discrete("v_prediction" if key == "v" else "eps", "ztsnr" in expected)
    with safe_open(str(path), "pt") as opened:
        assert opened.metadata()["modelspec.predict_key"] == key


def test_a_rounded_model_is_saved_in_eight_bits(sdxl: Catalog) -> None:
    file = tensors(model_file(sdxl, MODEL.with_patch(Rounded("float8_e4m3fn"))))
    assert {tensor.dtype for tensor in file.values()} == {torch.float8_e4m3fn}
    own = random_tensors(UNET)
    assert all(torch.equal(file[name].float(), own[name].to(torch.float8_e4m3fn).float()) for name in own)


def test_a_file_is_the_same_each_time_and_as_long_as_its_header_says(sdxl: Catalog) -> None:
    seen: list[tuple[int, int]] = []
    file = saving.checkpoint_file(sdxl, MODEL, CLIP, VAE_RECIPE, {}, lambda done, of: seen.append((done, of)))
    first = written(file)
    assert seen == [(i, len(file.tensors)) for i in range(1, len(file.tensors) + 1)]
    assert written(file) == first
    length = int.from_bytes(first[:8], "little")
    header = json.loads(io.BytesIO(first[8:]).read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert max(ends) == len(first) - 8 - length
    assert length % 8 == 0
