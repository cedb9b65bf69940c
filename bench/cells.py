"""Which cell a front sends a tenant's job to, where a cluster is cut into several: see docs/scale.md.

Every tenant has an order of cells by a hash of both (rendezvous hashing, Thaler & Ravishankar 1998), so that a cell
more or less moves only its own tenants. A job goes to the first; to the second while the first has SPILL_S more to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from bench.virtual import Request

SPILL_S = 20.0
"""How much longer a tenant's own cell may be busy than its next before jobs go there, where its models may be cold."""


def order(tenant: str, cells: int) -> list[int]:
    """Return the cells in a tenant's order."""
    return sorted(range(cells), key=lambda cell: blake2b(f"{tenant} {cell}".encode()).digest())


def routed(requests: Sequence[Request], cells: int, slots: int, *, spill: bool) -> list[list[Request]]:
    """Return each cell's share of a trace. slots: of each cell.

    The front goes by what it has sent to each cell less what that can have done since; cells would tell it more.
    """
    shares: list[list[Request]] = [[] for _ in range(cells)]
    busy_s = [0.0] * cells
    before_s = 0.0
    for request in requests:
        busy_s = [max(0.0, seconds - (request.at_s - before_s)) for seconds in busy_s]
        before_s = request.at_s
        first, second = order(request.tenant, cells)[:2]
        cell = second if spill and busy_s[first] > busy_s[second] + SPILL_S else first
        shares[cell].append(request)
        busy_s[cell] += request.work_s / slots
    return shares
