import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.errors import ModelFileError
from serve_app.models.families import AutoencoderKL
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.file_tensor import FileTensor
from serve_app.models.files.layout import places
from serve_app.models.kernels.packing import move_to
from tests.unit.models.sample import SAMPLE, random_tensors, write_sample_checkpoint

CPU = torch.device("cpu")
PREFIXES = {"backbone": "model.diffusion_model.", "vae": "first_stage_model.", "clip": "cond_stage_model."}
VAE = AutoencoderKL((32, 32), 1, 4, 3, True)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "checkpoints" / "sample.safetensors"
    write_sample_checkpoint(path)
    return path


def weights_of(module):
    return dict(module.state_dict())


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("part", PREFIXES)
def test_every_number_of_a_part_arrives_where_the_layout_says(sample, part):
    family, module = Checkpoint(sample).load(part)
    assert family in SAMPLE
    stored = {k.removeprefix("transformer.text_model."): t for k, t in strip(load_file(sample), PREFIXES[part]).items()}
    placed = {place.name: tensor for name, tensor in stored.items() for place in places(name, family.table())}
    loaded = weights_of(module.float())
    assert placed.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], placed[name].float().reshape(loaded[name].shape)) for name in placed)


def strip(tensors, prefix):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def test_the_sample_checkpoint_is_the_same_every_time_and_small(sample, tmp_path):
    again = tmp_path / "again.safetensors"
    write_sample_checkpoint(again)
    assert again.read_bytes() == sample.read_bytes()
    assert again.stat().st_size < 30_000_000


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_of_any_float_format_is_loaded_in_any_other(tmp_path, stored, wanted):
    path = tmp_path / "vae.safetensors"
    save_file(random_tensors(VAE, stored), path)
    _, module = Checkpoint(path).load("vae")
    move_to(module, CPU, wanted)
    bias = load_file(path)["first_stage_model.decoder.conv_in.bias"]
    assert torch.equal(module.get_parameter("decoder.conv_in.bias"), bias.to(wanted))
    assert {parameter.dtype for parameter in module.parameters()} == {wanted}


def bare(tensors):
    return strip(tensors, "first_stage_model.")


def diffusers_names(tensors):
    return {
        place.name: t.flatten(2)[..., 0] if t.shape[2:] == (1, 1) and "attn" in name else t
        for name, t in bare(tensors).items()
        for place in places(name, VAE.table())
    }


def old_diffusers_names(tensors):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in diffusers_names(tensors).items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("layout", [bare, diffusers_names, old_diffusers_names])
def test_a_vae_file_of_its_own_is_read_in_each_of_its_layouts(tmp_path, layout):
    tensors = random_tensors(VAE)
    save_file(tensors, tmp_path / "whole.safetensors")
    save_file({name: t.contiguous() for name, t in layout(tensors).items()}, tmp_path / "vae.safetensors")
    _, expected = Checkpoint(tmp_path / "whole.safetensors").load("vae")
    architecture, module = Checkpoint(tmp_path / "vae.safetensors").load("vae")
    assert architecture == VAE
    assert same(weights_of(module), weights_of(expected))


def test_a_text_encoder_without_the_text_model_prefix_is_read(sample, tmp_path):
    clip = strip(load_file(sample), "cond_stage_model.transformer.text_model.")
    save_file({f"cond_stage_model.transformer.{k}": t for k, t in clip.items()}, tmp_path / "old.safetensors")
    _, expected = Checkpoint(sample).load("clip")
    _, module = Checkpoint(tmp_path / "old.safetensors").load("clip")
    assert same(weights_of(module), weights_of(expected))


def test_a_file_that_is_cut_while_its_network_is_read_is_an_error_and_no_signal(tmp_path):
    path = tmp_path / "vae.safetensors"
    save_file(random_tensors(VAE, torch.float32), path)
    _, module = Checkpoint(path).load("vae")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ModelFileError, match=r"'vae\.safetensors' was changed while it was read"):
        move_to(module, torch.device("cpu"), torch.float32)


def test_a_network_that_was_moved_needs_its_file_no_more(tmp_path):
    path = tmp_path / "vae.safetensors"
    tensors = random_tensors(VAE, torch.float32)
    save_file(tensors, path)
    _, module = Checkpoint(path).load("vae")
    move_to(module, torch.device("cpu"), torch.bfloat16)
    assert str(path) not in (Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else "")
    path.write_bytes(b"")
    assert not any(isinstance(tensor, FileTensor) for tensor in module.state_dict().values())
    assert sum(float(p.float().abs().sum()) for p in module.parameters()) > 0


def test_a_pickle_is_refused_unopened(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(ModelFileError, match=r"'model\.ckpt' is a pickle.*only \.safetensors"):
        Checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"no header", b"\xff" * 64, pickle.dumps({"a": 1})])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"'damaged\.safetensors' cannot be read as a safetensors file"):
        Checkpoint(path)


def test_a_tensor_of_other_bytes_than_its_shape_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}).encode()
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ModelFileError, match=r"it has a tensor 'a' of 12 bytes, which are not those of its shape"):
        Checkpoint(path)


def test_a_file_cut_short_is_refused(sample, tmp_path):
    path = tmp_path / "short.safetensors"
    path.write_bytes(sample.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match=r"short\.safetensors"):
        Checkpoint(path)


def test_a_part_the_file_lacks_is_named(tmp_path):
    path = tmp_path / "vae.safetensors"
    save_file(random_tensors(VAE), path)
    with pytest.raises(ModelFileError, match=r"'vae\.safetensors' holds no text encoder of a known layout"):
        Checkpoint(path).load("clip")


def test_a_part_with_tensors_missing_names_the_first(tmp_path):
    tensors = random_tensors(VAE)
    del tensors["first_stage_model.decoder.norm_out.bias"]
    save_file(tensors, tmp_path / "vae.safetensors")
    with pytest.raises(ModelFileError, match=r"lacks 1 tensors of its VAE, 'decoder\.conv_norm_out\.bias' first"):
        Checkpoint(tmp_path / "vae.safetensors").load("vae")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path):
    tensors = random_tensors(VAE) | {"first_stage_model.decoder.norm_out.bias": torch.zeros(33)}
    save_file(tensors, tmp_path / "vae.safetensors")
    with pytest.raises(ModelFileError, match=r"decoder\.norm_out\.bias' of shape \(33,\), expected \(32,\)"):
        Checkpoint(tmp_path / "vae.safetensors").load("vae")


def test_a_quantized_tensor_is_refused_with_its_format(tmp_path):
    tensors = random_tensors(VAE) | {"first_stage_model.decoder.norm_out.bias": torch.zeros(32, dtype=torch.int8)}
    save_file(tensors, tmp_path / "vae.safetensors")
    with pytest.raises(ModelFileError, match=r"norm_out\.bias' is I8; supported are F16, BF16, F32"):
        Checkpoint(tmp_path / "vae.safetensors").load("vae")
