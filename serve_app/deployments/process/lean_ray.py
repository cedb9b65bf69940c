"""Starts a Ray on this machine, without those of its processes that a server on one machine has no use for.

Ray's autoscaler, its log monitor, which copies what workers log to the driver, and the server of its dashboard are
Python processes, for which `ray.init` has no setting but for a part of the last. Written for ray 2.60.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import ray
from ray._private import parameter
from ray._private.node import Node


def init(num_cpus: int, *, dashboard: bool, **options: Any) -> Any:
    """Start it, with `ray.init`'s options, and connect to it. Returns what `ray.init` does.

    num_cpus: as many Python workers are started at once, for the first actors.
    """
    parameter.RayParams = partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)
    if not dashboard:
        Node.start_api_server = lambda *_, **__: None
    return ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=dashboard,
        num_cpus=num_cpus,
        **options,
    )
