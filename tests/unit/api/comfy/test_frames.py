"""What single events look like on the websocket, beyond what a plain job shows."""

from __future__ import annotations

from typing import Any

from serve_app.api.comfy.jobs.frames import STATES, JobFrames
from serve_app.events import Event


def told(job: JobFrames, kind: str, **data: Any) -> list[dict[str, Any]]:
    return list(job.frames(Event("job", 1, kind, 2.0, data)))  # type: ignore[arg-type]


def test_a_made_node_is_reported_under_its_display_node():
    job = JobFrames("job")
    made = {"node": "1.0.0.2", "display_node": "1", "parent_node": "1", "real_node": "1"}
    state, executing = told(job, "executing", **made)
    assert executing["data"] == {"node": "1.0.0.2", "display_node": "1", "prompt_id": "job"}
    assert state["data"]["nodes"]["1.0.0.2"] == {
        "value": 0,
        "max": 1,
        "state": "running",
        "node_id": "1.0.0.2",
        "prompt_id": "job",
        "display_node_id": "1",
        "parent_node_id": "1",
        "real_node_id": "1",
    }
    executed, _ = told(job, "executed", **made, output={"text": ["x"]})
    assert executed["data"]["display_node"] == "1"


def test_a_node_that_was_passed_over_is_an_error_in_a_job_that_goes_on():
    job = JobFrames("job")
    told(job, "finished", node="1")
    [error] = told(job, "blocked", node="2", class_type="Show", message="why")
    assert error["type"] == "execution_error"
    assert error["data"] == {
        "prompt_id": "job",
        "node_id": "2",
        "node_type": "Show",
        "executed": ["1"],
        "exception_message": "Execution Blocked: why",
        "exception_type": "ExecutionBlocked",
        "traceback": [],
        "current_inputs": [],
        "current_outputs": [],
    }


def test_the_states_of_all_nodes_follow_every_event_until_there_are_many_and_grow_as_the_events_do_from_then_on():
    def told_nodes(count: int) -> int:
        job = JobFrames("job")
        events = (told(job, kind, node=str(i)) for i in range(count) for kind in ("executing", "finished"))
        states = [frame for frames in events for frame in frames if frame["type"] == "progress_state"]
        return sum(len(frame["data"]["nodes"]) for frame in states)

    assert told_nodes(STATES) == 2 * sum(range(STATES + 1))
    assert told_nodes(8 * STATES) <= 2 * 8 * STATES * STATES


def test_a_nodes_own_message_is_sent_unchanged():
    assert told(JobFrames("job"), "message", node="1", type="pack.news", data=["a"]) == [
        {"type": "pack.news", "data": ["a"]}
    ]
    assert told(JobFrames("job"), "message", node="1", type="pack.news", data={"a": 1}) == [
        {"type": "pack.news", "data": {"a": 1}}
    ]


def test_an_output_node_that_showed_nothing_is_finished_without_a_word():
    assert [frame["type"] for frame in told(JobFrames("job"), "executed", node="1", output={})] == ["progress_state"]


def test_a_job_that_never_began_has_no_end():
    job = JobFrames("job")
    assert told(job, "cancelled") == [] == list(job.end())


def test_times_are_whole_milliseconds():
    [start] = told(JobFrames("job"), "started")
    assert start["data"] == {"prompt_id": "job", "timestamp": 2000}


SAID = {"node": "31", "type": "progress_text", "data": {"text": "half döne"}}


def test_a_text_about_a_node_is_binary_with_the_nodes_id_before_it():
    frames: list[Any] = told(JobFrames("job"), "message", **SAID)
    assert frames == [b"\0\0\0\3" + b"\0\0\0\2" + b"31" + "half döne".encode()]


def test_a_client_that_wants_to_know_of_which_job_a_text_is_gets_its_id_first():
    event = Event("job", 1, "message", 2.0, SAID)
    frames = list(JobFrames("job").frames(event, {"supports_progress_text_metadata": True}))
    assert frames == [b"\0\0\0\3" + b"\0\0\0\3" + b"job" + b"\0\0\0\2" + b"31" + "half döne".encode()]


def test_a_message_of_that_name_that_is_no_text_about_a_node_goes_as_it_is():
    for message in ({**SAID, "data": {"text": 7}}, {**SAID, "data": "words"}, {"type": "progress_text", "data": {}}):
        [frame] = told(JobFrames("job"), "message", **message)
        assert frame == {"type": "progress_text", "data": message["data"]}
