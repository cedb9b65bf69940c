"""The device of a pool's models, their memory budget, and the errors for an impossible configuration."""

from __future__ import annotations

import pytest
import torch

from serve_app.config.pool import PoolConfig
from serve_app.errors import ConfigError
from serve_app.models.kernels.cuda_graphs import replays_of
from serve_app.replica.assemble import device_of, host_bytes_of, memory_of, set_arithmetic

MB = 1024**2
GB = 1024 * MB


@pytest.mark.parametrize(
    ("given", "found", "device"),
    [
        ({"num_gpus": 0}, True, "cpu"),
        ({"num_gpus": 0.5}, True, "cuda"),
        ({"num_gpus": 1, "device": "cpu"}, True, "cpu"),
        ({"num_gpus": 1, "device": "cpu"}, False, "cpu"),
        ({"num_gpus": 0}, False, "cpu"),
    ],
)
def test_models_are_on_the_gpu_that_a_pool_has(monkeypatch, given, found, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert device_of(PoolConfig(name="a", **given)).type == device


def test_a_configured_gpu_that_is_missing_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"pool a: num_gpus is 0\.5, and torch finds no GPU here"):
        device_of(PoolConfig(name="a", num_gpus=0.5))


class Allocator:
    """Torch's, of a card of which so much is free. fraction: what the process was held to."""

    def __init__(self, monkeypatch, free, total):
        self.fraction = None
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self._hold)

    def _hold(self, fraction, device):
        self.fraction = fraction


@pytest.mark.parametrize(
    ("given", "weights", "fraction"),
    [
        # 24 GiB less context and reserve, and 3 GiB for forwards.
        ({"num_gpus": 1}, 24 * GB - 1000 * MB - 3 * GB, None),
        ({"num_gpus": 0.5}, 12 * GB - 1000 * MB - (12 * GB - 1000 * MB) // 4, (12 * GB - 600 * MB) / (24 * GB)),
        ({"num_gpus": 0.5, "weights_bytes": 5 * GB}, 5 * GB, (12 * GB - 600 * MB) / (24 * GB)),
    ],
)
def test_weights_may_take_what_the_card_has_beside_all_else(monkeypatch, caplog, given, weights, fraction):
    allocator = Allocator(monkeypatch, 24 * GB - 600 * MB, 24 * GB)
    with caplog.at_level("INFO"):
        found, memory = memory_of(PoolConfig(name="a", **given), torch.device("cuda"))
    assert (found, memory.planned_bytes) == (weights, 24 * GB - 1000 * MB if fraction is None else 12 * GB - 1000 * MB)
    assert allocator.fraction == fraction
    assert f"pool=a card_mb=24576 free_mb=23976 planned_mb={23576 if given['num_gpus'] == 1 else 11288}" in caplog.text


@pytest.mark.parametrize("graphs", [False, True])
def test_a_card_keeps_graphs_unless_its_pool_says_otherwise(monkeypatch, graphs):
    Allocator(monkeypatch, 24 * GB, 24 * GB)
    device = torch.device("cuda")
    monkeypatch.setattr(replays_of(device), "records", True)
    memory_of(PoolConfig(name="a", graphs=graphs), device)
    assert replays_of(device).records is graphs


def test_weights_that_the_card_has_no_room_for_are_an_error_of_their_pool(monkeypatch):
    allocator = Allocator(monkeypatch, 8 * GB, 8 * GB)
    with pytest.raises(ConfigError, match=r"pool a: weights_bytes is 8,589,934,592, and of this card's 8,589,934,592"):
        memory_of(PoolConfig(name="a", num_gpus=0.5, weights_bytes=8 * GB), torch.device("cuda"))
    assert allocator.fraction is None


def test_on_a_cpu_weights_may_take_half_of_what_the_process_may_use():
    assert memory_of(PoolConfig(name="a", memory_bytes=6 * GB), torch.device("cpu")) == (3 * GB, None)
    given = PoolConfig(name="a", memory_bytes=6 * GB, weights_bytes=5 * GB)
    assert memory_of(given, torch.device("cpu")) == (5 * GB, None)


@pytest.fixture
def card(monkeypatch):
    """A card of some compute capability; what is set for it ends with the test."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_fp16_accumulation, cudnn.benchmark, cudnn.deterministic
    yield torch.device("cuda")
    matmul.allow_fp16_accumulation, cudnn.benchmark, cudnn.deterministic = before


@pytest.mark.parametrize("fast", [False, True])
def test_a_card_computes_deterministically_and_in_half_precision_if_configured(card, fast):
    torch.backends.cudnn.benchmark = True
    set_arithmetic(PoolConfig(name="a", fast=fast), card)
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cuda.matmul.allow_fp16_accumulation is fast


def test_products_that_a_device_does_not_have_are_an_error_of_their_pool(card):
    with pytest.raises(ConfigError, match=r"pool a: fp8_matmul needs compute capability 8\.9; this GPU has 8\.6"):
        set_arithmetic(PoolConfig(name="a", fp8_matmul=True), card)
    for key, pool in (("fast", PoolConfig(name="a", fast=True)), ("fp8_matmul", PoolConfig(name="a", fp8_matmul=True))):
        with pytest.raises(ConfigError, match=f"pool a: {key} is of products on a GPU, and its models are on a CPU"):
            set_arithmetic(pool, torch.device("cpu"))


def test_beside_a_card_weights_may_take_half_of_what_the_process_may_use():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert host_bytes_of(PoolConfig(name="a", memory_bytes=8 * GB), cuda) == 4 * GB
    assert host_bytes_of(PoolConfig(name="a", memory_bytes=8 * GB, host_bytes=0), cuda) == 0
    assert host_bytes_of(PoolConfig(name="a", memory_bytes=8 * GB, host_bytes=7 * GB), cuda) == 7 * GB
    assert host_bytes_of(PoolConfig(name="a", memory_bytes=8 * GB), cpu) == 0
    with pytest.raises(ConfigError, match="pool a: host_bytes is of weights of a GPU, and its models are on a CPU"):
        host_bytes_of(PoolConfig(name="a", host_bytes=1), cpu)


@pytest.mark.parametrize(("num_gpus", "cards", "parts"), [(1, 1, 2), (1, 8, 16), (0.5, 1, 4), (1, 0, 2)])
def test_replicas_that_share_a_host_divide_its_memory_by_their_cards(monkeypatch, num_gpus, cards, parts):
    monkeypatch.setattr("serve_app.replica.assemble.own_limit", lambda asked: asked or 64 * GB)
    monkeypatch.setattr("serve_app.replica.assemble.gpu_count", lambda: cards)
    assert host_bytes_of(PoolConfig(name="a", num_gpus=num_gpus), torch.device("cuda")) == 64 * GB // parts
