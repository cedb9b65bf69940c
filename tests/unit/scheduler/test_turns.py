"""Tenants have shares of a pool's replicas, whatever models they ask for; priority is a matter within one tenant."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from serve_app.config.quotas import Quota, Quotas
from serve_app.scheduler.core.costs import Costs
from serve_app.scheduler.core.dispatch import MIN_WORK_PER_LOAD
from serve_app.scheduler.core.events import CancelAsked, ReplicaLeft, TimePassed
from serve_app.scheduler.core.machine import Machine
from serve_app.scheduler.protocol.messages import ResidentWeights
from tests.examples import seeds
from tests.unit.scheduler.core.test_dispatch import COSTS, LOAD_S, STEP_S, Loaded
from tests.unit.scheduler.script import Script, assigned

LONGEST = 9
WEIGHTS = {"flood": 1.0, "small": 1.0, "large": 3.0}


class Turns(Loaded):
    """A script whose replicas take time. had_s: what each tenant has had of them, loading included."""

    def __init__(self) -> None:
        super().__init__()
        quotas = Quotas(tenants={tenant: Quota(weight=weight) for tenant, weight in WEIGHTS.items()})
        self.machine = Machine(1, 3, Costs(COSTS), quotas.of)
        self.had_s: dict[str, float] = defaultdict(float)
        self.ends_s: dict[str, tuple[float, float]] = {}
        self.of: dict[str, tuple[str, str, int]] = {}
        self.left: dict[str, int] = defaultdict(int)

    def ask(self, tenant: str, model: str, steps: int) -> None:
        job_id = f"{tenant}{len(self.of)}"
        self.of[job_id] = tenant, model, steps
        self.left[tenant] += 1
        self.submit(job_id, model, steps, tenant=tenant)
        self.begin()

    def begin(self) -> None:
        """Say when what has been given out will end."""
        for name, record in self.machine.replicas.items():
            if record.running and name not in self.ends_s:
                [task_id] = record.running
                tenant, model, steps = self.of[task_id.job_id]
                self.left[tenant] -= 1
                takes_s = steps * STEP_S + (0.0 if f"{model}.safetensors" in record.loaded else LOAD_S)
                self.ends_s[name] = self.at_s + takes_s, takes_s

    def end_next(self) -> None:
        name = min(self.ends_s, key=self.ends_s.__getitem__)
        ends_s, takes_s = self.ends_s[name]
        while self.at_s < ends_s:  # as the scheduler is told of each second
            self.at_s = min(ends_s, self.at_s + 1.0)
            self.apply(TimePassed())
            self.begin()
        del self.ends_s[name]
        [task_id] = self.machine.replicas[name].running
        tenant, model, _ = self.of[task_id.job_id]
        self.had_s[tenant] += takes_s
        self.report(name, ResidentWeights((f"backbone checkpoints/{model}.safetensors",)))
        self.finish(name)
        self.begin()


@pytest.mark.parametrize("seed", seeds(4, 20))
def test_no_tenant_that_waits_falls_behind_by_more_than_waiting_for_weights_may_cost(seed: int) -> None:
    """The bound of `fair_share.py`, where a turn is the time for which `dispatch.py` keeps a line."""
    chance = random.Random(seed)
    script, slots = Turns(), chance.randint(1, 3)
    for number in range(slots):
        script.having_loaded(f"r{number}", "a")
    for _ in range(250):
        script.ask("flood", chance.choices("abcd", (8, 4, 2, 1))[0], chance.randint(1, LONGEST))
    for tenant in ("small", "large"):
        for _ in range(60):
            script.ask(tenant, chance.choice("ab"), chance.randint(1, LONGEST))
    began = dict(script.had_s)
    turn_s = MIN_WORK_PER_LOAD * LOAD_S + LOAD_S + LONGEST * STEP_S
    patience_s = MIN_WORK_PER_LOAD * LOAD_S + slots * (turn_s + LONGEST * STEP_S)
    furthest = 0.0
    while all(script.left[tenant] for tenant in WEIGHTS):
        script.end_next()
        for one in WEIGHTS:
            for other in WEIGHTS:
                lead_s = (script.had_s[one] - began.get(one, 0.0)) / WEIGHTS[one]
                lead_s -= (script.had_s[other] - began.get(other, 0.0)) / WEIGHTS[other]
                furthest = max(furthest, lead_s / (1 / WEIGHTS[one] + 1 / WEIGHTS[other]))
    assert 0.0 < furthest <= patience_s


def test_a_flood_of_one_model_leaves_another_tenant_half_of_the_replicas() -> None:
    script = Turns()
    for number in range(2):
        script.having_loaded(f"r{number}", "a")
    for _ in range(400):
        script.ask("flood", "a", 2)
    for _ in range(100):
        script.ask("small", "a", 2)
    while script.left["small"]:
        script.end_next()
    assert abs(script.had_s["small"] - script.had_s["flood"]) <= 3 * 2 * STEP_S


def test_a_tenant_that_goes_to_the_front_passes_its_own_jobs_only() -> None:
    script = Script()
    script.replica("r1")
    script.job("running", "x", tenant="a")
    script.job("a's", "y", tenant="a")
    script.job("b's", "z", tenant="b")
    script.job("a's front", "v", number=-5, tenant="a")
    started = []
    for _ in range(3):
        script.at_s += 2.0
        [task_id] = script.machine.replicas["r1"].running
        task = next(task for _, task in assigned(script.commands) if task.id == task_id)
        started += [task.id.job_id for _, task in assigned(script.run("r1", task))]
    assert started == ["b's", "a's front", "a's"]


def test_what_a_cancelled_job_was_expected_to_take_is_given_back() -> None:
    script = Turns()
    script.having_loaded("r1", "a")
    script.submit("long", "a", 1000, tenant="flood")
    script.submit("next", "a", tenant="small")
    script.apply(CancelAsked("long"))
    script.apply(ReplicaLeft("r1"))
    for job_id, tenant in (("f1", "flood"), ("s1", "small"), ("f2", "flood"), ("s2", "small"), ("f3", "flood")):
        script.submit(job_id, "a", tenant=tenant)
    script.having_loaded("r2", "a")
    started = [*script.started()[-1:]]
    for _ in range(4):
        script.at_s += STEP_S
        started += script.finish("r2")
    assert started[:4] in (["next", "f1", "f2", "s1"], ["next", "f1", "s1", "f2"]), started


def test_the_time_of_a_replica_is_shared_by_those_that_run_there() -> None:
    script = Turns()
    script.replica("r1", slots=2)
    script.submit("one", "a", 4, tenant="flood")
    script.submit("two", "a", 4, tenant="small")
    time = script.machine.device_time
    one, two = sorted(script.machine.replicas["r1"].running, key=lambda task_id: task_id.job_id)
    time.advance(script.at_s + 4.0)
    assert time.end("r1", one) == 2.0
    time.advance(script.at_s + 7.0)
    assert time.end("r1", two) == 5.0
    assert time.end("r1", two) is None


def test_a_clock_that_is_set_charges_nobody_for_hours() -> None:
    script = Turns()
    script.replica("r1")
    script.submit("one", "a", 4, tenant="flood")
    [task_id] = script.machine.replicas["r1"].running
    time = script.machine.device_time
    time.advance(script.at_s + 86_400.0)
    time.advance(script.at_s - 86_400.0)
    assert time.end("r1", task_id) == 10.0
