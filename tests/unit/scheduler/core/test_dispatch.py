"""Weights are worth waiting for, within a stated bound; and a decision looks at a few replicas, however many."""

from __future__ import annotations

import random
from typing import Any

import pytest

from serve_app.graph.graph import Graph, Link, Node
from serve_app.scheduler.core import placement
from serve_app.scheduler.core.costs import Costs
from serve_app.scheduler.core.dispatch import EVICT_IF_WAIT_EXCEEDS, LOAD_IF_WAIT_EXCEEDS, MIN_WORK_PER_LOAD
from serve_app.scheduler.core.events import TimePassed
from serve_app.scheduler.core.machine import Machine
from serve_app.scheduler.core.replicas import ReplicaRecord
from serve_app.scheduler.protocol.messages import NodeFinished, ResidentWeights, TaskFinished
from serve_app.store.database.costs import Cost
from tests.examples import seeds
from tests.unit.scheduler.script import Script, assigned

LOAD_S, STEP_S = 4.0, 1.0
COSTS = [Cost("gpu", "load", f"{name}.safetensors", LOAD_S, 9) for name in "abcd"]


def drawn(seed: Any) -> tuple[Graph, dict[str, str]]:
    """Load -> Sample -> Save with a model and steps; seed: (number, model, steps)."""
    number, model, steps = seed
    nodes = {
        "1": Node("1", "Load", {"name": f"{model}.safetensors"}),
        "2": Node("2", "Sample", {"model": Link("1", 0), "steps": steps}),
        "3": Node("3", "Save", {"images": Link("2", 0)}),
    }
    return Graph(nodes), {"1": f"load-{model}", "2": f"sample-{number}", "3": f"save-{number}"}


class Loaded(Script):
    """A script of jobs with models whose loading is known to take LOAD_S, and a step STEP_S."""

    def __init__(self) -> None:
        super().__init__(graph=drawn)
        self.machine = Machine(epoch=1, max_attempts=3, costs=Costs(COSTS))

    def holding(self, name: str, model: str) -> None:
        self.replica(name)
        self.report(name, ResidentWeights((f"backbone checkpoints/{model}.safetensors",)))

    def having_loaded(self, name: str, model: str) -> None:
        """As `holding`, where the replica has done no work with the model since it loaded it."""
        self.holding(name, model)
        self.machine.replicas[name].owed_s = MIN_WORK_PER_LOAD * LOAD_S

    def submit(self, job_id: str, model: str, steps: int = 1, **fields: Any) -> list[str]:
        """Return which replicas were given something."""
        return [name for name, _ in assigned(self.job(job_id, (job_id, model, steps), **fields))]

    def started(self) -> list[str]:
        """Return the jobs in the order in which they were given out."""
        return [task.id.job_id for _, task in assigned(self.commands)]

    def finish(self, replica: str) -> list[str]:
        """End what runs on a replica; return the jobs that start in turn."""
        [task_id] = self.machine.replicas[replica].running
        task = next(task for name, task in assigned(self.commands) if task.id == task_id)
        commands = self.run(replica, task)
        return [task.id.job_id for _, task in assigned(commands)]


def test_a_replica_takes_first_what_it_need_not_load_for() -> None:
    script = Loaded()
    script.having_loaded("r1", "a")
    script.submit("running", "a")
    script.submit("other", "b")
    script.submit("same", "a")
    assert script.finish("r1") == ["same"]
    assert script.finish("r1") == ["other"], "nothing is left that it holds"


def test_where_loading_takes_no_time_as_far_as_is_known_order_is_strict() -> None:
    script = Loaded()
    script.machine = Machine(epoch=1, max_attempts=3)
    script.holding("r1", "a")
    script.submit("running", "a")
    script.submit("other", "b")
    script.submit("same", "a")
    assert script.finish("r1") == ["other"]


@pytest.mark.parametrize("seed", seeds(6, 30))
def test_the_first_of_a_models_queue_waits_at_most_for_one_turn_of_every_other_queue(seed: int) -> None:
    """The bound on waiting with up to four queues: MIN_WORK_PER_LOAD loads and one task for each queue and slot."""
    chance = random.Random(seed)
    script, slots, longest = Loaded(), chance.randint(1, 5), 9
    for number in range(slots):
        script.having_loaded(f"r{number}", "a")
    models: dict[str, str] = {}
    steps: dict[str, int] = {}
    first_at: dict[str, int] = {}

    def note_firsts() -> None:
        """Note how many jobs had been given out when each became the first of its line."""
        given = set(script.started())
        for model in "abcd":
            line = [job_id for job_id in models if models[job_id] == model and job_id not in given]
            if line:
                first_at.setdefault(line[0], len(given))

    for number in range(300):
        job_id = f"j{number}"
        models[job_id], steps[job_id] = chance.choices("abcd", (8, 4, 2, 1))[0], chance.randint(1, longest)
        script.submit(job_id, models[job_id], steps[job_id])
        note_firsts()
    while busy := [name for name, record in script.machine.replicas.items() if record.running]:
        name = chance.choice(sorted(busy))
        [task_id] = script.machine.replicas[name].running
        if model := models.get(task_id.job_id):
            script.report(name, ResidentWeights((f"backbone checkpoints/{model}.safetensors",)))
        script.finish(name)
        note_firsts()
    order = script.started()
    places = {job_id: place for place, job_id in enumerate(order)}
    assert models.keys() <= places.keys()
    bound_s = 4 * (MIN_WORK_PER_LOAD * LOAD_S + longest * STEP_S) * slots
    for job_id, place in first_at.items():
        meanwhile = order[place : places[job_id]]
        assert sum(steps[other] * STEP_S for other in meanwhile if int(other[1:]) > int(job_id[1:])) <= bound_s


def test_a_job_that_goes_to_the_front_waits_until_a_replica_has_worked_ten_times_as_long_as_it_loaded() -> None:
    script = Loaded()
    script.having_loaded("r1", "a")
    for number in range(200):
        script.submit(f"j{number}", "a")
    script.submit("front", "b", number=-1)
    for _ in range(int(MIN_WORK_PER_LOAD * LOAD_S / STEP_S) - 1):  # one runs already
        assert script.finish("r1") != ["front"]
    assert script.finish("r1") == ["front"]


def test_a_model_queue_that_is_much_longer_than_another_gets_its_replicas() -> None:
    script = Loaded()
    for number, model in enumerate("aaab"):
        script.holding(f"r{number}", model)
        script.submit(f"running{number}", model)
    for number in range(100):
        script.submit(f"b{number}", "b")
    for number in range(10):
        script.submit(f"a{number}", "a")
    names = []
    for number in range(3):
        [job_id] = script.finish(f"r{number}")
        names.append(job_id)
    assert [name[0] for name in names] == ["b", "b", "a"], "the last of its replicas stays with a"


def test_a_task_waits_for_a_busy_replica_rather_than_load_on_a_free_one_if_that_is_sooner() -> None:
    script = Loaded()
    script.holding("r1", "a")
    script.holding("r2", "b")
    assert script.submit("first", "a") == ["r1"]
    assert script.submit("second", "a", steps=2) == []
    assert script.finish("r1") == ["second"]


def test_a_task_waits_for_the_replica_with_its_model_no_longer_than_is_worth_it() -> None:
    script = Loaded()
    script.holding("r1", "a")
    script.holding("r2", "b")
    script.submit("first", "a")
    script.submit("second", "a", steps=2)
    script.at_s += EVICT_IF_WAIT_EXCEEDS * LOAD_S / 2
    assert assigned(script.apply(TimePassed())) == []
    script.at_s += EVICT_IF_WAIT_EXCEEDS * LOAD_S / 2
    assert [name for name, _ in assigned(script.apply(TimePassed()))] == ["r2"]


def test_a_free_replica_that_holds_nothing_loads_unless_it_need_not_within_a_part_of_the_time() -> None:
    script = Loaded()
    script.holding("r1", "a")
    script.replica("r2")
    script.submit("first", "a")
    assert script.submit("long", "a", steps=int(LOAD_IF_WAIT_EXCEEDS * LOAD_S / STEP_S)) == ["r2"]


@pytest.mark.parametrize(
    ("free", "running", "waiting", "given"),
    [
        (1, 3, [9], [[]]),
        (1, 4, [9], [["r2"]]),
        (1, 1, [2, 2], [[], []]),
        (1, 1, [2, 3], [[], ["r2"]]),
        (2, 1, [2, 1], [[], []]),
        (2, 1, [2, 2], [[], ["r2"]]),
        (3, 1, [2, 1], [[], ["r2"]]),
    ],
)
def test_a_free_replica_with_room_loads_unless_one_with_the_file_is_free_sooner_and_can_serve_the_queue(
    free: int, running: int, waiting: list[int], given: list[list[str]]
) -> None:
    script = Loaded()
    script.holding("r1", "a")
    for number in range(free):
        with_room(script, f"r{2 + number}")
    assert script.submit("running", "a", steps=running) == ["r1"]
    assert [script.submit(f"j{number}", "a", steps=steps) for number, steps in enumerate(waiting)] == given


def test_a_free_replica_loads_once_waiting_tasks_are_late_by_the_time_of_a_load() -> None:
    script = Loaded()
    script.holding("r1", "a")
    with_room(script, "r2")
    script.submit("running", "a", steps=3)
    script.submit("next", "a")
    for late_s, given in ((LOAD_S - 1, []), (1, ["r2"])):
        script.at_s += late_s
        assert [name for name, _ in assigned(script.apply(TimePassed()))] == given


def test_what_room_a_busy_replica_has_makes_no_other_load() -> None:
    script = Loaded()
    script.holding("r1", "a")
    script.holding("r2", "b")
    script.report("r2", ResidentWeights(tuple(f"backbone checkpoints/{name}.safetensors" for name in "bc")))
    script.submit("running", "a", steps=9)
    assert script.submit("next", "a") == [], "r1 has room, but is busy; r2 has none"


def with_room(script: Loaded, name: str) -> None:
    """A replica that holds one model and has held two."""
    script.holding(name, "b")
    script.report(name, ResidentWeights(tuple(f"backbone checkpoints/{model}.safetensors" for model in "bc")))
    script.report(name, ResidentWeights(("backbone checkpoints/b.safetensors",)))


def test_a_model_with_too_long_a_queue_is_loaded_on_further_replicas() -> None:
    script = Loaded()
    script.holding("r1", "a")
    for number in range(2, 6):
        script.holding(f"r{number}", "b")
    given = {f"j{number}": names for number in range(64) if (names := script.submit(f"j{number}", "a"))}
    # The line is 20 s long for one replica, then for two, then for three.
    assert EVICT_IF_WAIT_EXCEEDS * LOAD_S == 20 * STEP_S
    assert given == {"j0": ["r1"], "j20": ["r2"], "j41": ["r3"], "j62": ["r4"]}


def test_a_replica_counts_as_holding_what_its_task_is_loading() -> None:
    script = Loaded()
    script.replica("r1")
    script.replica("r2")
    assert script.submit("first", "a") == ["r1"]
    assert script.submit("second", "a") == [], "r1 will be sooner"


def test_what_work_takes_is_learned_from_reports() -> None:
    script = Loaded()
    script.replica("r1")
    script.submit("job", "e", steps=5)
    recipe = "backbone checkpoints/e.safetensors"
    script.report("r1", ResidentWeights((recipe,), ((recipe, 5.0), ("vae checkpoints/e.safetensors", 2.0))))
    [(_, task)] = assigned(script.commands)
    script.report("r1", NodeFinished(task.id, "3", "save-job", {}))
    script.submit("next", "a", steps=5)
    script.report("r1", TaskFinished(task.id, 10.0))
    assert script.machine.costs.load_s("gpu", "e.safetensors") == 7.0
    assert script.machine.costs.step_s("gpu", "e.safetensors") == 2.0
    assert {cost.kind for cost in script.machine.costs.take_changed()} == {"load", "step"}
    assert script.machine.costs.take_changed() == []


def test_the_backlog_of_each_model_is_in_seconds() -> None:
    script = Loaded()
    script.submit("one", "a", steps=3)
    script.submit("two", "a", steps=4)
    script.submit("three", "b")
    assert script.machine.backlog("gpu").waiting_s == {"a.safetensors": 7 * STEP_S, "b.safetensors": STEP_S}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the replicas that are asked what they hold, once for each time."""
    looked: list[str] = []

    def files(record: ReplicaRecord) -> frozenset[str]:
        looked.append(record.info.replica_id)
        return record.loaded.union(*(work.files for work in record.work.values()))

    monkeypatch.setattr(ReplicaRecord, "files", property(files))
    return looked


def test_a_decision_looks_at_as_many_replicas_among_500_as_among_20(looks: list[str]) -> None:
    counts = []
    for size in (20, 500):
        script = Loaded()
        script.apply = lambda event, script=script: _fed(script, event)  # type: ignore[method-assign, misc]
        for number in range(size):
            script.holding(f"r{number}", "ab"[number % 2])
        for number in range(size):
            script.submit(f"j{number}", "ab"[number % 2])
        looks.clear()
        for number in range(50):
            script.submit(f"more{number}", "ab"[number % 2])
        for number in range(10):
            script.finish(f"r{number}")
        counts.append(len(looks))
    assert counts[0] == counts[1]
    assert counts[0] <= 60 * (placement.CANDIDATES + 10)


def _fed(script: Script, event: Any) -> list[Any]:
    """Feed a stimulus without the check of the whole state, which looks at everything."""
    commands = script.machine.handle(event, at_s=script.at_s)
    script.commands += commands
    return commands
