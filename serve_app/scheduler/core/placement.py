"""Which replica gets a task. Pure: reads records, changes nothing, and looks at a few replicas however many there are.

Order of preference: the replica that holds or is computing most of the task's values, then the one where least is to be
loaded, then the least busy, then the one that has been so longest.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import islice

from serve_app.scheduler.core.costs import Costs
from serve_app.scheduler.core.replicas import LeastBusy, ReplicaRecord
from serve_app.scheduler.core.results import Results

CANDIDATES = 8
"""How many of the least busy replicas, and how many holders of each value, are looked at for one task."""


def choose(
    among: LeastBusy, signatures: Set[str], files: Sequence[str], results: Results, costs: Costs
) -> ReplicaRecord:
    """Return the best of the replicas, of which there is one at least. files: the model files that the task names."""
    candidates = {record.info.replica_id: record for record in among.first(CANDIDATES)}
    for signature in signatures:
        for name in islice(results.holders(signature), CANDIDATES):
            if name not in candidates and (record := among.get(name)) is not None:
                candidates[name] = record

    def score(record: ReplicaRecord) -> tuple[int, float, int, int]:
        name, there = record.info.replica_id, record.files
        held = sum(name in results.holders(s) or results.owner(s) in record.running for s in signatures)
        lacking = [file for file in files if file not in there]
        load_s = sum(costs.load_s(record.info.pool, file) for file in lacking)
        return (-held, load_s, len(lacking), len(record.running))

    return min(candidates.values(), key=score)
