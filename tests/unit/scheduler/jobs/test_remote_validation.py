"""Checks of submissions when the replicas that run them are lost."""

from __future__ import annotations

import pytest

from serve_app.errors import InvalidSubmissionError
from serve_app.graph.graph import Graph, Node
from serve_app.graph.plan import Pool
from serve_app.graph.spec import NodeSpec
from serve_app.scheduler.core.replicas import ReplicaRecord, Replicas
from serve_app.scheduler.jobs.remote_validation import MAX_LOSSES, RemoteValidation
from serve_app.scheduler.protocol.messages import Check, Checked, ReplicaInfo

SPEC = NodeSpec("Picky", (), (), (), (), output_node=True, validator=("value",))
GRAPH = Graph({"1": Node("1", "Picky", {})})


def record(name: str) -> ReplicaRecord:
    return ReplicaRecord(ReplicaInfo(name, "cpu", 1))


async def test_a_submission_whose_check_keeps_ending_replicas_is_refused() -> None:
    asked: list[str] = []

    def send(replica_id: str, _: Check) -> None:
        asked.append(replica_id)
        assert checks.under_way(replica_id)
        checks.lost(replica_id)

    checks = RemoteValidation([Pool("cpu", False)], lambda _: record("r1"), send)
    with pytest.raises(InvalidSubmissionError, match="were lost while they checked the inputs of Picky"):
        await checks.check(GRAPH, ["1"], {"Picky": SPEC})
    assert len(asked) == MAX_LOSSES


async def test_a_replica_in_quarantine_checks_only_where_there_is_no_other() -> None:
    asked: list[str] = []
    there = Replicas()
    for name in "ab":
        there.join(ReplicaInfo(name, "cpu", 1))
    there.keep(there["a"], "suspect")

    def send(replica_id: str, check: Check) -> None:
        asked.append(replica_id)
        checks.answered(Checked(check.check_id, (), {}))

    checks = RemoteValidation([Pool("cpu", False)], there.least_busy, send)
    await checks.check(GRAPH, ["1"], {"Picky": SPEC})
    there.drop("b")
    await checks.check(GRAPH, ["1"], {"Picky": SPEC})
    assert asked == ["b", "a"]
