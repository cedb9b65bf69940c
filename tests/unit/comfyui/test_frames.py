from __future__ import annotations

import json
import struct
from typing import Any

from serve_app.comfyui.frames import ExecutedNode, FrameParser, GraphEnded, NodeMessage, NodePreview
from serve_app.graph.graph import Node, Origin
from serve_app.graph.plan import Task, TaskId
from serve_app.scheduler.protocol.messages import NodeFinished, NodeProgressed, NodesCached, NodeStarted

ID = TaskId("job", 0, 0)
TASK = Task(
    id=ID,
    nodes={n: Node(n, "Any", {}) for n in ("1", "2", "out")},
    targets=("out",),
    signatures={n: f"job/{n}" for n in ("1", "2", "out")},
    remote=frozenset(),
    prompt={},
    extra_data={},
)


def told(*frames: tuple[str, dict[str, Any]]) -> list[Any]:
    parser = FrameParser(TASK)
    return [
        one
        for kind, data in frames
        for one in parser.text(json.dumps({"type": kind, "data": {"prompt_id": "job", **data}}))
    ]


def test_the_events_of_a_graph_come_in_order() -> None:
    assert told(
        ("execution_start", {}),
        ("execution_cached", {"nodes": ["1"]}),
        ("executing", {"node": "2"}),
        ("progress", {"node": "2", "value": 1, "max": 2}),
        ("progress_state", {"nodes": {"2": {"state": "running", "value": 1, "max": 2}}}),
        ("progress_state", {"nodes": {"2": {"state": "finished", "value": 2, "max": 2}}}),
        ("progress_state", {"nodes": {"2": {"state": "finished", "value": 2, "max": 2}}}),
        ("executing", {"node": "out"}),
        ("progress_state", {"nodes": {"out": {"state": "finished", "value": 1, "max": 1}}}),
        ("executed", {"node": "out", "output": {"text": ["x"]}}),
        ("execution_success", {}),
    ) == [
        NodesCached(ID, ("1",)),
        NodeStarted(ID, "2"),
        NodeProgressed(ID, "2", 1, 2),
        NodeFinished(ID, "2", "job/2", None),
        NodeStarted(ID, "out"),
        ExecutedNode("out", {"text": ["x"]}, None, True),
        GraphEnded("success", {"prompt_id": "job"}),
    ]


def test_other_graphs_and_nodes_of_none_are_passed_over() -> None:
    assert told(("executing", {"node": "2", "prompt_id": "another"}), ("executing", {"node": "99"})) == []
    parser = FrameParser(TASK)
    assert [*parser.text("no JSON"), *parser.text("[]"), *parser.binary(b"\x00")] == []


def test_an_output_without_ui_is_reported_at_the_end() -> None:
    parser = FrameParser(TASK)
    assert list(parser.missing_outputs()) == [ExecutedNode("out", {}, None, True)]


def test_a_made_node_says_where_it_comes_from() -> None:
    state = {
        "state": "running",
        "value": 1,
        "max": 3,
        "display_node_id": "1",
        "parent_node_id": "2",
        "real_node_id": "2",
    }
    assert told(("progress_state", {"nodes": {"2.0.0.7": state}}), ("executing", {"node": "2.0.0.7.0.0.1"})) == [
        NodeProgressed(ID, "2.0.0.7", 1, 3, Origin("1", "2", "2")),
        NodeStarted(ID, "2.0.0.7.0.0.1", Origin("2", "2.0.0.7.0.0", "2")),
    ]


def test_previews_and_progress_texts_are_read_in_both_forms() -> None:
    parser = FrameParser(TASK)
    list(parser.text(json.dumps({"type": "executing", "data": {"node": "2", "prompt_id": "job"}})))
    assert list(parser.binary(struct.pack(">II", 1, 1) + b"\xff\xd8jpeg")) == [NodePreview("2", b"\xff\xd8jpeg", None)]
    about = json.dumps({"node_id": "1", "prompt_id": "job"}).encode()
    described = struct.pack(">II", 4, len(about)) + about + b"\xff\xd8jpeg"
    assert list(parser.binary(described)) == [NodePreview("1", b"\xff\xd8jpeg", None)]
    old = struct.pack(">II", 3, 1) + b"2" + b"halb fertig"
    new = struct.pack(">II", 3, 3) + b"job" + struct.pack(">I", 1) + b"2" + b"halb fertig"
    for frame in (old, new):
        assert list(parser.binary(frame)) == [NodeMessage("2", "progress_text", {"text": "halb fertig"})]


def test_a_packs_own_message_is_its_running_nodes() -> None:
    assert told(("executing", {"node": "2"}), ("pack.chart", {"points": [1]}))[1:] == [
        NodeMessage("2", "pack.chart", {"points": [1]})
    ]
