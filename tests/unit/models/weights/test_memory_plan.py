"""What a process may take of a card, and what weights may of that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config.pool import PoolConfig
from serve_app.errors import ConfigError
from serve_app.models.weights.memory_plan import (
    CELL_BYTES,
    CONTEXT_BYTES,
    RESERVE_BYTES,
    WORKING_SHARE,
    card_share,
    host_weights_bytes,
)

GB = 10**9
MAX_CELLS = PoolConfig(name="a").max_cells
PER_PROCESS = CONTEXT_BYTES + RESERVE_BYTES


@pytest.mark.parametrize(
    ("total", "fraction", "planned", "weights"),
    [
        # A large card: forwards are left what max_cells need.
        (80 * GB, 1, 80 * GB - PER_PROCESS, 80 * GB - PER_PROCESS - MAX_CELLS * CELL_BYTES),
        # A small one: they are left a quarter.
        (8 * GB, 1, 8 * GB - PER_PROCESS, 6 * GB - PER_PROCESS + PER_PROCESS // 4),
        (24 * GB, 0.2, 4_800_000_000 - PER_PROCESS, 3_600_000_000 - PER_PROCESS + PER_PROCESS // 4),
    ],
)
def test_weights_take_what_the_share_of_a_card_leaves_beside_context_reserve_and_forwards(
    total, fraction, planned, weights
):
    share = card_share(total, total, fraction)
    assert share.planned_bytes == planned
    assert share.allocator_bytes == planned + RESERVE_BYTES
    assert share.weights_bytes(None, MAX_CELLS) == weights


def test_what_others_have_taken_of_a_card_is_not_planned_with():
    assert card_share(24 * GB, 10 * GB, 1).planned_bytes == 10 * GB - RESERVE_BYTES


@given(
    st.lists(st.integers(1, 10), min_size=1, max_size=6),
    st.integers(2 * GB, 200 * GB),
    st.integers(1, 2**20),
)
def test_processes_that_share_a_card_plan_with_no_more_than_it_has(parts, total, max_cells):
    shares = []
    for part in parts:
        try:
            shares.append(card_share(total, total, part / sum(parts)))
        except ConfigError:
            continue
    taken = sum(share.planned_bytes + CONTEXT_BYTES for share in shares)
    assert taken <= total
    for share in shares:
        weights = share.weights_bytes(None, max_cells)
        assert 0 < weights < share.planned_bytes
        assert share.planned_bytes - weights >= min(max_cells * CELL_BYTES, share.planned_bytes // WORKING_SHARE)


def test_weights_have_room_on_the_card_or_the_error_has_the_figures():
    share = card_share(24 * GB, 24 * GB, 0.2)
    assert share.weights_bytes(3 * GB, MAX_CELLS) == 3 * GB
    planned = f"{share.planned_bytes:,}"
    with pytest.raises(
        ConfigError, match=f"weights_bytes is 5,000,000,000, and of this card's 24,000,000,000 .* {planned}"
    ):
        share.weights_bytes(5 * GB, MAX_CELLS)


@pytest.mark.parametrize(("total", "free", "fraction"), [(8 * GB, 8 * GB, 0.1), (8 * GB, RESERVE_BYTES, 1)])
def test_a_share_without_room_for_any_model_is_an_error(total, free, fraction):
    with pytest.raises(ConfigError, match=f"num_gpus is {fraction:g}, and that share of this card's 8,000,000,000"):
        card_share(total, free, fraction)


def test_on_a_cpu_weights_take_half_of_what_the_process_may_use():
    assert host_weights_bytes(None, 16 * GB) == 8 * GB
    assert host_weights_bytes(3 * GB, 16 * GB) == 3 * GB
