"""Attention by a package, where it computes what torch would, and by torch elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map_only

from serve_app.models.families import Flux, PixArt, Sd
from serve_app.models.families.unet.unet import UnetInputs
from serve_app.models.kernels.attention import PACKAGES, TORCH, reason_against, use_attention
from serve_app.models.network import LoadedNetwork
from serve_app.recipe.training import Flow
from serve_app.sampling.forward import Canvas
from tests.parity.dit_cases import TEXT_WIDTH
from tests.unit.models.families.test_transformers import TINY
from tests.unit.models.kernels.blocks import flux_rows, network, rows_of

BF16 = torch.bfloat16


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of queries that SageAttention is asked for; torch computes them, as no package is here."""
    found: list[tuple[int, ...]] = []

    def sage(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, **_: Any) -> Tensor:
        assert query.dtype == key.dtype == value.dtype == BF16
        found.append(tuple(query.shape))
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.SAGE, sage)
    use_attention("sage")
    yield found
    use_attention(TORCH)


def answers(made: LoadedNetwork, rows: Any) -> list[Tensor]:
    with torch.inference_mode():
        return made.answer(rows)


def test_each_attention_of_a_transformer_and_of_a_unet_is_asked_of_the_package(asked: list[tuple[int, ...]]) -> None:
    flux = network(Flux(64, 2, 2, 3, 16, 8), BF16)
    rows = flux_rows(2, 8, 16, 8)
    packages = answers(flux, rows)
    assert asked == [(2, 16 + 6, 2, 32)] * 5
    unet = network(Sd((64,), (1,), (1,), 1, 64), BF16)
    inputs = UnetInputs(torch.randn(2, 77, 64, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    asked.clear()
    of_unet = answers(unet, [rows_of(x, inputs)])
    # Self-attention and the text's, of each block.
    assert len(asked) == 2 * 4
    use_attention(TORCH)
    asked.clear()
    assert torch.equal(packages[0], answers(flux, rows)[0])
    assert torch.equal(of_unet[0], answers(unet, [rows_of(x, inputs)])[0])
    assert asked == []


@pytest.mark.parametrize("name", ["sd3", "auraflow", "pixart", "hidream", "lumina2", "omnigen2"])
def test_layers_that_call_torchs_attention_ask_the_package_too(
    asked: list[tuple[int, ...]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # AuraFlow's heads are as wide as FlashAttention takes, and PixArt's have to be of eights.
    monkeypatch.setitem(PACKAGES, "sage", PACKAGES["sage"]._replace(widest=PACKAGES["flash3"].widest))
    use_attention("sage")
    family = PixArt(128, 2, TEXT_WIDTH) if name == "pixart" else TINY[name]
    made = network(family, BF16)
    latents = torch.randn(1, family.latent_format.channels, 8, 8, generator=torch.Generator().manual_seed(1))
    cond, options = tree_map_only(Tensor, lambda blank: torch.ones_like(blank, device="cpu"), family.blank_text(6))
    inputs = family.inputs(cond, options, "positive", Canvas(latents, latents), torch.device("cpu"), Flow(1.0))
    [by_package] = answers(made, [rows_of(latents, inputs)])
    assert asked
    use_attention(TORCH)
    asked.clear()
    assert torch.equal(by_package, answers(made, [rows_of(latents, inputs)])[0])
    assert asked == []


def test_what_the_package_does_not_compute_stays_torchs(asked: list[tuple[int, ...]]) -> None:
    texts = [*flux_rows(1, 8, 16, 8, tokens=6), *flux_rows(1, 8, 16, 8, tokens=4)]
    masked = answers(network(Flux(64, 2, 1, 1, 16, 8), BF16), texts)
    wide = answers(network(Flux(256, 1, 1, 1, 16, 8), BF16), flux_rows(1, 8, 16, 8))
    single = answers(network(Flux(64, 2, 1, 1, 16, 8), torch.float32), flux_rows(1, 8, 16, 8))
    assert asked == []
    assert all(bool(torch.isfinite(one).all()) for one in (*masked, *wide, *single))


def test_a_package_that_is_not_installed_says_how_to_install_it() -> None:
    cpu = torch.device("cpu")
    assert reason_against(TORCH, cpu) is None
    assert "install `sageattention" in str(reason_against("sage", cpu))
    assert "build FA3" in str(reason_against("flash3", cpu))


def test_a_package_without_kernels_for_the_card_says_so(
    asked: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.models.attention_dispatch._CAN_USE_SAGE_ATTN", True)
    assert reason_against("sage", torch.device("cpu")) is None

    def refuse(**_: Any) -> Tensor:
        raise ValueError("Unsupported CUDA architecture: sm75\nat core.py")

    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.SAGE, refuse)
    assert reason_against("sage", torch.device("cpu")) == "ValueError: Unsupported CUDA architecture: sm75"
