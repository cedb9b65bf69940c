"""POST /prompt in ComfyUI's words. The bodies expected here are what ComfyUI 0.33.0 answers to the same graphs."""

from __future__ import annotations

import copy
import json
from unittest.mock import ANY

import pytest

from serve_app.store.files.store import FileRef

JOB = "550e8400-e29b-41d4-a716-446655440000"


async def refused(client, body) -> dict:
    response = await client.post("/api/prompt", content=json.dumps(body))
    assert response.status_code == 400
    return response.json()


async def test_the_answer_has_the_id_the_number_and_no_errors(client, replica, example):
    answer = (await client.post("/api/prompt", json=example)).json()
    assert answer == {"prompt_id": next(iter(await replica.jobs())), "number": 0, "node_errors": {}}


@pytest.mark.parametrize("content_type", ["text/plain;charset=UTF-8", "application/x-www-form-urlencoded", ""])
async def test_clients_may_call_the_body_whatever_they_like(client, example, content_type):
    response = await client.post("/api/prompt", content=json.dumps(example), headers={"Content-Type": content_type})
    assert response.status_code == 200


async def test_unknown_keys_nulls_and_near_values_are_taken_as_comfyui_takes_them(client, replica, example):
    body = {**example, "prompt_id": None, "extra_data": {"client_id": "c", "x": 1}, "number": "2.5", "usage": {}}
    del body["client_id"]
    answer = (await client.post("/api/prompt", json=body)).json()
    job = (await replica.jobs())[answer["prompt_id"]]
    assert (job.client_id, job.number, dict(job.extra_data)) == ("c", 2.5, {"x": 1, "request_id": ANY})
    assert answer["number"] == 2.5


async def test_front_is_anything_true(client, scheduler, example):
    await client.post("/api/prompt", json=example)
    assert (await client.post("/api/prompt", json={**example, "front": 1})).json()["number"] == -1


async def test_a_body_without_a_prompt_says_so(client):
    assert await refused(client, {"client_id": "c"}) == {
        "error": {
            "type": "no_prompt",
            "message": "No prompt provided",
            "details": "No prompt provided",
            "extra_info": {},
        },
        "node_errors": {},
    }


async def test_a_missing_input_is_filed_under_its_node_with_the_outputs_that_need_it(client, example):
    del example["prompt"]["4"]["inputs"]["width"]
    answer = await refused(client, example)
    assert answer["error"] == {
        "type": "prompt_outputs_failed_validation",
        "message": "Prompt outputs failed validation",
        "details": "",
        "extra_info": {},
    }
    assert answer["node_errors"] == {
        "4": {
            "errors": [
                {
                    "type": "required_input_missing",
                    "message": "Required input is missing",
                    "details": "width",
                    "extra_info": {"input_name": "width"},
                }
            ],
            "dependent_outputs": ["6"],
            "class_type": "EmptyLatentImage",
        }
    }


@pytest.mark.parametrize(
    ("node", "name", "value", "type_", "message", "details"),
    [
        ("4", "width", 8, "value_smaller_than_min", "Value 8 smaller than min of 16", "width"),
        ("4", "width", 99999, "value_bigger_than_max", "Value 99999 bigger than max of 16384", "width"),
        (
            "3",
            "sampler_name",
            "magic",
            "value_not_in_list",
            "Value not in list",
            "sampler_name: 'magic' not in ['euler', 'heun']",
        ),
        (
            "1",
            "ckpt_name",
            "x",
            "value_not_in_list",
            "Value not in list",
            "ckpt_name: 'x' not in ['sd15.safetensors']",
        ),
        (
            "5",
            "samples",
            ["1", 0],
            "return_type_mismatch",
            "Return type mismatch between linked nodes",
            "samples, received_type(MODEL) mismatch input_type(LATENT)",
        ),
        (
            "5",
            "samples",
            ["3", 0, 1],
            "bad_linked_input",
            "Bad linked input, must be a length-2 list of [node_id, slot_index]",
            "samples",
        ),
    ],
)
async def test_the_error_of_a_wrong_input_has_comfyuis_form(
    client, example, node, name, value, type_, message, details
):
    example["prompt"][node]["inputs"][name] = value
    [error] = (await refused(client, example))["node_errors"][node]["errors"]
    assert (error["type"], error["message"], error["details"]) == (type_, message, details)
    assert error["extra_info"]["input_name"] == name


async def test_a_wrong_number_repeats_what_was_given_and_the_inputs_bounds(client, example):
    example["prompt"]["4"]["inputs"]["width"] = 8
    [error] = (await refused(client, example))["node_errors"]["4"]["errors"]
    assert error["extra_info"] == {
        "input_name": "width",
        "input_config": ["INT", {"min": 16, "max": 16384}],
        "received_value": 8,
    }


async def test_the_details_repeat_what_is_wrong_with_the_output_nodes_themselves(client, example):
    del example["prompt"]["6"]["inputs"]["images"]
    assert (await refused(client, example))["error"]["details"] == "Required input is missing: images"


@pytest.mark.parametrize("link", [["99", 0], ["5", 7], ["5", "0"], [None, 0]])
async def test_a_link_to_nothing_is_an_exception_of_the_output_that_has_it_and_all_that_is_known_of_it(
    client, example, link
):
    example["prompt"]["6"]["inputs"] = {"images": link}
    [error] = (await refused(client, example))["node_errors"]["6"]["errors"]
    assert error["type"] == "exception_during_validation"
    assert "images" in error["details"]
    assert error["extra_info"].keys() == {"exception_type", "traceback"}


async def test_an_exception_of_another_node_names_the_input_that_it_was_looked_at_for(client, example):
    example["prompt"]["5"]["inputs"]["samples"] = ["99", 0]
    [error] = (await refused(client, example))["node_errors"]["5"]["errors"]
    assert error["type"] == "exception_during_inner_validation"
    assert (error["extra_info"]["input_name"], error["extra_info"]["linked_node"]) == ("images", [5, 0])


@pytest.mark.parametrize("value", [None, 3, 10**30, {"a": 1}, [1, 2]])
async def test_what_is_refused_is_repeated_as_it_was_given(client, example, value):
    wrapped = {"__value__": value} if isinstance(value, list) else value
    example["prompt"]["3"]["inputs"]["sampler_name"] = wrapped
    [error] = (await refused(client, example))["node_errors"]["3"]["errors"]
    assert error["details"] == f"sampler_name: {value!r} not in ['euler', 'heun']"
    assert error["extra_info"]["received_value"] == value


async def test_a_value_too_long_for_an_error_is_abbreviated(client, example):
    example["prompt"]["3"]["inputs"]["sampler_name"] = "x" * 8_000
    assert len(json.dumps(await refused(client, example))) < 2000


async def test_a_circle_is_an_error_of_each_of_its_nodes(client, example):
    inputs = {"samples": ["8", 0], "vae": ["1", 2]}
    example["prompt"]["5"]["inputs"] = {"samples": ["8", 0], "vae": ["1", 2]}
    example["prompt"]["8"] = {"class_type": "VAEDecode", "inputs": {**inputs, "samples": ["5", 0]}}
    errors = (await refused(client, example))["node_errors"]
    for node_id in ("5", "8"):
        [cycle] = [error for error in errors[node_id]["errors"] if error["type"] == "dependency_cycle"]
        assert cycle["message"] == "Dependency cycle detected"
        assert cycle["details"].count(" (VAEDecode)") == 3
        assert cycle["extra_info"] == {"node_id": node_id, "cycle_nodes": cycle["extra_info"]["cycle_nodes"]}


@pytest.mark.parametrize(("title", "named"), [("Mine", "Mine"), (None, "ID #5")])
async def test_a_node_without_a_class_is_named_by_its_title_or_id(client, example, title, named):
    example["prompt"]["5"] = {"inputs": {}, **({"_meta": {"title": title}} if title else {})}
    error = (await refused(client, example))["error"]
    why = "has no class_type. The workflow may be corrupted or a custom node is missing."
    assert (error["type"], error["message"]) == ("missing_node_type", f"Node '{named}' {why}")
    assert error["extra_info"] == {"node_id": "5", "class_type": None, "node_title": title}


async def test_a_missing_class_is_reported_before_missing_outputs(client, example):
    example["prompt"] = {"1": example["prompt"]["1"], "2": {"class_type": "Nope", "inputs": {}}}
    assert (await refused(client, example))["error"]["type"] == "missing_node_type"


@pytest.mark.parametrize("job_id", ["x", JOB.upper(), 3])
async def test_an_id_of_another_form_is_refused_by_its_own_name(client, example, job_id):
    error = (await refused(client, {**example, "prompt_id": job_id}))["error"]
    assert (error["type"], error["message"]) == ("invalid_prompt_id", "prompt_id must be a valid UUID")


async def test_an_unknown_class_is_answered_alone_even_beside_a_good_output(client, replica, example):
    example["prompt"]["9"] = {"class_type": "Nope", "inputs": {}, "_meta": {"title": "My node", "cnr_id": "nopes"}}
    answer = await refused(client, example)
    assert answer == {
        "error": {
            "type": "missing_node_type",
            "message": "Node 'My node' not found. The custom node may not be installed.",
            "details": "Node ID '#9': no node class 'Nope' is installed; it is of the pack 'nopes'",
            "extra_info": {"node_id": "9", "class_type": "Nope", "node_title": "My node"},
        },
        "node_errors": {},
    }
    assert (await replica.jobs()) == {}


async def test_the_error_for_a_model_of_an_unsupported_format_names_the_format(client, example):
    example["prompt"]["1"]["inputs"]["ckpt_name"] = "sd15.ckpt"
    [error] = (await refused(client, example))["node_errors"]["1"]["errors"]
    assert error["type"] == "value_not_in_list"
    assert "a .ckpt file is a pickle" in error["details"]


@pytest.mark.parametrize("targets", [[], ["5"]])
async def test_a_prompt_whose_targets_are_no_output_nodes_has_no_outputs(client, example, targets):
    answer = await refused(client, {**example, "partial_execution_targets": targets})
    assert (answer["error"]["type"], answer["error"]["message"]) == ("prompt_no_outputs", "Prompt has no outputs")


async def test_good_outputs_run_without_the_bad_ones(client, replica, example):
    example["prompt"]["7"] = copy.deepcopy(example["prompt"]["6"])
    del example["prompt"]["7"]["inputs"]["images"]
    answer = (await client.post("/api/prompt", json=example)).json()
    assert (await replica.jobs())[answer["prompt_id"]].targets == ("6",)
    assert answer["node_errors"].keys() == {"7"}
    assert answer["node_errors"]["7"]["dependent_outputs"] == ["7"]


async def test_a_body_that_is_no_json_is_400_with_a_json_body(client):
    response = await client.post("/api/prompt", content=b"{")
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request"


async def test_the_usage_source_of_the_header_is_kept_with_the_job(client, replica, example):
    await client.post("/api/prompt", json=example, headers={"Comfy-Usage-Source": "cli"})
    [job] = (await replica.jobs()).values()
    assert job.extra_data["comfy_usage_source"] == "cli"


async def test_get_prompt_counts_what_has_not_ended(client, replica, example):
    await client.post("/api/prompt", json={**example, "prompt_id": JOB})
    assert (await client.get("/api/prompt")).json() == {"exec_info": {"queue_remaining": 1}}
    await replica.succeed(JOB, {})
    assert (await client.get("/api/prompt")).json() == {"exec_info": {"queue_remaining": 0}}


@pytest.mark.parametrize("name", ["sub/x.png", "x.png [output]", "sub/x.png [temp]", "../input/sub/x.png"])
async def test_a_file_in_a_folder_or_an_area_is_refused_unless_it_is_there(client, volume, name):
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "y"}},
    }
    answer = await refused(client, {"prompt": prompt})
    [error] = answer["node_errors"]["1"]["errors"]
    assert (error["type"], error["details"]) == ("custom_validation_failed", f"image - Invalid image file: {name}")
    if not name.startswith(".."):
        volume.write(FileRef.parse(name), b"x")
        assert (await client.post("/api/prompt", json={"prompt": prompt})).status_code == 200
