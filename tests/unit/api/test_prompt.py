from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.errors import DrainingError, NotReadyError, QueueFullError

JOB = "550e8400-e29b-41d4-a716-446655440000"


async def refused(client: httpx.AsyncClient, body: Any) -> str:
    response = await client.post("/prompt", content=body if isinstance(body, bytes) else json.dumps(body))
    assert response.status_code == 400
    problem = response.json()
    assert problem.keys() == {"error", "detail", "status_code"}
    assert problem["status_code"] == 400
    detail: str = problem["detail"]
    return detail


async def test_the_contracts_example_is_queued(client, scheduler, example):
    response = await client.post("/prompt", json=example)
    assert response.status_code == 200
    job_id = response.json()["prompt_id"]
    assert response.json() == {"prompt_id": str(UUID(job_id)), "number": 0}
    assert (await scheduler.job(job_id)).targets == ("6",)
    assert (await scheduler.job(job_id)).client_id == "client-001"
    assert (await scheduler.job(job_id)).prompt["5"]["inputs"] == {"samples": ["3", 0], "vae": ["1", 2]}


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "image/png", ""])
async def test_the_body_is_json_whatever_its_content_type(client, example, content_type):
    response = await client.post("/prompt", content=json.dumps(example), headers={"Content-Type": content_type})
    assert response.status_code == 200


async def test_a_byte_order_mark_is_skipped(client, example):
    response = await client.post("/prompt", content=b"\xef\xbb\xbf" + json.dumps(example).encode())
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON: Expecting value at line 1 column 1"),
        (b'{"prompt":\n {]}', "line 2 column 3"),
        (b"\xff\xfe{", "not UTF-8 text: invalid start byte at byte 0"),
        (b'{"prompt": {}, "number": NaN}', "NaN is not a JSON number"),
        (b'{"prompt": {}, "number": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"prompt": {}, "number": 1e999}', "1e999 is beyond the range of a double"),
        (b'{"prompt": {}, "number": ' + b"9" * 5000 + b"}", "too long"),
        (b'{"prompt": {}, "prompt": {}}', "'prompt' appears twice"),
        (b'{"prompt": {}, "client_id": "\\ud800"}', "\\ud800, half of a surrogate pair"),
        (b'{"prompt": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested more than 100 levels"),
        (b'{"prompt": ' + b"[" * 101 + b"]" * 101 + b"}", "nested more than 100 levels"),
        (b"[]", "not an array"),
        (b"null", "not null"),
        (b'"text"', "not a string"),
        (b"1", "not a number"),
        (b"true", "not a boolean"),
    ],
)
async def test_a_body_that_is_no_strict_json_object_is_refused_saying_why(client, body, said):
    assert said in await refused(client, body)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workflow": {}}, "'workflow' is not a key of a submission; allowed are prompt, client_id, extra_data"),
        ({"prompt": []}, "'prompt' must be an object of nodes by id, not a list"),
        ({"prompt": None}, "'prompt' must be an object of nodes by id, not null"),
        ({"client_id": None}, "'client_id' must be a string"),
        ({"client_id": "\0"}, "'client_id' must be a string without NUL"),
        ({"extra_data": "x"}, "'extra_data' must be an object, not 'x'"),
        ({"extra_data": {"strict": "yes"}}, "'strict' in 'extra_data' must be true or false, not 'yes'"),
        ({"extra_data": {"job_time_s": 0}}, "'job_time_s' in 'extra_data' must be a number of seconds above 0, not 0"),
        ({"extra_data": {"node_time_s": None}}, "'node_time_s' in 'extra_data' must be a number of seconds above 0"),
        ({"extra_data": {"node_time_s": True}}, "'node_time_s' in 'extra_data' must be a number of seconds above 0"),
        ({"extra_data": {"node_time_s": "9"}}, "'node_time_s' in 'extra_data' must be a number of seconds above 0"),
        ({"extra_data": {"deadline_s": -5}}, "must be seconds from the submission on, above 0 and at most 31622400, "),
        ({"extra_data": {"deadline_s": -5}}, "not -5, which has passed already"),
        ({"extra_data": {"deadline_s": 1.8e9}}, "at most 31622400, not 1800000000.0"),
        ({"extra_data": {"deadline_s": "soon"}}, "'deadline_s' in 'extra_data' must be seconds"),
        ({"extra_data": {"priority": 1.5}}, "'priority' in 'extra_data' must be a whole number, not 1.5"),
        ({"extra_data": {"priority": True}}, "'priority' in 'extra_data' must be a whole number, not true"),
        ({"extra_data": {"priority": 101}}, "max_priority of the configuration allows -100 to 100"),
        ({"prompt_id": "job-1"}, "'prompt_id' must be a UUID such as"),
        ({"prompt_id": f"{JOB}\n"}, "'prompt_id' must be a UUID such as"),
        ({"number": "3"}, "'number' must be a finite number, not '3'"),
        ({"number": True}, "'number' must be a finite number, not true"),
        ({"number": 10**400}, "'number' must be a finite number"),
        ({"front": 1}, "'front' must be true or false, not 1"),
        ({"partial_execution_targets": "6"}, "'partial_execution_targets' must be a list of node ids, not '6'"),
        ({"partial_execution_targets": [6]}, "'partial_execution_targets' must be a list of node ids, not a list"),
    ],
)
async def test_a_wrong_member_is_refused_naming_it_and_what_is_allowed(client, replica, example, change, said):
    assert said in await refused(client, {**example, **change})
    assert (await replica.jobs()) == {}


async def test_every_wrong_member_is_named_not_only_the_first(client):
    detail = await refused(client, {"front": 1, "x": 1, "y": 1})
    assert all(name in detail for name in ["'prompt' is missing", "'front'", "'x'", "'y'"])


async def test_every_problem_of_a_graph_is_named(client, replica, example):
    example["prompt"]["3"]["inputs"]["sampler_name"] = "eular"
    example["prompt"]["3"]["inputs"]["cfg"] = 101
    example["prompt"]["5"]["inputs"]["vae"] = ["1", 9]
    example["prompt"]["6"]["class_type"] = "SafeImage"
    detail = await refused(client, example)
    assert all(name in detail for name in ["eular", "euler", "101", "VAEDecode 5", "SafeImage"])
    assert (await replica.jobs()) == {}


async def test_one_bad_output_refuses_the_whole_graph(client, replica, example):
    example["prompt"]["7"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}
    assert "SaveImage 7" in await refused(client, example)
    assert (await replica.jobs()) == {}


async def test_the_same_prompt_id_is_queued_once(client, replica, example):
    first = await client.post("/prompt", json={**example, "prompt_id": JOB})
    again = await client.post("/prompt", json={**example, "prompt_id": JOB})
    assert first.json() == again.json() == {"prompt_id": JOB, "number": 0}
    assert list(await replica.jobs()) == [JOB]


async def test_a_number_between_two_is_left_out_of_the_answer_because_the_contract_has_an_integer(client, example):
    assert (await client.post("/prompt", json={**example, "number": -3})).json()["number"] == -3
    assert "number" not in (await client.post("/prompt", json={**example, "number": 0.5})).json()


async def test_only_the_chosen_targets_are_queued(client, replica, example):
    example["prompt"]["7"] = {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "x"}}
    response = await client.post("/prompt", json={**example, "partial_execution_targets": ["7"]})
    assert (await replica.jobs())[response.json()["prompt_id"]].targets == ("7",)


async def test_a_body_over_the_limit_is_refused_by_its_length(client):
    response = await client.post("/prompt", content=b" " * 10_001)
    assert response.status_code == 413
    assert response.json() == {
        "error": "Request body too large",
        "detail": "the body is 10001 bytes; ingress.max_body_bytes of the configuration allows 10000 bytes",
        "status_code": 413,
    }


async def test_a_body_of_unknown_length_is_read_no_further_than_the_limit(client):
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 1000
            yield b" " * 1000

    response = await client.post("/prompt", content=endless())
    assert response.status_code == 413
    assert sent == 11_000


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (NotReadyError("no replica has joined yet", 2), "Server not ready"),
        (QueueFullError("100 jobs wait; at most 100 may", 9), "Queue full"),
        (DrainingError("a newer scheduler takes over", 1), "Server is being replaced"),
    ],
)
async def test_a_server_that_takes_no_jobs_says_when_to_come_back(client, scheduler, example, refusal, error):
    scheduler.refusal = refusal
    response = await client.post("/prompt", json=example)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == str(refusal.retry_after_s)
    assert response.json() == {"error": error, "detail": str(refusal), "status_code": 503}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
CLASSES = st.sampled_from(["KSampler", "SaveImage", "CLIPTextEncode", "VAEDecode", "EmptyLatentImage"]) | JSON
LINKS = st.tuples(st.sampled_from(["1", "2", 1, 2, 1.5, True, None]), st.integers() | JSON).map(list)
INPUTS = st.dictionaries(
    st.sampled_from(["images", "samples", "vae", "steps", "cfg", "text", "filename_prefix", "width"]) | st.text(),
    LINKS | JSON | st.fixed_dictionaries({"__value__": JSON}),
    max_size=5,
)
NODES = st.fixed_dictionaries({}, optional={"class_type": CLASSES, "inputs": INPUTS | JSON, "_meta": JSON})
PROMPTS = st.dictionaries(st.sampled_from(["1", "2", "3"]) | st.text(), NODES | JSON, max_size=4)
KEYS = ["client_id", "extra_data", "prompt_id", "number", "front", "partial_execution_targets"]
BODIES = st.fixed_dictionaries({"prompt": PROMPTS | JSON}, optional=dict.fromkeys(KEYS, JSON)) | JSON


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES.map(lambda body: json.dumps(body).encode()) | st.binary())
async def test_no_body_whatsoever_is_answered_by_anything_but_200_or_400(client, body):
    response = await client.post("/prompt", content=body)
    assert response.status_code in {200, 400}, response.text
