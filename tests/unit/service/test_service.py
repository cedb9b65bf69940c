from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from serve_app.errors import InvalidGraphError, InvalidSubmissionError
from serve_app.graph.parse import parse
from serve_app.limits import SizeLimits
from serve_app.service import KEYS
from tests.unit.api.conftest import example, replica, scheduler, service, volume

__all__ = ["example", "replica", "scheduler", "service", "volume"]


async def test_a_partial_submission_leaves_out_the_outputs_that_cannot_run_and_says_why(service, scheduler, example):
    example["prompt"]["7"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}
    submitted = await service.submit(example, partial=True)
    assert (await scheduler.job(submitted.job_id)).outputs_to_execute == ("6",)
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
    scheduler.job = lambda job_id: asked.append(job_id) or ask(job_id)
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
