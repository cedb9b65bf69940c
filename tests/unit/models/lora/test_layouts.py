"""How LoRA files are read: what a name is for, what counts where a file says two things, what is said of the rest."""

import pytest
import torch
from safetensors.torch import save_file

from serve_app.errors import ModelFileError
from serve_app.models.families import AutoencoderKL, ClipText, Sd, SdxlText
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.lora.adapters import Kronecker, LowRank, WeightDelta
from serve_app.models.lora.layouts import read

UNET = Sd((32,), (1,), (1,), 1, 64)
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
NAMES = UNET.lora_names([f"{QUERY}.weight", f"{OUT}.weight", f"{OUT}.bias"])


def opened(tmp_path, tensors):
    save_file(tensors, tmp_path / "lora.safetensors")
    return Checkpoint(tmp_path / "lora.safetensors")


def pair(name, up=".lora_up.weight", down=".lora_down.weight"):
    return {name + up: torch.ones(4, 2), name + down: torch.ones(2, 4)}


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out",
    ],
)
def test_every_trainers_name_of_a_layer_is_known(name):
    assert NAMES[name] == f"{OUT}.weight"


def test_names_as_peft_writes_them_are_known_though_comfyui_passes_them_over(tmp_path):
    adapters = read(
        opened(tmp_path, pair(f"unet.{OUT}", ".lora_B.weight", ".lora_A.weight")), NAMES, "backbone"
    ).adapters
    assert set(adapters) == {f"{OUT}.weight"}


def test_each_of_sdxls_text_encoders_has_names_of_its_own_in_a_lora():
    text, larger = ClipText(1, 64, 64, 77), ClipText(1, 64, 64, 77, "g")
    parameter = "encoder.layers.0.mlp.fc1.weight"
    names = SdxlText(text, larger).lora_names([f"l.{parameter}", f"g.{parameter}"])
    assert names["lora_te1_text_model_encoder_layers_0_mlp_fc1"] == f"l.{parameter}"
    assert names["lora_te2_text_model_encoder_layers_0_mlp_fc1"] == f"g.{parameter}"
    assert names["text_encoder_2.text_model.encoder.layers.0.mlp.fc1"] == f"g.{parameter}"


def test_a_vae_has_no_names():
    assert AutoencoderKL((32,), 1, 4, 3, True).lora_names(["encoder.conv_in.weight"]) == {}


def test_alpha_is_divided_by_the_rank(tmp_path):
    adapters = read(
        opened(tmp_path, pair(f"unet.{OUT}") | {f"unet.{OUT}.alpha": torch.tensor(1.0)}), NAMES, "backbone"
    ).adapters
    adapter = adapters[f"{OUT}.weight"]
    assert isinstance(adapter, LowRank)
    assert adapter.scale == 0.5


def test_of_two_kinds_for_one_layer_the_later_in_comfyuis_list_counts(tmp_path):
    kronecker = {f"unet.{OUT}.lokr_w1": torch.ones(2, 2), f"unet.{OUT}.lokr_w2": torch.ones(2, 2)}
    adapters = read(opened(tmp_path, kronecker | pair(f"unet.{OUT}")), NAMES, "backbone").adapters
    assert isinstance(adapters[f"{OUT}.weight"], Kronecker)


def test_a_bias_has_an_adapter_of_its_own(tmp_path):
    file = opened(tmp_path, pair(f"unet.{OUT}") | {f"unet.{OUT}.diff_b": torch.ones(4)})
    adapters = read(file, NAMES, "backbone").adapters
    assert isinstance(adapters[f"{OUT}.weight"], LowRank)
    assert isinstance(adapters[f"{OUT}.bias"], WeightDelta)


def test_the_text_encoders_half_of_a_file_is_no_concern_of_the_backbone(tmp_path):
    tensors = pair(f"unet.{OUT}") | pair("lora_te_text_model_encoder_layers_0_mlp_fc1")
    assert read(opened(tmp_path, tensors), NAMES, "backbone").remark == ""
    only_text = opened(tmp_path, pair("lora_te_text_model_encoder_layers_0_mlp_fc1"))
    assert read(only_text, NAMES, "backbone") == ({}, "")


def test_tensors_without_a_place_are_remarked(tmp_path):
    remark = read(opened(tmp_path, pair(f"unet.{OUT}") | pair("lora_unet_nowhere")), NAMES, "backbone").remark
    assert remark == (
        "LoRA 'lora.safetensors' only in part changes this diffusion network: 2 of its 4 tensors have no use in it, "
        "'lora_unet_nowhere.lora_down.weight' first"
    )


def test_a_file_of_another_family_is_remarked(tmp_path):
    read_off = read(opened(tmp_path, pair("lora_unet_nowhere")), NAMES, "backbone")
    assert read_off.adapters == {}
    assert "changes nothing of this diffusion network: 2 of its 2 tensors have no use in it" in read_off.remark


def test_half_of_a_pair_is_no_adapter(tmp_path):
    found = read(opened(tmp_path, {f"unet.{OUT}.lora_up.weight": torch.ones(4, 2)}), NAMES, "backbone")
    assert found.adapters == {}
    assert "LoRA 'lora.safetensors' changes nothing of this diffusion network" in found.remark


def test_a_tensor_that_is_not_a_plain_float_tensor_is_an_error(tmp_path):
    tensors = {name: tensor.to(torch.int8) for name, tensor in pair(f"unet.{OUT}").items()}
    with pytest.raises(ModelFileError, match="is I8; supported are"):
        read(opened(tmp_path, tensors), NAMES, "backbone")
