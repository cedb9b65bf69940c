"""Rows with sets of LoRAs of their own in one forward, against networks whose weights were merged one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from serve_app.models.kernels.packing import PackedLinear, move_to
from serve_app.models.lora.adapters import Adapter, Hadamard, LowRank, WeightDelta, WeightReplacement, merged
from serve_app.models.lora.forward import with_loras
from serve_app.models.lora.layers import MERGED_AT_ONCE, LoraSet, with_merged
from serve_app.models.quantization.half_precision_text import SixteenBitWeight
from serve_app.models.quantization.quantized_linear import QuantizedLinear


class Block(nn.Module):
    """A layer of every kind that LoRAs change; rows along dim 0."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.narrow = nn.Conv2d(8, 6, 1)
        self.first = nn.Linear(6, 10)
        self.second = nn.Linear(10, 6, bias=False)
        self.last = nn.Conv2d(6, 4, 3, groups=2)

    def forward(self, x):
        x = self.narrow(torch.tanh(self.norm(self.wide(x))))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.second(torch.tanh(self.first(tokens)))
        return self.last(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


SHAPES = {
    "wide.weight": (8, 4, 3, 3),
    "norm.weight": (8,),
    "norm.bias": (8,),
    "narrow.weight": (6, 8, 1, 1),
    "first.weight": (10, 6),
    "first.bias": (10,),
    "second.weight": (6, 10),
    "last.weight": (4, 3, 3, 3),
}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return Block().eval().requires_grad_(False).to(dtype)


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def low_rank(seed, parameter, rank=2, magnitude=False):
    out, *inside = SHAPES[parameter]
    down, up = drawn(seed, rank, *inside), drawn(seed + 1, out, rank)
    return LowRank(up, down, 0.7, drawn(seed + 2, out, *[1] * len(inside)).abs() + 0.5 if magnitude else None)


THIN = ("wide.weight", "narrow.weight", "first.weight", "second.weight")
STYLE = {name: low_rank(10 + i, name) for i, name in enumerate(THIN)}
OTHER = {name: low_rank(50 + i, name, rank=3) for i, name in enumerate(THIN[1:])}
MIXED = {
    "wide.weight": low_rank(90, "wide.weight", magnitude=True),
    "norm.weight": WeightDelta(drawn(91, 8)),
    "norm.bias": WeightDelta(drawn(92, 8)),
    "first.weight": low_rank(93, "first.weight"),
    "first.bias": WeightDelta(drawn(94, 10)),
    "second.weight": Hadamard(
        (drawn(95, 6, 2), drawn(96, 2, 10), None), (drawn(97, 6, 2), drawn(98, 2, 10), None), 2.0
    ),
    "last.weight": low_rank(99, "last.weight"),
    "second.bias": WeightDelta(drawn(93, 6)),
    "absent.weight": WeightReplacement(drawn(93, 6)),
}
STACKS: dict[str | None, list[tuple[dict[str, Adapter], float]]] = {
    "style": [(STYLE, 0.8)],
    "stack": [(STYLE, 0.8), (OTHER, -0.5)],
    "mixed": [(MIXED, 1.3)],
    "mixed stack": [(OTHER, 1.0), (MIXED, 0.4), (STYLE, 0.2)],
}


def merged_network(plain, stack):
    """Return the network with all of the stack merged, parameter by parameter."""
    result = copy.deepcopy(plain)
    for name, parameter in result.named_parameters():
        parameter.copy_(merged(parameter, [(adapters[name], s) for adapters, s in stack if name in adapters]))
    return result


def inputs(rows, dtype=torch.float32):
    return torch.randn(rows, 4, 12, 10, generator=torch.Generator().manual_seed(7)).to(dtype)


PIECES = [(2, "style"), (1, None), (1, "mixed"), (2, "mixed"), (3, "stack"), (1, "mixed stack"), (2, None)]


@pytest.mark.parametrize("form", ["plain", "packed", "half"])
@torch.inference_mode()
def test_rows_of_many_sets_in_one_forward_answer_as_each_alone_with_merged_weights(form):
    dtype = torch.float16 if form == "half" else torch.float32
    shared, plain = network(dtype), network()
    if form == "packed":
        move_to(shared, torch.device("cpu"), torch.float32)
    sets: dict[str | None, LoraSet] = {name: LoraSet(name, shared, stack) for name, stack in STACKS.items()}
    x = inputs(sum(rows for rows, _ in PIECES), dtype)
    with with_loras([(rows, sets.get(name)) for rows, name in PIECES]):
        together = shared(x)
    start = 0
    for rows, name in PIECES:
        expected = merged_network(plain, STACKS.get(name, []))(x[start : start + rows].float())
        error = (together[start : start + rows].float() - expected).norm() / expected.norm()
        assert float(error) < (2e-3 if form == "half" else 1e-5)
        start += rows


def again(more):
    """Return which pieces' sets the rows of a layer's input have that has more rows than the batch."""
    sets = [name for rows, name in PIECES for _ in range(rows)]
    return sets + sets[:more]


@pytest.mark.parametrize("more", [1, 12])
@torch.inference_mode()
def test_a_layer_that_sees_rows_once_more_changes_them_as_their_sets_say(more):
    """As where a network is told each row's time and that of no noise behind it."""
    shared, plain = network(), network()
    sets: dict[str | None, LoraSet] = {name: LoraSet(name, shared, stack) for name, stack in STACKS.items()}
    names = again(more)
    x = drawn(5, len(names), 6)
    with with_loras([(rows, sets.get(name)) for rows, name in PIECES]):
        made = shared.first(x)
    for row, name in enumerate(names):
        expected = merged_network(plain, STACKS.get(name, [])).first(x[row])
        torch.testing.assert_close(made[row], expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_rows_of_many_sets_in_one_forward_answer_as_each_alone():
    shared = network()
    sets: dict[str | None, LoraSet] = {name: LoraSet(name, shared, stack) for name, stack in STACKS.items()}
    x = inputs(sum(rows for rows, _ in PIECES))
    with with_loras([(rows, sets.get(name)) for rows, name in PIECES]):
        together = shared(x)
    start = 0
    for rows, name in PIECES:
        with with_loras([(rows, sets.get(name))]):
            alone = shared(x[start : start + rows])
        torch.testing.assert_close(together[start : start + rows], alone, rtol=1e-5, atol=1e-5)
        start += rows


@torch.inference_mode()
def test_after_a_forward_the_network_is_as_it_was():
    shared = network()
    before = shared(inputs(2))
    with pytest.raises(RuntimeError), with_loras([(2, LoraSet("set", shared, STACKS["mixed"]))]):  # noqa: PT012
        shared(inputs(2))
        shared(inputs(2)[:, :3])
    assert torch.equal(shared(inputs(2)), before)
    assert not any("forward" in vars(module) for module in shared.modules())


@pytest.mark.parametrize("packs", [False, True])
@torch.inference_mode()
def test_a_set_that_is_long_alone_is_merged_answers_the_same_and_is_unmerged_among_others(packs):
    shared = network()
    if packs:
        move_to(shared, torch.device("cpu"), torch.float32)
    style, stack = LoraSet("style", shared, STACKS["style"]), LoraSet("stack", shared, STACKS["stack"])
    x = inputs(2)
    unmerged_bytes = style.nbytes
    answers = []
    for _ in range(12):
        with with_loras([(2, style)]):
            answers.append(shared(x))
    assert style.nbytes > unmerged_bytes
    assert not torch.equal(answers[0], answers[-1])
    torch.testing.assert_close(answers[-1], answers[0], rtol=1e-5, atol=1e-5)
    for _ in range(12):
        with with_loras([(1, style), (1, stack)]):
            mixed = shared(x)
    assert style.nbytes == unmerged_bytes
    torch.testing.assert_close(mixed[:1], answers[0][:1], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_many_layers_are_merged_a_few_before_each_forward():
    layers = MERGED_AT_ONCE * 2 + 3
    shared = nn.Sequential(*(nn.Linear(6, 6) for _ in range(layers))).requires_grad_(False)
    style = LoraSet(
        "style",
        shared,
        [({f"{i}.weight": LowRank(drawn(i, 6, 2), drawn(i + 1, 2, 6), 1.0) for i in range(layers)}, 1.0)],
    )
    x = torch.ones(2, 6)
    merged_layers, answers = [], []
    for _ in range(13):
        with with_loras([(2, style)]):
            answers.append(shared(x))
        merged_layers.append(sum(layer.is_merged for layer in style.layers.values()))
    assert merged_layers == [0] * 8 + [MERGED_AT_ONCE, 2 * MERGED_AT_ONCE, layers, layers, layers]
    for answer in answers:
        torch.testing.assert_close(answer, answers[0], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_without_merging_every_forward_is_bit_equal():
    shared = network()
    style = LoraSet("style", shared, STACKS["style"])
    answers = []
    for index in range(30):
        with with_loras([(2, style)], merging=index % 2 == 1):
            answers.append(shared(inputs(2)))
    assert all(torch.equal(answers[0], answer) for answer in answers[::2])
    assert not torch.equal(answers[0], answers[-1])


@torch.inference_mode()
def test_no_set_is_merged_where_there_is_no_room():
    shared = network()
    asked = []
    style = LoraSet("style", shared, STACKS["style"], may_take=lambda nbytes: bool(asked.append(nbytes)))
    before = style.nbytes
    for _ in range(12):
        with with_loras([(2, style)]):
            shared(inputs(2))
    assert style.nbytes == before
    assert set(asked) == {sum(torch.empty(SHAPES[name]).numel() for name in THIN) * 4}


def test_a_set_of_low_rank_takes_the_memory_of_its_thin_layers():
    shared = network()
    assert LoraSet("style", shared, STACKS["style"]).nbytes == 4 * sum(
        STYLE[name].up.numel() + STYLE[name].down.numel() for name in THIN
    )
    assert LoraSet("other", shared.half(), [({"norm.bias": WeightDelta(drawn(0, 8))}, 1.0)]).nbytes == 2 * 8


def test_a_pair_that_does_not_fit_is_left_out():
    shared = network()
    wrong = LowRank(drawn(0, 10, 2), drawn(1, 2, 7), 1.0)
    with with_loras([(2, LoraSet("wrong", shared, [({"first.weight": wrong}, 1.0)]))]), torch.inference_mode():
        answer = shared(inputs(2))
    torch.testing.assert_close(answer, network()(inputs(2)))


@pytest.mark.parametrize("packs", [False, True])
@torch.inference_mode()
def test_a_merged_copy_shares_what_the_set_leaves_alone(packs):
    base = network()
    if packs:
        move_to(base, torch.device("cpu"), torch.float32)
    changed = with_merged(base, LoraSet("style", base, STACKS["style"]))
    x = inputs(2)
    expected = merged_network(network(), STACKS["style"])(x)
    torch.testing.assert_close(changed(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(base(x), network()(x), rtol=1e-5, atol=1e-5)
    assert changed.last.weight is base.last.weight
    assert changed.first.bias is base.first.bias
    assert isinstance(changed.first, PackedLinear) == packs


@torch.inference_mode()
def test_a_merged_copy_shares_weights_that_are_kept_in_fewer_bits():
    layers = [QuantizedLinear(SixteenBitWeight(drawn(i, 6, 6).half()), None) for i in range(2)]
    base = nn.Sequential(*layers)
    changes = {"0.weight": LowRank(drawn(2, 6, 2), drawn(3, 2, 6), 1.0)}
    changed = with_merged(base, LoraSet("set", base, [(changes, 1.0)]))
    first, second = changed.children()
    assert isinstance(second, QuantizedLinear)
    assert second.quantized is layers[1].quantized
    assert not isinstance(first, QuantizedLinear)


def test_an_unmerged_lora_is_added_after_the_weights_are_rounded():
    base = nn.Sequential(nn.Linear(6, 6))
    stack = [({"0.weight": LowRank(drawn(i, 6, 2), drawn(i + 1, 2, 6), 1.0)}, 1.0) for i in (0, 2)]
    (changed,) = with_merged(base, LoraSet("set", base, stack, stored_as=torch.float16, bypassing=1)).children()
    rounded = (base[0].weight + drawn(0, 6, 2) @ drawn(1, 2, 6)).half().float()
    torch.testing.assert_close(changed.weight, rounded + drawn(2, 6, 2) @ drawn(3, 2, 6), rtol=0, atol=1e-6)


@torch.inference_mode()
def test_a_network_runs_on_once_a_set_with_merged_layers_is_freed():
    shared = network()
    before = shared(inputs(2))
    whole = LoraSet("other", shared, [({"second.weight": WeightDelta(drawn(0, 6, 10))}, 1.0)])
    with with_loras([(2, whole)]):
        assert not torch.equal(shared(inputs(2)), before)
    whole.close()
    assert torch.equal(shared(inputs(2)), before)


def test_layers_without_a_thin_form_are_ready_before_the_first_forward_a_few_at_a_time():
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(2 * MERGED_AT_ONCE + 2))).requires_grad_(False)
    pair = (drawn(1, 4, 2), drawn(2, 2, 4), None)
    changes: dict[str, Adapter] = {f"{i}.weight": Hadamard(pair, pair, 1.0) for i in range(2 * MERGED_AT_ONCE + 1)}
    changes[f"{2 * MERGED_AT_ONCE + 1}.weight"] = LowRank(drawn(1, 4, 2), drawn(2, 2, 4), 1.0)
    adapters = LoraSet("set", layers, [(changes, 1.0)])
    ready = [sum(layer.is_ready for layer in adapters.layers.values()) for _ in adapters.prepared()]
    assert ready == [MERGED_AT_ONCE + 1, 2 * MERGED_AT_ONCE + 1]
    assert all(layer.is_ready for layer in adapters.layers.values())
    assert list(adapters.prepared()) == []
