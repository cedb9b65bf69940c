"""Two streams of the honest card: every tensor that goes from one to the other is waited for, and keeps its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest
import torch

from serve_app.engine.autoencoding import Autoencoding
from serve_app.engine.preview import Pictures, picture
from serve_app.engine.trajectory import Trajectory
from serve_app.models.families import Taesd
from serve_app.models.text_encoder import Clip
from serve_app.models.vae import Vae
from serve_app.sampling.latents.latent_formats import SD
from serve_app.sampling.request import SamplingRequest
from tests.unit.engine.card import CARD, Card
from tests.unit.engine.card_order import FORWARDS, SIDE, CardTimeline, UnorderedError
from tests.unit.engine.card_runs import CardEngine, on_card
from tests.unit.engine.mixes import request
from tests.unit.engine.test_card_jobs import VAE, Alone, L, NoLexicon


def test_what_another_stream_makes_has_to_be_waited_for() -> None:
    card = Card()
    with card.used():
        x = torch.ones(3).to(CARD) * 2
        with card.order.on(SIDE):
            with pytest.raises(UnorderedError, match="does not wait for"):
                x + 1
            card.order.follow(card.order.place(FORWARDS))
            y = x + 1
        # What is made beside forwards, they do not wait for; nor may they write what is read there.
        with pytest.raises(UnorderedError):
            y + 1
        with pytest.raises(UnorderedError):
            x.mul_(2)
        card.order.wait(card.order.place(SIDE))
        assert (y + 1).cpu().tolist() == [4, 4, 4]
        x.mul_(2)


def test_memory_that_another_stream_uses_goes_back_too_early_unless_that_is_recorded() -> None:
    card = Card()
    side_stream = CardTimeline(card.order).side_stream
    assert side_stream is not None
    with card.used():
        for recorded in (True, False):
            x = torch.ones(3).to(CARD) * 2
            with side_stream.enqueueing():
                x.neg()
            if recorded:
                side_stream.keep(x)
            del x
            assert len(card.order.early) == (0 if recorded else 1)


class Works:
    """What jobs have done beside forwards on a card: a text, an image, and pictures of each step."""

    def __init__(self, card: Card) -> None:
        self.engine = CardEngine(card)
        self.backbone = on_card(card)
        torch.manual_seed(1)
        with torch.inference_mode(), card.used():
            family = Taesd(SD)
            self._vae = Vae(family, card.settle(family.build().eval().requires_grad_(False)))
            self._encoder: Any = card.settle(L.build().eval())
        self._clip: Clip | None = None
        self._autoencoding = Autoencoding(Alone())
        self.pictures = 0

    def text(self) -> Any:
        # Made where it is used, as weights make it.
        self._clip = self._clip or Clip(L.encoder(self._encoder, NoLexicon()))
        return self._clip.encode(["a (fox:1.2)"])

    def image(self) -> Any:
        return self._autoencoding.whole(VAE, self._vae, "decode", torch.randn(1, 4, 3, 5))

    def picture(self, latents: torch.Tensor) -> torch.Tensor | None:
        self.pictures += 1
        picture(latents, SD)
        return self._vae.picture(SD.from_model(latents[:1]))

    def run(self, wanted: SamplingRequest) -> None:
        """Run two jobs with pictures; with the first steps a text and an image are made beside them."""
        answers = []

        def on_step(done: int, steps: int) -> None:
            # One for each step: nothing says here that the one before is done.
            Pictures(self.engine.timeline, self.engine.pool).make(first.shown, self.picture)
            if done <= 2:
                answers.append(self.engine.call(self.text, side_stream=True))
                answers.append(self.engine.call(self.image, side_stream=True))

        first, second = Trajectory(self.backbone, wanted, on_step), Trajectory(self.backbone, wanted)
        go = Event()
        self.engine.call(lambda: go.wait(30))
        runs = [self.engine.submit(trajectory) for trajectory in (first, second)]
        go.set()
        for future in (*runs, *answers):
            future.result(30)
        self.engine.close()


def test_nothing_on_the_side_stream_is_used_before_it_is_there() -> None:
    card = Card()
    works = Works(card)
    works.run(request(steps=6, seed=3))
    assert works.pictures == 6
    assert card.order.early == []
    assert card.counts.stalls == 0


def test_pictures_whose_latents_are_not_waited_for_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def enqueueing(timeline: CardTimeline) -> Iterator[None]:
        with timeline.order.on(timeline.stream):
            yield

    monkeypatch.setattr(CardTimeline, "enqueueing", enqueueing)
    works = Works(Card())
    with pytest.raises(UnorderedError):
        works.run(request(steps=6, seed=3))
    works.engine.close()


def test_latents_of_pictures_that_go_too_early_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CardTimeline, "keep", lambda timeline, tensor: None)
    card = Card()
    Works(card).run(request(steps=6, seed=3))
    assert card.order.early
