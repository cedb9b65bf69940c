"""Noise on the honest card: on a stream of its own, with a CPU's numbers, so that results can be a CPU's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from serve_app.sampling import noise
from serve_app.sampling.draws import HostDraws
from tests.unit.engine.card import CARD, Card
from tests.unit.engine.card_order import DRAWS, Place, record


class CardGenerator(torch.Generator):
    """A generator that claims to be on the card."""

    device = CARD


class CardDraws:
    """How noise comes to be on the card, as `sampling.draws.Draws`."""

    def __init__(self, card: Card) -> None:
        self._card = card

    def made(self, draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Draw on the stream of draws, in any thread."""
        order = self._card.order
        with self._card.used(), order.on(DRAWS):
            drawn = draw()
            place = order.place(DRAWS)

        def hand_over() -> Tensor:
            self.lead(place)
            self.keep(drawn)
            return drawn

        return hand_over

    def lead(self, place: Place) -> None:
        """Have the stream that this thread asks wait for a draw."""
        self._card.order.follow(place)

    def keep(self, drawn: Tensor) -> None:
        """Record that it uses what was drawn."""
        record(drawn, self._card.order.stream)


def draw_on(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have noise for the card be drawn there."""

    def seeded(device: torch.device, seed: int) -> torch.Generator:
        generator = torch.Generator() if device.type == "cpu" else CardGenerator()
        return generator.manual_seed(seed % 2**64)

    monkeypatch.setattr(noise, "seeded", seeded)
    monkeypatch.setattr(noise, "own_seed", lambda device, seed: seed + 1)
    monkeypatch.setattr(noise, "draws_of", lambda device: HostDraws() if device.type == "cpu" else CardDraws(card))
