"""The checkpoint that ships, read by diffusers' own single-file loader given the networks' configurations."""

import json

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.shipped import CHECKPOINT, SHIPPED

FILE = SHIPPED / "checkpoints" / CHECKPOINT


def _one_number_of_blocks(path):
    """Write what is the same on every level as one number, which is how diffusers' loader wants it."""
    config = json.loads(path.read_text())
    if isinstance(config["layers_per_block"], list):
        [config["layers_per_block"]] = set(config["layers_per_block"])
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(("part", "network_class"), [("backbone", UNet2DConditionModel), ("vae", AutoencoderKL)])
def test_diffusers_reads_the_same_weights(part, network_class, tmp_path):
    _, ours = Checkpoint(FILE).load(part)
    assert isinstance(ours, ModelMixin)
    ours.float()
    ours.save_config(tmp_path)
    _one_number_of_blocks(tmp_path / "config.json")
    theirs = network_class.from_single_file(str(FILE), config=str(tmp_path), local_files_only=True)
    expected = ours.state_dict()
    assert expected.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
