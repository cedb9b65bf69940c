"""What becomes of a job on cards and hosts of any size, without any of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serve_app.config.pool import PoolConfig
from serve_app.models.weights.memory_plan import SHARES, JobPlan, PartSize, Room, plan_job

GIB = 2**30
CARDS = (8, 10, 12, 16, 24, 32, 48, 80)
HOSTS = (16, 24, 32, 64, 128)
MAX_CELLS = PoolConfig(name="a").max_cells
OUTCOMES = ["too large", "streaming", "evicting", "whole"]
"""From the worst to the best."""


def room(card: int, host: int = 64) -> Room:
    return Room.of(card * GIB, host * GIB * 4 // 5, MAX_CELLS)


def part(gib: float) -> PartSize:
    nbytes = int(gib * GIB)
    return PartSize(nbytes, lambda taken: nbytes - taken * 3 // 4)


def planned(card: int, backbone: float, text: float, activations: float, host: int = 64) -> JobPlan:
    return plan_job(room(card, host), part(backbone), part(text), GIB // 4, int(activations * GIB))


SIZES = st.floats(0.1, 60)


@given(st.sampled_from(CARDS), st.sampled_from(HOSTS), SIZES, SIZES, st.floats(0, 100))
def test_a_job_is_refused_only_where_its_forward_has_no_room_beside_a_network_that_streams_as_far_as_it_can(
    card, host, backbone, text, activations
):
    has, job = room(card, host), planned(card, backbone, text, activations, host)
    fits = job.activation_bytes <= has.largest_forward(part(backbone).nbytes, 0)
    whole = job.activation_bytes + part(backbone).nbytes <= has.planned_bytes
    assert (job.outcome != "too large") == (fits or whole)
    if job.outcome == "too large":
        return
    # What is on the card at once is planned for.
    assert job.backbone.card_bytes + job.activation_bytes <= has.planned_bytes
    assert job.text.card_bytes <= has.weights_bytes
    # A small host makes it slower and refuses nothing.
    assert job.outcome == planned(card, backbone, text, activations, 128).outcome
    assert job.backbone.file_bytes <= job.backbone.streamed_bytes
    # Both parts share the host's pinned memory.
    assert sum(of.streamed_bytes - of.file_bytes for of in (job.backbone, job.text)) <= has.host_bytes


@given(st.sampled_from(HOSTS), SIZES, SIZES, st.floats(0, 100))
def test_a_larger_card_is_never_worse(host, backbone, text, activations):
    jobs = [planned(card, backbone, text, activations, host) for card in CARDS]
    ranks = [OUTCOMES.index(job.outcome) for job in jobs]
    assert ranks == sorted(ranks)


def test_each_outcome_in_turn_for_a_video_of_wan_in_fp8():
    # Of 1280×720 and 81 frames, by counts: 10.8 GiB of activations beside 13.3 of weights.
    jobs = {card: planned(card, 13.3, 8, 10.8) for card in CARDS}
    assert {card: job.outcome for card, job in jobs.items()} == {
        **dict.fromkeys((8, 10, 12), "too large"),
        **dict.fromkeys((16, 24), "streaming"),
        32: "evicting",
        **dict.fromkeys((48, 80), "whole"),
    }
    assert jobs[16].backbone.card_bytes == room(16).weights_bytes * 2 // SHARES


def test_what_the_host_lacks_memory_for_is_read_from_files():
    # Flux.1 in bf16 with T5 on a card of 12 GB.
    jobs = {host: planned(12, 22.2, 9.1, 0.5, host) for host in HOSTS}
    assert {job.outcome for job in jobs.values()} == {"streaming"}
    assert jobs[16].backbone.file_bytes > jobs[24].backbone.file_bytes > 0
    assert jobs[64].backbone.file_bytes == 0 < jobs[64].backbone.streamed_bytes
    assert jobs[32].reread_bytes > jobs[128].reread_bytes == 0


def test_what_is_beside_the_network_in_each_forward_takes_room_from_it():
    alone, beside = (plan_job(room(24), part(12), part(5), GIB // 4, GIB, added_bytes=added * GIB) for added in (0, 9))
    assert (alone.outcome, beside.outcome) == ("whole", "streaming")
    assert beside.backbone.card_bytes + 9 * GIB + GIB <= room(24).planned_bytes
    assert plan_job(room(24), part(12), part(5), GIB // 4, GIB, added_bytes=22 * GIB).outcome == "too large"
