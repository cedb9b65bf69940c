"""Forwards that are filled up to a bucket, recorded and replayed, by a recorder that needs no GPU."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.models import forward
from serve_app.models.families.family import Rows
from serve_app.models.families.unet.unet import UnetInputs
from serve_app.models.forward import EAGER, ROW_BUCKETS, CapturableCall, Replays
from serve_app.models.network import LoadedNetwork
from serve_app.recipe.layers import DeepShrink, FreeU
from serve_app.recipe.training import Discrete
from tests.unit.models.control_nets import ARCHITECTURE, backbone
from tests.unit.models.recorder import FakeRecorder

FREEU = FreeU(1.3, 1.4, 0.9, 0.2)


def weight() -> Tensor:
    """Return what stands for a network's weights."""
    return torch.ones(1)


@pytest.fixture
def recorder() -> FakeRecorder:
    return FakeRecorder()


@pytest.fixture
def replays(recorder: FakeRecorder) -> Replays:
    return Replays(recorder, ROW_BUCKETS)


def doubling(rows: int, variant: Any = (), value: float = 1.0) -> CapturableCall:
    return CapturableCall({"x": torch.full((rows, 3), float(value))}, lambda given: [given["x"] * 2], variant)


def counted(replays: Replays) -> tuple[int, int, int]:
    counters = replays.counters
    return counters.recordings, counters.replays, counters.failures


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (3, 4), (5, 6), (9, 12), (17, 24), (32, 32), (33, 33)])
def test_rows_are_padded_to_the_next_bucket(replays, rows, bucket):
    assert replays.padded_rows(rows) == bucket
    assert Replays().padded_rows(rows) == rows


def test_a_shape_is_recorded_after_two_forwards_and_replayed_from_then_on(replays):
    owner = weight()
    for number in range(EAGER + 3):
        [made] = replays.answer(owner, doubling(2, value=number))
        assert torch.equal(made, torch.full((2, 3), 2.0 * number))
        assert counted(replays) == (int(number >= EAGER), max(0, number + 1 - EAGER), 0)


def test_what_was_answered_stays_as_it_is(replays):
    owner = weight()
    answers = [replays.answer(owner, doubling(2, value=number))[0] for number in range(6)]
    assert [float(answer[0, 0]) for answer in answers] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("other", [doubling(3), doubling(2, "another"), doubling(2, None)])
def test_another_shape_or_variant_is_recorded_by_itself_and_what_is_like_no_other_never(replays, other):
    owner = weight()
    for _ in range(EAGER + 1):
        replays.answer(owner, doubling(2))
    before = counted(replays)
    for _ in range(EAGER + 3):
        replays.answer(owner, other)
    assert counted(replays)[0] - before[0] == (other.variant is not None)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), RuntimeError("operation not permitted")])
def test_what_cannot_be_recorded_runs_as_it_is_and_is_not_tried_again(replays, recorder, caplog, error):
    recorder.fails, owner = error, weight()
    with caplog.at_level(logging.WARNING):
        for number in range(EAGER + 3):
            assert float(replays.answer(owner, doubling(1, value=number))[0][0, 0]) == 2 * number
    assert counted(replays) == (0, 0, 1)
    assert str(error) in caplog.text


def test_the_shapes_least_recently_used_are_forgotten(replays, recorder, monkeypatch):
    monkeypatch.setattr(forward, "SHAPES_KEPT", 2)
    owner = weight()

    def run(*rows: int) -> None:
        for count in rows:
            for _ in range(EAGER + 1):
                replays.answer(owner, doubling(count))

    run(1, 2, 1, 4)
    assert len(recorder.recorded) == 2
    run(1)
    assert replays.counters.recordings == 3
    run(2)
    assert replays.counters.recordings == 4


def test_inputs_and_outputs_of_recordings_take_no_more_than_they_may_of_all_networks_together(recorder):
    """A row is 12 bytes of input and as many of output."""
    recorder.most = 24 * 7
    replays, owners = Replays(recorder, ROW_BUCKETS), [weight(), weight()]

    def recordings(*asked: tuple[int, int]) -> int:
        before = replays.counters.recordings
        for owner, rows in asked:
            for number in range(EAGER + 1):
                assert float(replays.answer(owners[owner], doubling(rows, value=number))[0][0, 0]) == 2 * number
        return replays.counters.recordings - before

    assert recordings((0, 4), (1, 2), (0, 1), (0, 4)) == 3
    assert len(recorder.recorded) == 3
    # The least recently used goes, whosever it is.
    assert recordings((1, 1)) == 1
    assert recordings((0, 4), (0, 1), (1, 1)) == 0
    # It is recorded again once it has been seen as often as at first, and another goes for it.
    replays.answer(owners[1], doubling(2))
    assert (recordings((1, 2)), len(recorder.recorded)) == (1, 3)
    # One of more than all may take is there alone.
    assert (recordings((0, 16)), len(recorder.recorded)) == (1, 1)
    assert recordings((0, 16)) == 0


def test_recordings_are_reset_with_the_weights_or_slots_that_they_read(replays, recorder):
    weights, slots = [weight(), weight()], weight()
    for reads in (None, slots):
        for one in weights:
            for _ in range(EAGER + 1):
                replays.answer(one, replace(doubling(2), reads=reads))
    recorded = [*recorder.recorded]
    assert (len(recorded), replays.idle_bytes()) == (4, 400)
    replays.forget(slots)
    assert (len(recorder.recorded), replays.idle_bytes()) == (2, 200)
    replays.forget(weights[0])
    assert (len(recorder.recorded), replays.idle_bytes()) == (1, 100)
    replays.forget(weights[0])
    assert sum(not recording.outputs for recording in recorded) == 3


def test_another_network_of_the_same_weights_has_the_same_recordings_and_moved_weights_have_others(module, replays):
    def run() -> None:
        with torch.inference_mode():
            for _ in range(EAGER + 1):
                LoadedNetwork("unet", ARCHITECTURE, module, Discrete(), replays).answer([row(1), row(2)])

    run()
    run()
    assert counted(replays)[0] == 1
    kept = module.conv_in.weight
    module.conv_in.weight = torch.nn.Parameter(kept.clone(), requires_grad=False)
    run()
    assert counted(replays)[0] == 2
    module.conv_in.weight = kept


def test_dropped_for_want_of_memory_shapes_are_not_recorded_again(replays, recorder):
    owner = weight()
    for _ in range(EAGER + 1):
        replays.answer(owner, doubling(2))
    assert replays.drop() == 1
    assert (replays.drop(), replays.idle_bytes(), replays.counters.dropped) == (0, 0, 1)
    for number in range(EAGER + 2):
        assert float(replays.answer(owner, doubling(2, value=number))[0][0, 0]) == 2 * number
    assert counted(replays)[0] == 1


def test_a_device_that_is_to_record_nothing_fills_up_all_the_same(replays):
    replays.records, owner = False, weight()
    for number in range(EAGER + 2):
        assert float(replays.answer(owner, doubling(2, value=number))[0][0, 0]) == 2 * number
    assert (counted(replays), replays.padded_rows(3)) == ((0, 0, 0), 4)


def test_a_device_that_records_nothing_copies_nothing():
    given: list[Any] = []
    bare = CapturableCall({"x": torch.ones(2)}, lambda inputs: given.append(inputs["x"]) or [inputs["x"]])
    for _ in range(EAGER + 2):
        Replays().answer(weight(), bare)
    assert all(one is bare.inputs["x"] for one in given)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def row(seed: int, count: int = 1, text: int = 7, layers: tuple[Any, ...] = ()) -> Rows:
    inputs = UnetInputs(normal(seed + 100, count, text, 16))
    return Rows(normal(seed, count, 4, 8, 8), 1.0, torch.full((count,), 10.0 * seed), inputs, layers=layers)


@pytest.fixture(scope="module")
def module() -> Any:
    return backbone()


def answered(module: Any, replays: Replays, rows: list[Rows]) -> list[Tensor]:
    with torch.inference_mode():
        return LoadedNetwork("unet", ARCHITECTURE, module, Discrete(), replays).answer(rows)


def test_within_a_bucket_the_bits_of_a_row_do_not_depend_on_its_neighbours(module, replays):
    """Nor on its place, where all rows of a kernel are computed alike."""
    alone = answered(module, replays, [row(1), row(2), row(3), row(4)])[0]
    for others in ([5, 6, 7], [6, 5], [7, 8], [2, 3, 4]):
        made = answered(module, replays, [row(1), *map(row, others)])
        assert torch.equal(made[0], alone), others
    assert torch.equal(answered(module, replays, [row(9, 2), row(1), row(3)])[1], alone)


def test_a_forward_is_padded_and_only_its_own_rows_are_returned(module, replays):
    seen: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    made = answered(module, replays, [row(1, 2), row(2), row(3, 2)])
    hook.remove()
    assert (seen, [len(one) for one in made]) == ([6], [2, 1, 2])
    plain = answered(module, Replays(), [row(1, 2), row(2), row(3, 2)])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(made, plain, strict=True))


@pytest.mark.parametrize("text", [7, 5])
def test_replays_give_what_the_forward_gives_to_the_bit(module, replays, text):
    network = LoadedNetwork("unet", ARCHITECTURE, module, Discrete(), replays)
    eager = LoadedNetwork("unet", ARCHITECTURE, module, Discrete(), Replays(None, ROW_BUCKETS))
    with torch.inference_mode():
        for seed in range(EAGER + 3):
            asked = [row(seed), row(seed + 1, text=text), row(seed + 2)]
            ours, theirs = network.answer(asked), eager.answer(asked)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert counted(replays) == (1, 3, 0)


def test_freeu_is_replayed_for_the_rows_that_have_it(module, replays):
    network = LoadedNetwork("unet", ARCHITECTURE, module, Discrete(), replays)
    eager = LoadedNetwork("unet", ARCHITECTURE, module, Discrete(), Replays(None, ROW_BUCKETS))
    with torch.inference_mode():
        for seed in range(EAGER + 3):
            for order in (((FREEU,), ()), ((), (FREEU,))):
                asked = [row(seed, layers=order[0]), row(seed + 1, layers=order[1])]
                ours, theirs = network.answer(asked), eager.answer(asked)
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert counted(replays) == (2, 6, 0)


@pytest.mark.parametrize(
    "change", [{"layers": (DeepShrink(1, 2.0, 1.0, 0.0, True, "bicubic", "bicubic"),)}, {"exclusive": True}]
)
def test_structural_patches_and_strict_jobs_are_neither_padded_nor_replayed(module, replays, change):
    network, seen = LoadedNetwork("unet", ARCHITECTURE, module, Discrete(), replays), []
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    with torch.inference_mode():
        for _ in range(EAGER + 2):
            network.answer([replace(row(seed), **change) for seed in range(3)])
    hook.remove()
    assert (seen, counted(replays)) == ([3] * (EAGER + 2), (0, 0, 0))
