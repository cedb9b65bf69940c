"""A run that ranks hand over goes on with another number of them, and draws what one process draws."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from threading import Event
from typing import NamedTuple, TypeAlias

import pytest
from safetensors.torch import save_file
from torch import Tensor

from serve_app.config.resume import ResumeConfig
from serve_app.engine.engine import Engine
from serve_app.engine.run_state import RunStateCounters
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.models.families.family import Rows
from serve_app.models.network import LoadedNetwork
from serve_app.models.ranks.leader import Leader
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.request import SamplingRequest
from serve_app.store.files.volume import Volume
from serve_app.store.work.run_states import JobStates, RunStateFiles
from tests.unit.engine.mixes import relative_error, request
from tests.unit.models.ranks.processes import LATE_S, run_ranks, weights_of
from tests.unit.models.ranks.test_ranks import SMALL, text
from tests.unit.models.sample import by_own_names

SIZES = (3, 2)
STEPS, EACH = 9, 3
"""Steps of the run, and how many of them each group of ranks takes before it hands over."""
RECIPE = Recipe("backbone", "diffusion_models", "flux4.safetensors")


Drain: TypeAlias = Callable[[EngineRuntime, Callable[[], object]], Awaitable[None]]
"""Has a runtime hand its runs over once they have come far enough. It is given what cancels them."""


class Part(NamedTuple):
    """What one replica did. latents: None if it handed the run over. hosts: those of its ranks."""

    latents: Tensor | None
    evaluations: int
    states: RunStateCounters
    hosts: tuple[str, ...] = ()


class Paced(Leader):
    """Ranks that wait after some forwards, until they are told to go on."""

    def __init__(self, leader: Leader, forwards: int) -> None:
        super().__init__(leader.group)
        self.reached, self.goes_on = Event(), Event()
        self._left = forwards

    def answer(self, network: LoadedNetwork, rows: Sequence[Rows]) -> list[Tensor]:
        made = super().answer(network, rows)
        self._left -= 1
        if self._left == 0:
            self.reached.set()
            assert self.goes_on.wait(LATE_S), "nobody has handed the run over"
        return made

    async def drain(self, runtime: EngineRuntime, stop: Callable[[], object]) -> None:
        """Hand over what runs while the ranks wait."""
        assert await asyncio.to_thread(self.reached.wait, LATE_S), "the run does not come so far"
        handing = asyncio.ensure_future(runtime.hand_over(stop))
        # Asked of the engine before its forward ends.
        await asyncio.sleep(0)
        self.goes_on.set()
        await handing


def job(cfg: float, steps: int = STEPS) -> SamplingRequest:
    """Return a run whose sampler remembers steps and draws noise. cfg: 1 has one row, else it has two."""
    return request(
        backbone=RECIPE,
        shape=(1, 16, 6, 10),
        positive=text("flux4", 1, 7),
        negative=text("flux4", 2, 5),
        cfg=cfg,
        schedule="simple",
        sampler="dpmpp_2m_sde",
        steps=steps,
        seed=3,
    )


def write_models(models: Path) -> None:
    """Write the file of the runs' backbone."""
    (models / RECIPE.folder).mkdir(parents=True, exist_ok=True)
    save_file(by_own_names(SMALL["flux4"]), models / RECIPE.folder / RECIPE.name)


def ran(
    weights: Weights, asked: SamplingRequest, states: Callable[[], RunStateFiles] | None, drain: Drain | None = None
) -> Part:
    """Run a job, from its state if it has one, to its end or until it is drained."""
    engine = Engine(2**16, HostTimeline())
    runtime = EngineRuntime(engine, weights, resume=ResumeConfig(after_s=3600.0))

    async def run() -> Tensor | None:
        bound = runtime.bind(lambda done, steps: None, states=states)
        sampling = asyncio.ensure_future(bound.sample(asked))
        if drain is None:
            return (await sampling).latents
        await asyncio.wait_for(drain(runtime, sampling.cancel), 2 * LATE_S)
        with pytest.raises(asyncio.CancelledError):
            await sampling
        return None

    try:
        latents = asyncio.run(run())
    finally:
        runtime.close()
    return Part(latents, runtime.counters.evaluations, runtime.run_states)


def lead(models: Path, leader: Leader) -> dict[str, list[Part]]:
    """Take some steps of each run, and hand it over; the fewest ranks then have one process end it."""
    found = {}
    for name, cfg in (("one row", 1.0), ("two rows", 4.0)):
        kept = JobStates(Volume({"work": models.parent}), name)

        def states(kept: JobStates = kept) -> RunStateFiles:
            return kept.of("3", 0, "the same workflow")

        paced = Paced(leader, EACH)
        parts = [ran(weights_of(models, paced), job(cfg), states, paced.drain)._replace(hosts=leader.group.hosts)]
        if leader.size == SIZES[-1]:
            parts += [ran(weights_of(models), job(cfg), states), ran(weights_of(models), job(cfg), None)]
        found[name] = parts
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[Part]]]:
    folder = tmp_path_factory.mktemp("resumed")
    write_models(folder / "models")
    return run_ranks(folder, SIZES, lead)


@pytest.mark.parametrize("rows", ["one row", "two rows"])
def test_a_run_goes_on_with_fewer_ranks_and_with_one_and_draws_the_same(
    found: dict[int, dict[str, list[Part]]], rows: str
) -> None:
    [of_three], [of_two, ending, alone] = found[3][rows], found[2][rows]
    assert (of_three.latents, of_two.latents) == (None, None)
    assert ending.latents is not None
    assert alone.latents is not None
    assert relative_error(ending.latents, alone.latents) <= 1e-5
    assert [part.states.resumed for part in (of_three, of_two, ending)] == [0, 1, 1]
    assert [part.states.steps for part in (of_two, ending)] == [EACH, 2 * EACH]
    # At most one step is computed again each time it goes on.
    assert alone.evaluations == STEPS
    assert sum(part.evaluations for part in (of_three, of_two, ending)) <= STEPS + 2


def test_ranks_know_the_hosts_of_all(found: dict[int, dict[str, list[Part]]]) -> None:
    assert {size: found[size]["one row"][0].hosts for size in SIZES} == {
        size: (socket.gethostname(),) * size for size in SIZES
    }
