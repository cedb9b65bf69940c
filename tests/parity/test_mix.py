"""Batching with a real network: each job of a mix gets from the mini15 backbone what it gets alone, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serve_app.recipe.recipe import Recipe
from serve_app.store.models.catalog import Catalog
from tests.parity.checkpoints import models_dir
from tests.unit.engine.mixes import Job, conditioning, request
from tests.unit.engine.test_any_mix import check_mix
from tests.unit.models.sample import cpu_weights


class WatchedNetwork:
    """A network that counts its forwards."""

    def __init__(self, network):
        self.watched = network
        self.calls = []
        self.before = None

    def __getattr__(self, name):
        return getattr(self.watched, name)

    def answer(self, rows):
        self.calls.append((sum(r.count for r in rows), *rows[0].x.shape[1:]))
        if self.before is not None:
            self.before(len(self.calls))
        return self.watched.answer(rows)


class WatchedBackbone:
    """A backbone over such a network, as `check_mix` wants it."""

    def __init__(self, backbone):
        self.backbone = replace(backbone, network=WatchedNetwork(backbone.network))

    def __getattr__(self, name):
        return getattr(self.backbone, name)

    @property
    def calls(self):
        return self.backbone.network.calls

    @property
    def before(self):
        return self.backbone.network.before

    @before.setter
    def before(self, before):
        self.backbone.network.before = before


@pytest.fixture(scope="module")
def backbone():
    weights = cpu_weights(Catalog(models_dir("mini15")))
    return WatchedBackbone(weights.backbone(Recipe("backbone", "checkpoints", "mini15.safetensors")))


def job(sampler, schedule, steps, cfg, seed, lengths=(77, 77), batch=1, joins=0, leaves=None, **changes):
    """Return a job whose positive and negative texts have these lengths."""
    positive, negative = (conditioning(seed + i, length, width=768) for i, length in enumerate(lengths))
    settings = {"sampler": sampler, "schedule": schedule, "steps": steps, "cfg": cfg, "seed": seed}
    made = request(shape=(batch, 4, 8, 8), positive=positive, negative=negative, **settings, **changes)
    return Job(made, joins, leaves)


def test_a_mix_of_jobs_gives_each_what_the_network_gives_it_alone(backbone):
    mix = [
        job("euler", "normal", 3, 7.0, 1),
        job("euler_ancestral", "karras", 2, 5.0, 2, lengths=(154, 77), batch=2),
        job("heun", "exponential", 2, 1.0, 3, lengths=(154, 154), joins=1),
        job("dpmpp_2m", "karras", 2, 7.5, 4, batch=2, joins=1),
        job("euler", "simple", 4, 7.0, 5, joins=1, leaves=2),
        job("lcm", "sgm_uniform", 2, 1.5, 6, lengths=(77, 154), joins=2),
        job("ddim", "ddim_uniform", 2, 5.0, 7, joins=3, denoise=0.6),
    ]
    check_mix(mix, backbone, max_cells=8 * 64)
    # What is alone has one row, and no job of the mix has more than six.
    assert max(rows for rows, *_ in backbone.calls) > 6
