"""What a tenant may have: jobs that wait and run, and GPU-seconds a day, counted over restarts."""

from __future__ import annotations

import pickle

import pytest
from starlette.requests import Request

from serve_app.api import problems
from serve_app.api.comfy import failures as comfy
from serve_app.api.v2 import failures as v2
from serve_app.config import AppConfig, parse
from serve_app.config.quotas import Quota, Quotas
from serve_app.errors import ConfigError, QuotaError
from serve_app.scheduler.core.events import CancelAsked, TimePassed
from serve_app.scheduler.core.machine import Machine
from serve_app.scheduler.jobs.usage import DAY_S, Usage
from serve_app.scheduler.protocol.cluster_view import TenantLoad
from serve_app.store.database.changes import TenantUsed
from tests.unit.scheduler.script import Script, assigned, changes, events


class Limited(Script):
    """A script whose tenants have quotas."""

    def __init__(self, usage: Usage | None = None, **quota: float) -> None:
        super().__init__()
        quotas = Quotas(tenants={"studio": Quota.model_validate(quota)})
        self.machine = Machine(1, 3, quota=quotas.of, gpus={"gpu": 0.5}, usage=usage)

    def running(self) -> list[str]:
        return [job_id for job_id, job in self.machine.jobs.items() if job.started_s is not None]

    def finish(self, job_id: str) -> None:
        name, task = next((name, task) for name, task in assigned(self.commands) if task.id.job_id == job_id)
        self.run(name, task)


def test_no_more_jobs_of_a_tenant_run_than_its_quota_says_and_the_others_follow_in_order() -> None:
    script = Limited(running=2)
    script.replica("r1", slots=9)
    for number in range(4):
        script.job(f"j{number}", number, tenant="studio")
    script.job("front", 9, number=-1, tenant="studio")
    script.job("other's", 10, tenant="other")
    assert script.running() == ["j0", "j1", "other's"]
    script.finish("j0")
    assert script.running() == ["j1", "front", "other's"]
    script.apply(CancelAsked("j1"))
    script.apply(CancelAsked("j2"))
    assert set(script.running()) == {"j3", "front", "other's"}


def test_a_job_that_comes_before_one_that_is_admitted_takes_its_place() -> None:
    script = Limited(running=1)
    script.job("late", 1, tenant="studio")
    script.job("front", 2, number=-1, tenant="studio")
    script.replica("r1", slots=9)
    assert script.running() == ["front"]
    script.finish("front")
    assert script.running() == ["late"]
    script.finish("late")
    assert script.machine.usage.of("studio").running == 0
    assert not script.machine.running_limit.admitted


def test_gpu_seconds_are_kept_with_the_jobs_end_and_count_after_a_restart() -> None:
    script = Limited(gpu_s_a_day=100)
    script.replica("r1")
    script.job("job", 1, tenant="studio")
    script.at_s += 8.0
    script.apply(TimePassed())
    script.finish("job")
    [used] = changes(script.commands, TenantUsed)
    assert used == TenantUsed("job", "studio", 0, 4.0), "half a GPU for 8 s"
    assert events(script.commands, "job")[-1] == "success"
    again = Limited(usage=Usage([used, TenantUsed("", "studio", 1, 99.0)]))
    again.apply(TimePassed())
    assert again.machine.usage.of("studio").gpu_s == 4.0


def test_what_a_cancelled_job_goes_on_to_use_counts_too() -> None:
    script = Limited()
    script.replica("r1")
    script.job("job", 1, tenant="studio")
    [(_, task)] = assigned(script.commands)
    script.apply(CancelAsked("job"))
    script.at_s += 2.0
    script.run("r1", task)
    assert changes(script.commands, TenantUsed)[-1].gpu_s == 1.0


def test_what_jobs_without_a_tenant_use_is_recorded_for_the_operator_and_limits_nobody() -> None:
    script = Limited()
    script.replica("r1")
    script.job("job", 1)
    script.at_s += 2.0
    script.finish("job")
    assert changes(script.commands, TenantUsed) == [TenantUsed("job", "", 0, 1.0)]
    assert script.machine.usage.loads(Quotas(), {}) == Usage().loads(Quotas(), {})


def refusal(usage: Usage, at_s: float = 0.0, **quota: float) -> QuotaError:
    with pytest.raises(QuotaError) as caught:
        usage.check("studio", Quota.model_validate(quota), at_s)
    return caught.value


@pytest.mark.parametrize("key", ["queued", "running", "gpu_s_a_day"])
def test_a_quota_of_zero_refuses_all(key: str) -> None:
    assert refusal(Usage(), **{key: 0}).quota == key


def test_as_many_jobs_wait_as_the_quota_says() -> None:
    usage = Usage()
    usage.queued["studio"] = 4
    usage.check("studio", Quota(queued=5), 0.0)
    usage.queued["studio"] = 5
    assert "5 jobs of this tenant wait" in str(refusal(usage, queued=5))


def test_gpu_seconds_of_jobs_that_have_not_ended_count_as_expected_and_a_new_day_forgives() -> None:
    usage = Usage([TenantUsed("", "studio", 10, 30.0)])
    noon_s = 10.5 * DAY_S
    usage.advance(noon_s)
    usage.check("studio", Quota(gpu_s_a_day=60), noon_s)
    usage.expect("studio", 30.0)
    error = refusal(usage, noon_s, gpu_s_a_day=60)
    assert (error.limit, error.remaining, error.retry_after_s) == (60, 30, DAY_S // 2 + 1)
    usage.check("studio", Quota(gpu_s_a_day=60), noon_s + DAY_S)
    usage.add("studio", 1.0)
    usage.advance(noon_s)
    assert usage.of("studio").gpu_s == 1.0, "a clock that is set back takes nothing away"


@pytest.mark.parametrize("answer", [problems.answer, comfy.answer, v2.answer])
def test_each_dialect_answers_429_with_what_is_left(answer: problems.Answer) -> None:
    error = pickle.loads(pickle.dumps(QuotaError("too much", 7, "queued", 5, 0)))
    response = answer(Request({"type": "http", "method": "POST", "path": "/prompt", "headers": []}), error)
    assert response.status_code == 429
    told = {name: response.headers[name] for name in ("retry-after", "x-quota", "x-ratelimit-limit")}
    assert told == {"retry-after": "7", "x-quota": "queued", "x-ratelimit-limit": "5"}
    assert (response.headers["x-ratelimit-remaining"], response.headers["x-ratelimit-reset"]) == ("0", "7")
    assert b"too much" in bytes(response.body)


def test_what_a_tenants_own_quota_does_not_say_is_the_defaults() -> None:
    given = AppConfig.model_validate(
        {"quotas": {"default": {"queued": 5, "running": 2}, "tenants": {"studio": {"queued": None, "weight": 3}}}}
    )
    handed_on = AppConfig.model_validate_json(given.model_dump_json()), AppConfig.model_validate(given.model_dump())
    for quotas in (given.quotas, *(config.quotas for config in handed_on)):
        assert quotas.of("studio") == Quota(queued=None, running=2, weight=3)
        assert quotas.of("any") == Quota(queued=5, running=2)
        assert quotas.of("") == Quota(), "the operator has none"


@pytest.mark.parametrize(
    ("key", "value"),
    [("queued", -1), ("queued", 1.5), ("running", "many"), ("gpu_s_a_day", float("inf")), ("weight", 0), ("cpu", 1)],
)
def test_nonsense_in_a_quota_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"quotas.default.{key}"):
        parse({"quotas": {"default": {key: value}}}, "configuration")


def test_metrics_name_the_tenants_of_the_configuration_and_sum_up_the_others():
    usage = Usage()
    usage.advance(DAY_S)
    for tenant, seconds in (("", 8.0), ("studio", 1.0), ("ann", 2.0), ("ben", 4.0)):
        usage.queued[tenant] += 1
        usage.add(tenant, seconds)
    usage.running["ann"] += 2
    usage.advance(2 * DAY_S)
    lost = {"": 9, "ann": 1, "eve": 2, "idle": 3}
    loads = usage.loads(Quotas(tenants={"studio": Quota(), "idle": Quota()}), lost)
    idle = TenantLoad(lost_replicas=3)
    assert loads == {"studio": TenantLoad(1, 0, 1.0), "idle": idle, "other": TenantLoad(2, 2, 6.0, 3)}
