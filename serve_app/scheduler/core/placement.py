"""Chooses the replica that a task is sent to. Pure; considers a few replicas, however many there are.

Order of preference: the replica that has or computes most of the task's values, then the one with the least loading
time, then the least busy, then the one longest unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import islice

from serve_app.scheduler.core.costs import Costs
from serve_app.scheduler.core.replicas import LeastBusy, ReplicaRecord
from serve_app.scheduler.core.results import Results

CANDIDATES = 8
"""How many of the least busy replicas, and of the holders of each value, are considered for a task."""


def choose(
    among: LeastBusy, signatures: Set[str], files: Sequence[str], results: Results, costs: Costs
) -> ReplicaRecord:
    """Return the best of at least one replica. files: the model files that the task names."""
    candidates = {record.info.replica_id: record for record in among.first(CANDIDATES)}
    for signature in signatures:
        for name in islice(results.holders(signature), CANDIDATES):
            if name not in candidates and (record := among.get(name)) is not None:
                candidates[name] = record

    def score(record: ReplicaRecord) -> tuple[int, float, int, int]:
        name, there = record.info.replica_id, record.files
        present = sum(name in results.holders(s) or results.owner(s) in record.running for s in signatures)
        lacking = [file for file in files if file not in there]
        load_s = sum(costs.load_s(record.info.pool, file) for file in lacking)
        return (-present, load_s, len(lacking), len(record.running))

    return min(candidates.values(), key=score)
