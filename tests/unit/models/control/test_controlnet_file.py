"""Files of ControlNets: what is refused, and what is said."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.errors import ModelFileError
from serve_app.models.control.controlnet import ControlNetwork
from serve_app.models.control.controlnet_file import ControlFile
from serve_app.models.files.checkpoint import Checkpoint
from tests.parity import control_files
from tests.unit.models.control_nets import ARCHITECTURE
from tests.unit.models.sample import random_tensors

CPU, FP32 = torch.device("cpu"), torch.float32


def opened(path, *base):
    return ControlFile(Checkpoint(path), base)


def test_a_file_of_something_else_is_refused_by_name(tmp_path):
    path = tmp_path / "unet.safetensors"
    save_file(random_tensors(ARCHITECTURE), path)
    with pytest.raises(ModelFileError, match=r"'unet.safetensors' is neither a ControlNet .* nor a T2I-Adapter"):
        opened(path)


def test_a_controlnet_without_some_of_its_tensors_is_refused(tmp_path):
    path = tmp_path / "part.safetensors"
    tensors = control_files.tensors("sd1")
    del tensors["zero_convs.3.0.bias"]
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match=r"lacks 1 tensors of its network, 'zero_convs.3.bias' first"):
        opened(path).load(CPU, FP32)


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    path = tmp_path / "odd.safetensors"
    save_file({**control_files.tensors("sd1"), "zero_convs.3.0.bias": torch.zeros(5)}, path)
    with pytest.raises(ModelFileError, match=r"has 'zero_convs.3.bias' of shape \(5,\), expected \(32,\)"):
        opened(path).load(CPU, FP32)


def test_a_control_lora_without_a_backbone_is_refused(tmp_path):
    file = opened(control_files.write(tmp_path, "control_lora"))
    assert file.needs_base
    with pytest.raises(ModelFileError, match="is a control-LoRA, which needs the backbone"):
        file.load(CPU, FP32)


def test_a_control_lora_is_counted_with_the_half_of_the_backbone_that_it_changes(tmp_path):
    base = Checkpoint(control_files.write(tmp_path, "unet_sdxl"))
    lora = opened(control_files.write(tmp_path, "control_lora"), base).elements()
    plain = opened(control_files.write(tmp_path, "sdxl"), base).elements()
    assert plain == opened(control_files.write(tmp_path, "sdxl")).elements()
    assert plain < lora < 1.3 * plain


def test_a_control_lora_changes_a_backbone_of_eight_bits_too(tmp_path):
    path = control_files.write(tmp_path, "unet_sdxl")
    eight = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(path).items()}
    save_file(eight, tmp_path / "eight.safetensors")
    save_file({name: tensor.float() for name, tensor in eight.items()}, tmp_path / "wide.safetensors")
    lora = control_files.write(tmp_path, "control_lora")
    ours, expected = (
        opened(lora, Checkpoint(tmp_path / f"{name}.safetensors")).load(CPU, FP32) for name in ("eight", "wide")
    )
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)


def test_differences_are_added_to_the_weights_of_a_backbone(tmp_path, caplog):
    whole = opened(control_files.write(tmp_path, "sd1.pth")).load(CPU, FP32)
    tensors = {f"control_model.{name}": tensor for name, tensor in control_files.tensors("sd1").items()}
    save_file({**tensors, "difference": torch.zeros(())}, tmp_path / "diff.safetensors")
    base = Checkpoint(control_files.write(tmp_path, "unet_sd1"))
    file = opened(tmp_path / "diff.safetensors")
    assert file.has_differences
    on_top = opened(tmp_path / "diff.safetensors", base).load(CPU, FP32).state_dict()
    under = base.load("backbone")[1].float().state_dict()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(on_top[name], tensor + under[name] if name in under else tensor)
    with caplog.at_level(logging.WARNING):
        file.load(CPU, FP32)
    assert "is used without one" in caplog.text


@pytest.mark.parametrize(
    ("stem", "pooled"), [("control_shuffle", True), ("shuffle_fp16", False), ("a_shuffle_fp16", True)]
)
def test_the_name_of_a_file_says_whether_its_answers_are_averaged(tmp_path, stem, pooled):
    path = control_files.write(tmp_path, "sd1")
    network = opened(path.rename(path.with_stem(stem))).load(CPU, FP32)
    assert isinstance(network, ControlNetwork)
    assert network.pooled is pooled
