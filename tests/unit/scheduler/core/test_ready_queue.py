"""The first tasks of a line are found in order, in a heap in which others stay that have left."""

from __future__ import annotations

import random

import pytest

from serve_app.scheduler.core.events import CancelAsked
from tests.unit.scheduler.core.test_dispatch import Loaded

LOOKED_FOR = 4


@pytest.mark.parametrize("seed", range(10))
def test_the_next_tasks_of_a_file_are_the_first_of_it_in_order(seed: int) -> None:
    chance = random.Random(seed)
    script, numbers = Loaded(), chance.sample(range(1000), 40)
    for number in numbers:
        script.submit(f"j{number:03}", "ab"[number % 2], number=number)
    ready = script.machine.dispatch.ready["gpu"]

    def found() -> list[str]:
        return [waiting.entry.job_id for waiting in ready.nexts_of("a.safetensors", LOOKED_FOR)]

    inside = sorted(f"j{number:03}" for number in numbers if number % 2 == 0)
    assert found() == inside[:LOOKED_FOR]
    for job_id in chance.sample(inside, len(inside) - 2):
        script.apply(CancelAsked(job_id))
        inside.remove(job_id)
        names = found()
        assert names == inside[: len(names)]
        assert names, "the first is always found"
    assert ready.nexts_of("none.safetensors", LOOKED_FOR) == []
