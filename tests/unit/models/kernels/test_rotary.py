"""Rotary positions: what torch computes, and what comfy_kitchen's one kernel is called with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from serve_app.models.kernels import comfy_kitchen
from serve_app.models.kernels.rotary import made_and_rotated, normed_and_rotated, rotated, turns_of
from tests.parity.dit_cases import noise

Q, K = noise("q", (2, 5, 3, 32)), noise("k", (2, 5, 3, 32))


def norms() -> tuple[nn.Module, nn.Module]:
    made = tuple(nn.RMSNorm(32, eps=1e-6) for _ in range(2))
    for norm in made:
        norm.weight.data = noise("weight", (32,))
    return made[0], made[1]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let comfy_kitchen compute on the CPU, by its own operations of torch."""
    pytest.importorskip("comfy_kitchen")
    monkeypatch.setattr(comfy_kitchen, "DEVICES", {"cpu"})


def test_pairs_of_neighbours_are_rotated_by_their_angle() -> None:
    angle = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    q, k = rotated(torch.tensor([[[[1.0, 0, 0, 2]]]]), torch.ones(1, 1, 1, 4), turns_of(angle))
    cos, sin = angle.cos()[0].float(), angle.sin()[0].float()
    torch.testing.assert_close(q[0, 0, 0], torch.stack([cos[0], sin[0], -2 * sin[1], 2 * cos[1]]))
    torch.testing.assert_close(k[0, 0, 0, :2], torch.stack([cos[0] - sin[0], cos[0] + sin[0]]))


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(5, 16), (2, 5, 16)], ids=["one position a token", "one a row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_kernel_is_given_what_gives_the_same(
    shape: tuple[int, ...], dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    angles, layers = noise("angles", shape).double() * 9, norms()
    q, k = Q.to(dtype), K.to(dtype)
    for layer in layers:
        layer.to(dtype)

    def both(turns: Tensor) -> list[Tensor]:
        heads = {"q": q, "k": k}.__getitem__
        made = made_and_rotated(heads, turns)
        return [*rotated(q, k, turns), *made, *normed_and_rotated(heads, layers, turns)]

    expected = both(turns_of(angles))
    request.getfixturevalue("fused")
    turns = turns_of(angles)
    assert not turns.is_complex()
    near = 1e-6 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(both(turns), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=near, atol=near)


@torch.inference_mode()
@pytest.mark.usefixtures("fused")
def test_a_norm_that_a_lora_changes_is_called() -> None:
    layers, turns = norms(), turns_of(noise("angles", (5, 16)).double())
    heads = {"q": Q, "k": K}.__getitem__
    before = normed_and_rotated(heads, layers, turns)[0]
    layers[0].__dict__["forward"] = lambda x: torch.zeros_like(x)
    assert before.any()
    assert not normed_and_rotated(heads, layers, turns)[0].any()
