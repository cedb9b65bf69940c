"""The server's own process: a Ray driver that deploys the application and takes it away again.

Run as a program it starts a Ray on this machine, and is a child of the supervisor: `HOST PORT SOCKETS DASHBOARD READY`,
the configuration as JSON on standard input. SOCKETS is the folder of the sockets that HAProxy asks, empty where Serve's
own proxy is to listen; DASHBOARD is 1 for Ray's; READY a descriptor that is told when a job can run.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
from ray import serve

from serve_app import log
from serve_app.config import AppConfig
from serve_app.deployments import lean_ray
from serve_app.deployments.build import bind, gpus
from serve_app.deployments.handles import NAME, NAMESPACE, SchedulerHandle
from serve_app.deployments.supervisor import GIVEN_UP
from serve_app.errors import StoreError, UnavailableError
from serve_app.replica.files import open_catalog
from serve_app.store.catalog import DRAWING, NO_MODELS

APPLICATION = "serve-app"
QUIET = {"log_to_driver": False, "logging_level": "WARNING", "ignore_reinit_error": False}
_log = log.get("up")


def serve_on_cluster(settings: AppConfig, host: str, port: int, stop: threading.Event) -> int:
    """Deploy to the cluster that RAY_ADDRESS names until `stop`. Returns the exit status."""
    context = ray.init(**QUIET)
    served = _serve(settings, host, port, None, context, stop, lambda: None)
    _withdraw()
    return 0 if served else 1


def serve_on_own_ray(
    settings: AppConfig,
    host: str,
    port: int,
    sockets: Path | None,
    stop: threading.Event,
    ready: int,
    *,
    dashboard: bool,
) -> int:
    """Start a Ray that listens on this machine only and deploy to it until `stop`. Returns the exit status.

    Its processes are left to the supervisor, which ends them by their mark however this one ends.
    """
    ingress = settings.ingress
    needed = sum(p.num_cpus * p.max_replicas for p in settings.pools) + ingress.num_cpus * ingress.max_replicas
    # A worker each for Serve's controller, the scheduler, the ingress and the first replicas.
    actors = 2 + ingress.max_replicas + sum(p.min_replicas for p in settings.pools)
    context = lean_ray.init(max(actors, math.ceil(needed)), dashboard=dashboard, **QUIET)
    # Elsewhere hosts with GPUs may be yet to come.
    for pool in settings.pools:
        if pool.gpus > (found := gpus()):
            print(
                f"serve-app up: pool {pool.name} asks for num_gpus: {pool.gpus:g}, and this machine has {found:g}; "
                "`num_gpus: auto` takes one where there is one",
                file=sys.stderr,
            )
            return GIVEN_UP
    served = _serve(settings, host, port, sockets, context, stop, lambda: os.write(ready, b"1"))
    return 0 if served else GIVEN_UP


def _serve(
    settings: AppConfig,
    host: str,
    port: int,
    sockets: Path | None,
    context: Any,
    stop: threading.Event,
    ready: Callable[[], object],
) -> bool:
    """Deploy, say that it is there, wait for `stop`. False if it could not be deployed."""
    # Ray has put handlers of its own in place meanwhile.
    _stop_on_signals(stop)
    deployed: Future[None] = Future()
    proxy = {"proxy_location": "HeadOnly" if sockets is None else "Disabled"}
    deploying = (bind(settings, sockets), {**proxy, "http_options": {"host": host, "port": port}}, deployed)
    threading.Thread(target=_deploy, args=deploying, daemon=True).start()
    if context.dashboard_url:
        print(f"dashboard: http://{context.dashboard_url}", flush=True)
    works = _wait_until_ready(stop, deployed)
    if works:
        print(f"server:    http://{host}:{port}", flush=True)
        if _has_no_models(settings):
            print(f"models:    {NO_MODELS}", flush=True)
        ready()
        stop.wait()
    elif not stop.is_set():
        print("serve-app up: the application could not be deployed; see the log above", file=sys.stderr)
    print("stopping", flush=True)
    return works or stop.is_set()


def _has_no_models(settings: AppConfig) -> bool:
    try:
        return not any(open_catalog(settings).names(folder) for folder in DRAWING)
    except StoreError:  # a bucket that is away is no empty one, and jobs will say what is wrong
        return False


def _stop_on_signals(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


def _deploy(application: Any, options: dict[str, Any], deployed: Future[None]) -> None:
    try:
        serve.start(**options)
        serve.run(application, name=APPLICATION, route_prefix="/", blocking=False)
    except Exception as error:
        for name, deployment in _deployments():
            error.add_note(f"{name} is {deployment.status}: {deployment.message}")
        deployed.set_exception(error)
    else:
        deployed.set_result(None)


def _deployments() -> list[tuple[str, Any]]:
    """Return the application's deployments by name, as Serve sees them; Serve's own error does not say why."""
    application = serve.status().applications.get(APPLICATION)
    return [] if application is None else list(application.deployments.items())


def _wait_until_ready(stop: threading.Event, deployed: Future[None]) -> bool:
    """Wait until a replica has joined, so that a job can run. False if the deployment failed or a stop was asked."""

    async def ready() -> bool:
        handle = SchedulerHandle()
        while not stop.is_set():
            if deployed.done() and (failure := deployed.exception()) is not None:
                _log.error("deploying failed", exc_info=failure)
                return False
            # Serve counts a replica as running before it has joined the scheduler, for which the handle would wait
            # longer than a stop may take.
            with contextlib.suppress(UnavailableError, TimeoutError):
                if (await asyncio.wait_for(handle.cluster(), 1.0)).replicas and deployed.done():
                    return True
            await asyncio.sleep(0.1)
        return False

    return asyncio.run(ready())


def _withdraw() -> None:
    """Take the application and its scheduler off a cluster that goes on."""
    serve.delete(APPLICATION)
    try:
        ray.kill(ray.get_actor(NAME, NAMESPACE), no_restart=True)
    except ValueError:
        _log.info("the scheduler had ended already")
    ray.shutdown()


def main() -> int:
    """Serve as the supervisor's child."""
    log.configure()
    stop = threading.Event()
    _stop_on_signals(stop)
    host, port, sockets, dashboard, ready = sys.argv[1:]
    settings = AppConfig.model_validate_json(sys.stdin.buffer.read())
    folder = Path(sockets) if sockets else None
    return serve_on_own_ray(settings, host, int(port), folder, stop, int(ready), dashboard=dashboard == "1")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Ray would take seconds to end its processes one by one.
    os._exit(status)
