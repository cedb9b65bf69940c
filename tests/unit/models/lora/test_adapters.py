"""What adapters promise, whatever their kind; the numbers themselves are held to ComfyUI's in tests/parity."""

import pytest
import torch

from serve_app.models.lora.adapters import Generalized, LowRank, WeightDelta, WeightReplacement, merged


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


PLAIN = LowRank(drawn(1, 8, 2), drawn(2, 2, 6), 0.5)
DECOMPOSED = LowRank(drawn(1, 8, 2), drawn(2, 2, 6), 0.5, drawn(3, 8, 1).abs())
WEIGHT = drawn(0, 8, 6)


def test_a_low_rank_change_is_the_product_of_its_pair():
    pair = PLAIN.low_rank()
    assert pair is not None
    down, up, scale = pair
    torch.testing.assert_close(merged(WEIGHT, [(PLAIN, 0.7)]), WEIGHT + 0.7 * scale * up @ down)


def test_a_convolutions_pair_is_flat():
    pair = LowRank(drawn(1, 8, 2, 1, 1), drawn(2, 2, 6, 3, 3), 1.0).low_rank()
    assert pair is not None
    down, up, _ = pair
    assert (down.shape, up.shape) == ((2, 54), (8, 2))


@pytest.mark.parametrize("adapter", [DECOMPOSED, WeightDelta(drawn(4, 8, 6)), WeightReplacement(drawn(5, 8, 6))])
def test_what_is_not_of_low_rank_says_so(adapter):
    assert adapter.low_rank() is None


@pytest.mark.parametrize("transposed", [False, True])
def test_a_generalized_adapter_of_a_square_weight_is_applied_as_its_file_has_it(transposed):
    weight, first, second = drawn(0, 8, 8), drawn(1, 8, 2), drawn(2, 2, 8)
    a1, a2, b1, b2 = first, second, 2 * first, 3 * second
    change = weight @ a1 @ a2 + b1 @ b2
    given = (a2, a1, b2, b1) if transposed else (a1, a2, b1, b2)
    torch.testing.assert_close(merged(weight, [(Generalized(*given, None), 0.5)]), weight + 0.5 * change)


def test_adapters_are_applied_in_order():
    one_way = merged(WEIGHT, [(DECOMPOSED, 1.0), (PLAIN, 1.0)])
    other_way = merged(WEIGHT, [(PLAIN, 1.0), (DECOMPOSED, 1.0)])
    torch.testing.assert_close(one_way, merged(merged(WEIGHT, [(DECOMPOSED, 1.0)]), [(PLAIN, 1.0)]))
    assert not torch.allclose(one_way, other_way)


def test_half_a_decomposed_strength_goes_half_of_the_way():
    torch.testing.assert_close(2 * DECOMPOSED.change(WEIGHT, 0.5), DECOMPOSED.change(WEIGHT, 1.0))


def test_a_decomposed_weight_at_full_strength_has_the_trained_magnitudes():
    unmoved = LowRank(torch.zeros(8, 2), drawn(2, 2, 6), 0.5, DECOMPOSED.magnitude)
    norms = merged(WEIGHT, [(unmoved, 1.0)]).norm(dim=1, keepdim=True)
    torch.testing.assert_close(norms, DECOMPOSED.magnitude)


def test_a_replacement_takes_the_weights_place_at_any_strength():
    for strength in (1.0, 0.1):
        torch.testing.assert_close(merged(WEIGHT, [(WeightReplacement(drawn(5, 8, 6)), strength)]), drawn(5, 8, 6))


def test_half_precision_weights_are_merged_in_full_and_rounded_once():
    half = WEIGHT.half()
    stack = [(PLAIN, 0.7), (DECOMPOSED, -0.3), (PLAIN, 0.11)]
    result = merged(half, stack)
    assert result.dtype == torch.float16
    assert torch.equal(result, merged(half.float(), stack).half())


def test_an_adapter_that_does_not_fit_is_left_out_with_a_warning(caplog):
    result = merged(WEIGHT, [(WeightDelta(drawn(0, 3, 3)), 1.0), (PLAIN, 1.0)])
    assert torch.equal(result, merged(WEIGHT, [(PLAIN, 1.0)]))
    assert "a WeightDelta does not fit a weight of (8, 6)" in caplog.text


def test_the_weight_itself_is_never_changed():
    before = WEIGHT.clone()
    merged(WEIGHT, [(PLAIN, 1.0), (DECOMPOSED, 0.5), (WeightReplacement(drawn(5, 8, 6)), 1.0)])
    assert torch.equal(WEIGHT, before)
