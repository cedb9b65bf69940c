from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import pytest

from serve_app.config.limits import LatentBounds, SizeLimits
from serve_app.config.quotas import Quota, Quotas
from serve_app.errors import InvalidGraphError, InvalidSubmissionError, NotReadyError
from serve_app.graph.parse import parse
from serve_app.graph.plan import Pool
from serve_app.scheduler.protocol.client import Accepted, SchedulerClient
from serve_app.service.service import Service
from serve_app.service.submissions import KEYS
from serve_app.store.database.changes import Submission
from serve_app.store.tenants.api_keys import ListKeys
from serve_app.store.tenants.stored_bytes import NoteFiles, StoredBytes
from tests.unit.api.conftest import FILES, example, replica, scheduler, service, volume
from tests.unit.api.node_specs import SPECS
from tests.usual_limits import LIMITS

__all__ = ["example", "replica", "scheduler", "service", "volume"]


async def test_a_partial_submission_leaves_out_the_outputs_that_cannot_run_and_says_why(service, scheduler, example):
    example["prompt"]["7"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}
    submitted = await service.submit(example, partial=True)
    assert (await scheduler.job(submitted.job_id)).targets == ("6",)
    assert [(p.node_id, p.type) for p in submitted.problems] == [("7", "required_input_missing")]
    with pytest.raises(InvalidGraphError) as refused:
        await service.submit(example)
    assert refused.value.problems == submitted.problems


async def test_a_partial_submission_with_nothing_left_to_run_is_refused(service, example):
    del example["prompt"]["6"]["inputs"]["images"]
    with pytest.raises(InvalidGraphError):
        await service.submit(example, partial=True)


async def test_what_is_queued_parses_to_the_graph_that_was_checked(service, scheduler, example):
    inputs: dict[str, Any] = example["prompt"]["3"]["inputs"]
    inputs["steps"] = "20"
    inputs["note"] = {"__value__": ["1", 0]}
    example["prompt"]["3"]["_meta"] = {"title": "sampler"}
    job = await scheduler.job((await service.submit(example)).job_id)
    assert job.prompt["3"]["_meta"] == {"title": "sampler"}
    graph = parse(job.prompt)
    assert graph.nodes["3"].inputs["steps"] == 20
    assert graph.nodes["3"].inputs["note"] == ["1", 0]
    assert dict(graph.nodes["3"].links()).keys() == {"model", "positive", "negative", "latent_image"}


async def test_front_and_number_reach_the_queue(service, scheduler, example):
    first = await service.submit(example)
    front = await service.submit({**example, "front": True})
    numbered = await service.submit({**example, "number": 2})
    assert [first.number, front.number, numbered.number] == [0, -1, 2]


async def test_the_allowed_keys_are_those_of_both_dialects(service, example):
    whole = {
        "prompt": example["prompt"],
        "client_id": "c",
        "extra_data": {},
        "prompt_id": "550e8400-e29b-41d4-a716-446655440000",
        "number": 1,
        "front": False,
        "partial_execution_targets": None,
    }
    assert whole.keys() == {*KEYS}
    await service.submit(whole)
    with pytest.raises(InvalidSubmissionError, match="'prompts' is not a key"):
        await service.submit({**whole, "prompts": 1})


async def test_a_poll_for_events_does_not_carry_the_job_with_its_prompt(service, replica, scheduler, example):
    submitted = await service.submit(example)
    asked = []
    ask = scheduler.job
    scheduler.job = lambda job_id, tenant: asked.append(job_id) or ask(job_id, tenant)
    found = await service.events(submitted.job_id, 0, 5.0)
    assert ([event.kind for event in found.events], found.last) == (["queued"], False)
    assert asked == []
    await replica.succeed(submitted.job_id, {})
    found = await service.events(submitted.job_id, found.events[-1].seq, 5.0)
    assert ([event.kind for event in found.events][-1], found.last) == ("success", True)
    found = await service.events(submitted.job_id, found.events[-1].seq, 5.0)
    assert (found.events, found.last) == ((), True)


async def test_a_graph_of_more_nodes_than_the_limit_is_refused(service, example):
    service.limits = replace(service.limits, sizes=SizeLimits(graph_nodes=len(example["prompt"])))
    await service.submit(example)
    example["prompt"]["one more"] = example["prompt"]["6"]
    with pytest.raises(InvalidGraphError, match=r"has \d+ nodes; limits.graph_nodes of the configuration allows"):
        await service.submit(example)


async def test_empty_latents_that_no_pool_may_sample_are_refused_before_they_are_queued(service, example):
    empty = next(node["inputs"] for node in example["prompt"].values() if node["class_type"] == "EmptyLatentImage")
    cells = empty["width"] * empty["height"] * empty["batch_size"] // 64
    service.limits = replace(service.limits, latents=LatentBounds(cells, 10**9))
    await service.submit(example)
    service.limits = replace(service.limits, latents=LatentBounds(cells - 1, 10**9))
    with pytest.raises(InvalidGraphError, match=rf"make latents of {cells:,} cells, which KSampler 3 would sample"):
        await service.submit(example)


async def test_a_job_beyond_its_tenants_quota_of_steps_is_refused_and_the_operators_is_not(service, example):
    service.limits = replace(service.limits, quotas=Quotas(default=Quota(steps_a_job=19)))
    await service.submit(example)
    with pytest.raises(InvalidGraphError, match="steps of KSampler 3 the job is for 20 or more; the quota"):
        await service.for_tenant("studio").submit(example, partial=True)


POOLS = (Pool("gpu", True), Pool("comfyui", True, whole=True), Pool("broken", True, whole=True))


class Knowing:
    """A scheduler with a ComfyUI that has one class more and another list, and one that has never answered."""

    def __init__(self) -> None:
        sampler = SPECS["KSampler"]
        inputs = tuple(replace(i, choices=("newest",)) if i.name == "sampler_name" else i for i in sampler.inputs)
        film = replace(SPECS["SaveImage"], class_type="Film")
        self.theirs = {**SPECS, "Film": film, "KSampler": replace(sampler, inputs=inputs)}

    async def specs(self, pool: str | None = None) -> Any:
        if pool == "broken":
            raise NotReadyError("no replica of broken has joined yet")
        return SPECS if pool is None else self.theirs

    async def submit(self, submission: Submission) -> Accepted:
        self.submitted = submission
        return Accepted(submission.job_id, 0.0)


@pytest.fixture
def knowing() -> Knowing:
    return Knowing()


@pytest.fixture
def pooled(volume, knowing) -> Service:
    return Service(cast(SchedulerClient, knowing), volume, lambda folder: FILES[folder], LIMITS, pools=POOLS)


@pytest.fixture
def chosen(pooled, knowing) -> Callable[[dict[str, Any]], Awaitable[Any]]:
    """Returns the pool that a submission is kept with."""

    async def of(body: dict[str, Any]) -> Any:
        await pooled.submit(body)
        return knowing.submitted.extra_data.get("pool")

    return of


async def test_a_workflow_goes_to_ours_unless_it_needs_what_a_comfyui_has(pooled, chosen, example):
    assert await chosen(example) is None
    example["prompt"]["6"]["class_type"] = "Film"
    with pytest.raises(InvalidGraphError, match=r"sampler_name"):  # as the pool that has the class knows it
        await pooled.submit(example)
    example["prompt"]["3"]["inputs"]["sampler_name"] = "newest"
    assert await chosen(example) == "comfyui"


async def test_a_value_that_only_a_comfyui_takes_sends_the_workflow_there(chosen, example):
    example["prompt"]["3"]["inputs"]["sampler_name"] = "newest"
    assert await chosen(example) == "comfyui"


async def test_the_client_chooses_the_pool(pooled, chosen, example):
    with pytest.raises(InvalidGraphError, match="sampler_name"):
        await pooled.submit({**example, "extra_data": {"pool": "comfyui"}})
    for pool in ("gpu", "shared"):
        assert await chosen({**example, "extra_data": {"pool": pool}}) == pool
    for wrong in ("none", 1, ["gpu"]):
        with pytest.raises(InvalidSubmissionError, match="must be one of shared, gpu, comfyui, broken"):
            await pooled.submit({**example, "extra_data": {"pool": wrong}})
    with pytest.raises(NotReadyError, match="broken"):
        await pooled.submit({**example, "extra_data": {"pool": "broken"}})


async def test_a_class_that_only_a_pool_with_unknown_classes_may_have_is_not_ready(pooled, example):
    example["prompt"]["6"]["class_type"] = "Nobody"
    with pytest.raises(NotReadyError, match="broken"):
        await pooled.submit(example)


async def test_every_class_of_every_pool_is_known(pooled):
    assert set(await pooled.specs()) == {*SPECS, "Film"}
    assert (await pooled.specs())["KSampler"] == SPECS["KSampler"]


async def test_a_service_within_a_tenant_submits_that_tenants_jobs(pooled, knowing, example):
    bound = pooled.for_tenant("studio")
    await bound.submit(example)
    assert knowing.submitted.tenant == "studio"
    await pooled.submit(example)
    assert knowing.submitted.tenant == ""
    assert pooled.for_tenant("") is pooled


@dataclass(frozen=True)
class Undecided:
    """An inquiry without a scope of tenant or server."""

    writes: ClassVar[bool] = False
    tenant: str = ""

    def execute(self, connection: object) -> None:
        """Never carried out."""
        raise AssertionError("it was carried out")


async def test_an_inquiry_without_a_scope_is_refused(service):
    for whose in ("", "studio"):
        with pytest.raises(TypeError, match="Undecided is no query that"):
            await service.for_tenant(whose).query(Undecided())


async def test_a_tenant_asks_of_its_own_alone_whatever_the_query_says_and_nothing_of_the_servers(service):
    await service.for_tenant("studio").query(NoteFiles({"a": 5}, "other"))
    assert await service.for_tenant("studio").query(StoredBytes("other")) == 5
    assert await service.query(StoredBytes("studio")) == 5
    assert await service.query(StoredBytes("other")) == 0
    with pytest.raises(TypeError, match="ListKeys is no query that tenant studio may run"):
        await service.for_tenant("studio").query(ListKeys())
    assert await service.query(ListKeys()) == ()
