"""The device of a pool's models, their memory budget, and the errors for an impossible configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from packaging.requirements import Requirement

from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.errors import ConfigError
from serve_app.models.kernels.cuda_graphs import replays_of
from serve_app.replica.assemble import assemble, device_of, host_bytes_of, memory_of, set_arithmetic
from serve_app.replica.gpu import required_torch
from tests.unit.engine.card import Card
from tests.unit.engine.card_driver import Driver, driven

MB = 1024**2
GB = 1024 * MB


@pytest.fixture
def driver() -> Iterator[Driver]:
    """A card of 24 GiB that only claims to be one, under torch's own Python."""
    card = Card(total_bytes=24 * GB)
    assert card.driver is not None
    with driven(card.driver), card.used():
        yield card.driver


CARD = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "device"),
    [
        ({"num_gpus": 0}, torch.device("cpu")),
        ({"num_gpus": 0.5}, CARD),
        ({"num_gpus": 1}, CARD),
        ({"num_gpus": 1, "device": "cpu"}, torch.device("cpu")),
    ],
)
def test_models_are_on_the_gpu_that_a_pool_has(driver, given, device):
    assert device_of(PoolConfig(name="a", **given)) == device


def refused(**given):
    """Return the one line that a pool is refused with as its replica starts."""
    pool = PoolConfig(name="a", **{"num_gpus": 0.5} | given)
    with pytest.raises(ConfigError) as caught:
        # The scheduler and other replicas have no part in it.
        assemble(AppConfig().resolved(), pool, "a", Mock(), Mock())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_configured_gpu_that_is_missing_is_an_error():
    with pytest.raises(ConfigError, match=r"pool a: torch \S+ finds no GPU here: it was built without CUDA; `num_gpus"):
        device_of(PoolConfig(name="a", num_gpus=0.5))
    assert device_of(PoolConfig(name="a", num_gpus=1, device="cpu")).type == "cpu"


def test_a_driver_that_is_too_old_is_named(driver):
    driver.refusal = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver."
    assert "driver on your system is too old (found version 12020) (driver " in refused()


def test_a_process_that_sees_no_card_says_so(driver):
    driver.cards = 0
    assert "finds no GPU here: the process sees none (driver " in refused()


def test_a_card_that_another_process_has_for_itself_is_named(driver):
    driver.fault = torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel")
    assert refused().startswith("pool a: the GPU cannot be used (torch ")
    assert refused().endswith("): CUDA error: all CUDA-capable devices are busy or unavailable")


def test_a_card_that_torch_has_no_kernels_for_is_named(driver):
    driver.fault = torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\n")
    assert refused().endswith("): CUDA error: no kernel image is available for execution on the device")


def test_a_card_that_others_have_filled_is_named(driver):
    driver.taken_bytes = 24 * GB - 600 * MB
    assert refused().startswith("pool a: num_gpus is 0.5, and that share of this card's 25,769,803,776 bytes, of which")


def test_a_share_without_room_for_the_context_is_named(driver):
    assert "has no room beside the 1,048,576,000 that a process needs" in refused(num_gpus=0.03)


def test_a_dtype_that_the_card_lacks_is_named(driver):
    driver.capability = 7, 5
    assert refused(dtype="bf16").startswith("pool a: this GPU does not do bf16, which is set for the backbone")
    assert refused(vae_dtype="bf16").startswith("pool a: this GPU does not do bf16, which is set for the vae")


def test_products_that_the_card_lacks_are_named(driver):
    driver.capability = 8, 6
    assert refused(fp8_matmul=True) == "pool a: fp8_matmul needs compute capability 8.9; this GPU has 8.6"


def test_attention_by_a_package_that_is_missing_is_named_with_what_works(driver):
    said = refused(attention="sage")
    assert said.startswith(
        "pool a: attention is sage, and what works here is sdpa: RuntimeError: Sage Attention backend"
    )
    assert "install `sageattention" in said
    assert refused(attention="flash3").startswith("pool a: attention is flash3, and what works here is sdpa: ")


def test_attention_by_a_package_is_an_error_of_a_pool_on_a_cpu():
    said = refused(num_gpus=0, attention="sage")
    assert said == "pool a: attention sage is of a GPU, and its models are on a CPU"


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    reason = "InvalidCxxCompiler: No working C++ compiler found"
    monkeypatch.setattr("serve_app.models.kernels.compiled_blocks.prepare_compiler", lambda device: reason)
    assert refused(num_gpus=0, compile=True) == f"pool a: compile is true, and here it must be false: {reason}"


def test_a_torch_that_this_package_does_not_run_with_is_named(driver, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.4.1+cu121")
    assert refused() == f"pool a: torch 2.4.1+cu121 is installed, and models on a GPU need {required_torch()}"
    # A vendor's build, of a card that is refused for another reason.
    monkeypatch.setattr(torch, "__version__", "2.13.0a0+0f0f0f.nv26")
    assert "has no room beside" in refused(num_gpus=0.03)


def test_the_required_torch_has_what_is_called_of_it():
    """`memory_snapshot(include_traces=)` came with 2.11."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    [torch_] = [one for one in map(Requirement, project["dependencies"]) if one.name == "torch"]
    assert "2.10.0" not in torch_.specifier
    assert "2.11.0" in torch_.specifier


@pytest.mark.parametrize(
    ("given", "weights", "fraction"),
    [
        # 24 GiB less context and reserve, and 3 GiB for forwards.
        ({"num_gpus": 1}, 24 * GB - 1000 * MB - 3 * GB, 1.0),
        ({"num_gpus": 0.5}, 12 * GB - 1000 * MB - (12 * GB - 1000 * MB) // 4, (12 * GB - 600 * MB) / (24 * GB)),
        ({"num_gpus": 0.5, "weights_bytes": 5 * GB}, 5 * GB, (12 * GB - 600 * MB) / (24 * GB)),
    ],
)
def test_weights_may_take_what_the_card_has_beside_all_else(driver, caplog, given, weights, fraction):
    pool = PoolConfig(name="a", **given)
    with caplog.at_level("INFO"):
        found, memory = memory_of(pool, device_of(pool))
    assert (found, memory.planned_bytes) == (weights, 24 * GB - 1000 * MB if fraction == 1 else 12 * GB - 1000 * MB)
    assert driver.fraction == fraction
    assert f"planned_mb={23576 if given['num_gpus'] == 1 else 11288}" in caplog.text


@pytest.mark.parametrize("graphs", [False, True])
def test_a_card_keeps_graphs_unless_its_pool_says_otherwise(driver, graphs):
    pool = PoolConfig(name="a", num_gpus=1, graphs=graphs)
    device = device_of(pool)
    replays_of(device).records = True
    memory_of(pool, device)
    # Of the device as networks have it, whose tensors know their card.
    assert replays_of(torch.ones(1, device=device).device).records is graphs


def test_weights_that_the_card_has_no_room_for_are_an_error_of_their_pool(driver):
    said = refused(weights_bytes=24 * GB)
    assert said.startswith("pool a: weights_bytes is 25,769,803,776, and of this card's 25,769,803,776")
    assert driver.fraction == 1.0


def test_on_a_cpu_weights_may_take_half_of_what_the_process_may_use():
    assert memory_of(PoolConfig(name="a", memory_bytes=6 * GB), torch.device("cpu")) == (3 * GB, None)
    given = PoolConfig(name="a", memory_bytes=6 * GB, weights_bytes=5 * GB)
    assert memory_of(given, torch.device("cpu")) == (5 * GB, None)


@pytest.fixture
def arithmetic():
    """What is set of a process's arithmetic ends with the test."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_fp16_accumulation, cudnn.benchmark, cudnn.deterministic
    yield
    matmul.allow_fp16_accumulation, cudnn.benchmark, cudnn.deterministic = before


@pytest.mark.parametrize("fast", [False, True])
def test_a_card_computes_deterministically_and_in_half_precision_if_configured(driver, arithmetic, fast):
    torch.backends.cudnn.benchmark = True
    set_arithmetic(PoolConfig(name="a", fast=fast), CARD)
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cuda.matmul.allow_fp16_accumulation is fast


def test_products_of_a_card_are_an_error_of_a_pool_on_a_cpu():
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
