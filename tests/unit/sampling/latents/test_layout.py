"""Latents of several parts: packed for samplers, drawn and masked part by part."""

from __future__ import annotations

import torch

from serve_app.nested_tensor import NestedTensor
from serve_app.sampling.latents.inpaint import joint_mask
from serve_app.sampling.latents.layout import ONE_PART, LatentLayout
from serve_app.sampling.noise import drawn
from serve_app.values import Noise

VIDEO, SOUND = torch.randn(2, 4, 3, 2, 5), torch.randn(2, 3, 7, 2)
JOINT = NestedTensor([VIDEO, SOUND])


def test_unpacked_parts_are_those_that_were_packed() -> None:
    layout = LatentLayout.of(JOINT)
    packed = layout.pack(JOINT)
    assert packed.shape == (2, 1, 4 * 3 * 2 * 5 + 3 * 7 * 2)
    for part, before in zip(layout.parts(packed), JOINT.unbind(), strict=True):
        assert torch.equal(part, before)


def test_a_latent_of_one_tensor_is_sampled_as_it_is() -> None:
    assert LatentLayout.of(VIDEO) == ONE_PART
    assert ONE_PART.pack(VIDEO) is VIDEO
    assert ONE_PART.parts(VIDEO)[0] is VIDEO


def test_noise_is_drawn_from_one_sequence_part_after_part() -> None:
    generator = torch.Generator().manual_seed(5)
    expected = [torch.randn(part.shape, generator=generator) for part in JOINT.unbind()]
    found = drawn(Noise(5), JOINT)
    assert isinstance(found, NestedTensor)
    for part, of_it in zip(found.unbind(), expected, strict=True):
        assert torch.equal(part, of_it)


def test_a_part_without_a_mask_is_sampled_whole() -> None:
    layout = LatentLayout.of(JOINT)
    mask = torch.zeros(1, 1, 3, 1, 1)
    mask[:, :, 1:] = 0.5
    video, sound = layout.parts(joint_mask(mask, layout.pack(JOINT), layout))
    assert video.shape == VIDEO.shape
    assert torch.equal(video[0, 0, :, 0, 0], torch.tensor([0.0, 0.5, 0.5]))
    assert bool((sound == 1).all())
