"""Compiled blocks: how often they are compiled, and that they compute what they compute otherwise.

A backend that only counts stands in for inductor, which takes half a minute for each; `bench.compiled` has its figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.fx.experimental._config
from torch import Tensor, nn
from torch.nn import Parameter

from serve_app.engine.stopping import Stoppable, StoppableFuture, StoppedError
from serve_app.models.families import Flux, PixArt
from serve_app.models.kernels import compiled_blocks
from serve_app.models.kernels.compiled_blocks import prepare_compiler, reason_against
from serve_app.models.lora.slots import Pair, Slots, Slotted
from serve_app.models.network import LoadedNetwork
from serve_app.models.quantization.eight_bit import in_eight_bits
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.weights.streaming import ARRIVAL
from tests.unit.models.kernels.blocks import flux_rows, network

FLUX = Flux(64, 2, 3, 3, 16, 8)
KINDS = 2
"""Of blocks in a Flux."""


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is compiled. Settings of the compiler end with the test."""
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        found.append(str(graph))
        return graph.forward

    monkeypatch.setattr(compiled_blocks, "BACKEND", backend)
    compiled_blocks.compiled_forward.cache_clear()
    torch._dynamo.reset()
    settings = torch._dynamo.config.patch(recompile_limit=8, skip_nnmodule_hook_guards=True, suppress_errors=False)
    sizes: Any = torch.fx.experimental._config
    with settings, sizes.patch(use_duck_shape=True):
        assert prepare_compiler(torch.device("cpu")) is None
        found.clear()
        yield found
    compiled_blocks.compiled_forward.cache_clear()
    torch._dynamo.reset()


def flux(**changes: Any) -> LoadedNetwork:
    return network(FLUX, **{"compiled": True} | changes)


def answer(made: LoadedNetwork, rows: Any) -> Tensor:
    with torch.inference_mode():
        return torch.cat(made.answer(rows))


def test_equal_blocks_are_compiled_once_for_one_row_and_once_for_more_at_any_resolution(compiles: list[str]) -> None:
    made, plain = flux(), flux(compiled=False)
    counts = []
    for count, side, tokens in ((1, 8, 6), (2, 8, 6), (3, 8, 6), (2, 12, 6), (1, 16, 9), (5, 6, 4)):
        rows = flux_rows(count, side, 16, 8, tokens=tokens)
        torch.testing.assert_close(answer(made, rows), answer(plain, rows), rtol=1e-5, atol=1e-5)
        counts.append(len(compiles))
    assert counts == [KINDS] + [2 * KINDS] * 5
    # Texts of unequal lengths need a mask.
    for lengths in ((6, 4), (9, 3, 1)):
        rows = [row for tokens in lengths for row in flux_rows(1, 8, 16, 8, tokens=tokens)]
        torch.testing.assert_close(answer(made, rows), answer(plain, rows), rtol=1e-5, atol=1e-5)
    assert len(compiles) == 3 * KINDS
    # A network of another depth has equal blocks; one of another width has not.
    answer(network(Flux(64, 2, 1, 2, 16, 8), compiled=True), flux_rows(2, 8, 16, 8))
    assert len(compiles) == 3 * KINDS
    answer(network(Flux(128, 4, 1, 1, 16, 8), compiled=True), flux_rows(2, 8, 16, 8))
    assert len(compiles) == 4 * KINDS


def test_weights_that_were_evicted_come_back_to_the_code_that_there_is(compiles: list[str]) -> None:
    made, rows = flux(), flux_rows(2, 8, 16, 8)
    before = answer(made, rows)
    for layer in made.module.modules():
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                layer._parameters[name] = Parameter(parameter.data.clone(), requires_grad=False)
    assert torch.equal(before, answer(made, rows))
    assert len(compiles) == KINDS


def test_lora_slots_are_added_in_compiled_blocks(compiles: list[str]) -> None:
    made, rows = flux(), flux_rows(2, 8, 16, 8)
    bare = answer(made, rows)
    draw = torch.Generator().manual_seed(3)
    pairs = {
        name: Pair(
            torch.randn(8, layer.in_features, generator=draw), torch.randn(layer.out_features, 8, generator=draw)
        )
        for name, layer in made.module.named_modules()
        if isinstance(layer, nn.Linear) and name.endswith(("attn.to_q", "proj_out"))
    }
    slots = Slots([Slotted(name, made.module.get_submodule(name), 8, pair) for name, pair in pairs.items()], 2)
    for of_second in ("style", "another"):
        slots.fill(of_second, [None, of_second], lambda row, name: pairs[name] if row else None)
        slots.use(2)
        with_slots = answer(made, rows)
        slots.leave()
        slots.use(2)
        made.blocks, blocks = None, made.blocks
        torch.testing.assert_close(with_slots, answer(made, rows), rtol=1e-4, atol=1e-4)
        made.blocks = blocks
        slots.leave()
    assert not torch.allclose(with_slots, bare, atol=1e-2)
    assert torch.equal(bare, answer(made, rows))
    assert len(compiles) <= 3 * KINDS


def test_work_that_nobody_waits_for_ends_between_two_compiled_blocks(compiles: list[str]) -> None:
    made, rows, job = flux(), flux_rows(2, 8, 16, 8), StoppableFuture[None]()
    ran: list[int] = []
    blocks: Any = made.module.transformer_blocks
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    blocks[0].register_forward_hook(lambda *_: job.cancel() and None)
    with pytest.raises(StoppedError), Stoppable([job]):
        answer(made, rows)
    assert ran in ([0], [0, 1])
    assert len(compiles) == 1
    assert "forward" not in blocks[0].__dict__


def test_rows_that_change_from_forward_to_forward_run_as_they_are(compiles: list[str]) -> None:
    made = flux()
    answer(made, flux_rows(2, 8, 16, 8, exclusive=True))
    assert compiles == []


def test_networks_that_are_not_compiled_say_why(compiles: list[str], caplog: pytest.LogCaptureFixture) -> None:
    networks: Any = flux(compiled=False).module, flux(compiled=False).module
    quantized, streamed = networks
    quantized.proj_out = QuantizedLinear(in_eight_bits(quantized.proj_out.weight.data), None)
    streamed.proj_out.__dict__[ARRIVAL] = object()
    assert reason_against(quantized) == "its weights are quantized"
    assert reason_against(streamed) == "some of its weights stream"
    with caplog.at_level("INFO"):
        network(PixArt(96, 2, 16), compiled=True)
    assert "blocks of PixArt are not compiled: its family has no list of equal blocks" in caplog.text


def test_a_compiler_that_does_not_work_is_told_in_one_line(
    compiles: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(compiled_blocks, "BACKEND", broken)
    torch._dynamo.reset()
    said = str(prepare_compiler(torch.device("cpu")))
    assert "no C++ compiler" in said
    assert "\n" not in said
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared))
    assert (
        prepare_compiler(torch.device("cpu")) == f"others may write to its folder {shared}; set TORCHINDUCTOR_CACHE_DIR"
    )
