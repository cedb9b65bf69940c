"""The fewest loads with which a trace can be served by somebody who knows it beforehand, as an integer programme.

Replicas hold one model each. Time is cut into windows; in each, a whole number of replicas serves each model. A job is
served no earlier than it arrives and done no later than a bound after that. What is left out can only lower the result:
work may be split among replicas, and loading takes no time. So no plan, ours included, can need fewer loads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

from bench.virtual import Request


def fewest_loads(
    requests: Sequence[Request], replicas: int, within_s: float, window_s: float, limit_s: float
) -> tuple[int, bool]:
    """Return a lower bound of the loads of any plan, and whether it is proven to be the least of this programme.

    within_s: how long after its arrival a job may be done at most. limit_s: for how long is computed.
    """
    names = sorted({request.model.name for request in requests})
    end_s = max(request.at_s for request in requests) + within_s
    windows = math.ceil(end_s / window_s) + 1
    late = math.ceil(within_s / window_s) + 1
    arrived = np.zeros((len(names), windows))
    for request in requests:
        arrived[names.index(request.model.name), int(request.at_s // window_s)] += request.work_s
    arrived = arrived.cumsum(axis=1)
    # By model and window: replicas that serve it, loads, work done.
    size = len(names) * windows
    serving, loading, work = (np.arange(size).reshape(len(names), windows) + size * part for part in range(3))
    rows: list[tuple[list[tuple[int, float]], float, float]] = []
    for model in range(len(names)):
        for window in range(windows):
            before = [(int(serving[model, window - 1]), -1.0)] if window else []
            now = [(int(serving[model, window]), 1.0), *before]
            rows.append(([*now, (int(loading[model, window]), -1.0)], -np.inf, 0.0))
            capacity = [(int(work[model, window]), 1.0), (int(serving[model, window]), -window_s)]
            rows.append((capacity, -np.inf, 0.0))
            done = [(int(work[model, past]), 1.0) for past in range(window + 1)]
            due = arrived[model, window - late] if window >= late else 0.0
            rows.append((done, due, arrived[model, window]))
    for window in range(windows):
        rows.append(([(int(serving[model, window]), 1.0) for model in range(len(names))], 0.0, replicas))
    matrix = lil_matrix((len(rows), 3 * size))
    for number, (terms, _, _) in enumerate(rows):
        for column, value in terms:
            matrix[number, column] = value
    cost = np.zeros(3 * size)
    cost[loading] = 1.0
    integral = np.zeros(3 * size)
    integral[serving] = 1
    bounds = LinearConstraint(matrix.tocsr(), [low for _, low, _ in rows], [high for _, _, high in rows])
    found = milp(
        cost,
        integrality=integral,
        bounds=Bounds(0, np.inf),
        constraints=bounds,
        options={"time_limit": limit_s, "mip_rel_gap": 0.0},
    )
    # Without any bound in time, each model has to be loaded once.
    bound = len(names) if found.mip_dual_bound is None else math.ceil(found.mip_dual_bound - 1e-6)
    return bound, found.status == 0
