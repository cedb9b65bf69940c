"""The ranks of one replica without Ray: how they meet, and what each does until the replica ends.

Rank 0 is the replica's own process; `deployments/ranks` starts the others, on the same host.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app import log
from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.errors import ConfigError, RankLostError

if TYPE_CHECKING:
    import torch

    from serve_app.models.ranks.group import RankGroup
    from serve_app.models.ranks.leader import Leader

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Environment variables that name the network interface of ranks' connections."""

_log = log.get("replica")


def reason_against(pool: PoolConfig, rank: int) -> str | None:
    """Return why this process cannot be a rank of a pool's replica, in a line that says which; None if it can."""
    from serve_app.replica.assemble import device_of

    try:
        device_of(pool)
    except ConfigError as error:
        return f"rank {rank} on host {socket.gethostname()}: {error}"
    return None


def lead(pool: PoolConfig, folder: Path) -> Leader:
    """Join the ranks of a replica as the first, once the others have joined. folder: of all of them and nobody else.

    Errors: ConfigError if this process has no device, or the others do not come.
    """
    from serve_app.models.ranks.leader import Leader
    from serve_app.replica.assemble import device_of

    return Leader(_join(pool, 0, folder, device_of(pool)), pool.parallel)


def follow(config: AppConfig, pool: PoolConfig, rank: int, folder: Path) -> None:
    """Join the ranks of a replica, and carry out the first one's orders until it ends. As `lead`."""
    import torch

    from serve_app.models.ranks.follower import Follower
    from serve_app.replica.assemble import device_of, weights_on
    from serve_app.replica.files import open_catalog

    device = device_of(pool)
    if pool.threads or device.type != "cuda":
        torch.set_num_threads(pool.threads or max(1, round(pool.num_cpus)))
    make_weights, _ = weights_on(open_catalog(config), pool, device)
    weights = make_weights()
    group = _join(pool, rank, folder, device)
    Follower(group, weights).run()
    group.close()


def _join(pool: PoolConfig, rank: int, folder: Path, device: torch.device) -> RankGroup:
    from serve_app.models.ranks.group import RankGroup

    for name in INTERFACES:
        # All of them are on this host, and nobody else's business.
        os.environ.setdefault(name, "lo")
    try:
        group = RankGroup(folder, rank, pool.devices_per_replica, device, pool.forward_time_s)
    except RankLostError as error:
        raise ConfigError(
            f"pool {pool.name}: rank {rank} on host {socket.gethostname()} does not reach the others of "
            f"devices_per_replica {pool.devices_per_replica} by the interface "
            f"{' or '.join(dict.fromkeys(os.environ[name] for name in INTERFACES))}; {INTERFACES[0]} and "
            f"{INTERFACES[1]} name another one: {error}"
        ) from None
    _log.info("pool=%s rank=%d of %d device=%s has joined", pool.name, rank, pool.devices_per_replica, device)
    return group
