"""That what is measured of a card is measured on the stream that does it, on a card that only claims to be one."""

from __future__ import annotations

import torch

from tests.gpu.bench import Bench
from tests.unit.engine.card import CARD, Card
from tests.unit.engine.card_driver import GB, driven


def test_work_is_timed_on_its_own_stream() -> None:
    card, bench = Card(total_bytes=24 * GB), Bench(CARD, small=True)
    assert card.driver is not None
    streams = []

    def work() -> None:
        streams.append(torch.cuda.current_stream(CARD))
        torch.ones(8, device=CARD).mul_(2)

    with driven(card.driver), card.used():
        seconds, _ = bench.seconds(work)
        bench.peak_bytes(work)
        assert seconds > 0
        with bench.timeline.enqueueing():
            assert set(streams) == {torch.cuda.current_stream(CARD)}
