"""Builds the Serve application: the entry point of `serve run configs/local.yaml` and of KubeRay's serveConfigV2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serve_app.config import AppConfig, parse
from serve_app.config.pool import PoolConfig
from serve_app.deployments import devices
from serve_app.deployments.comfyui_replica import ComfyUIReplica
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.process.torch_environment import runtime_env
from serve_app.deployments.replica import Replica
from serve_app.deployments.scaling import Backlog

CALLS = 100
"""The concurrent calls of node packs' routes on a replica; more are queued."""
FAILURES = 3
"""The failed health checks in a row after which Serve replaces a replica."""
HEALTH_CHECK_S = 1.0
"""The time within which a dead replica is replaced."""


def build(arguments: dict[str, Any]) -> Application:
    """Bind the whole application from its config file's `args`. Errors: ConfigError naming each wrong key."""
    return bind(parse(arguments, "application arguments").resolved())


def bind(config: AppConfig, sockets: Path | None = None) -> Application:
    """Bind the ingress and every pool's deployment for the cluster's GPUs. sockets: the folder in which ingress
    replicas listen themselves.
    """
    config = devices.resolved(config).on(gpus())
    pools = [pool_deployment(pool, config.silence_s).bind(config, pool) for pool in config.pools]
    return ingress_deployment(config, direct=sockets is not None).bind(config, sockets, *pools)


def gpus() -> float:
    """Return the number of GPUs of the connected cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def ingress_deployment(config: AppConfig, *, direct: bool = False) -> Any:
    """Return the ingress deployment, scaled by Serve on running requests. direct: requests do not go through Serve."""
    ingress = config.ingress
    least = ingress.max_replicas if direct else ingress.min_replicas
    scaling = AutoscalingConfig(
        min_replicas=ingress.min_replicas,
        max_replicas=ingress.max_replicas,
        target_ongoing_requests=ingress.ongoing_requests,
    )
    return serve.deployment(
        Ingress,
        name="ingress",
        ray_actor_options={"num_cpus": ingress.num_cpus, "label_selector": dict(ingress.hosts)},
        # What a client can make last has rooms of its own in the ingress, beyond which it is refused; were Serve to
        # let the rest wait instead, these requests would block all others, probes among them.
        max_ongoing_requests=ingress.max_bodies + ingress.max_listeners + 10 * ingress.ongoing_requests,
        health_check_period_s=HEALTH_CHECK_S,
        health_check_timeout_s=config.silence_s / FAILURES,
        **_replicas(least, ingress.max_replicas, scaling),
    )


def pool_deployment(pool: PoolConfig, silence_s: float) -> Any:
    """Return one pool's deployment: scaled on the scheduler's backlog, to zero and from zero if the minimum is 0.

    silence_s: after which Serve replaces a replica that does not answer its health checks.
    """
    policy = AutoscalingPolicy(
        policy_function=Backlog,
        policy_kwargs={"pool": pool.name, "tasks_per_replica": pool.slots, "drain_s": pool.drain_s},
    )
    scaling = AutoscalingConfig(
        min_replicas=pool.min_replicas,
        max_replicas=pool.max_replicas,
        upscale_delay_s=0,
        downscale_delay_s=pool.idle_s,
        policy=policy,
    )
    return serve.deployment(
        Replica if pool.comfyui is None else ComfyUIReplica,
        name=pool.name,
        ray_actor_options={
            "num_cpus": pool.num_cpus,
            "num_gpus": pool.gpus,
            "resources": dict(pool.resources),
            # Of several devices, the bundles are what is placed.
            "label_selector": dict(pool.hosts) if pool.devices == 1 else {},
            "runtime_env": runtime_env(),
        },
        max_ongoing_requests=CALLS,
        health_check_period_s=HEALTH_CHECK_S,
        health_check_timeout_s=silence_s / FAILURES,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5,
        **_bundles(pool),
        **_replicas(pool.min_replicas, pool.max_replicas, scaling),
    )


def _bundles(pool: PoolConfig) -> dict[str, Any]:
    """Return the placement of a replica with several devices: a bundle for each, on one host unless it spans them."""
    if pool.devices == 1:
        return {}
    each = {"CPU": pool.num_cpus, "GPU": pool.gpus, **pool.resources}
    bundle = {name: count for name, count in each.items() if count}
    placement: dict[str, Any] = {
        "placement_group_bundles": [bundle] * pool.devices,
        "placement_group_strategy": "PACK" if pool.spans_hosts else "STRICT_PACK",
    }
    if pool.hosts:
        placement["placement_group_bundle_label_selector"] = [dict(pool.hosts)] * pool.devices
    return placement


def _replicas(least: int, most: int, scaling: AutoscalingConfig) -> dict[str, Any]:
    return {"num_replicas": least} if least == most else {"autoscaling_config": scaling}
