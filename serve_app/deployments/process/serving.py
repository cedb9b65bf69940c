"""The server's own process: a Ray driver that deploys the application.

On a cluster it stays and takes the application away again. Run as a program it starts a Ray on this machine, as a child
of the supervisor: `HOST PORT SOCKETS DASHBOARD READY`, the configuration as JSON on standard input. SOCKETS is the
folder of the sockets that HAProxy asks, empty where Serve's own proxy is to listen; DASHBOARD is 1 for Ray's; READY a
file descriptor that is written to when a job can run. Then the process goes on as the parent of Ray's processes and no
more.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
from ray import serve

from serve_app import log
from serve_app.config import AppConfig
from serve_app.deployments.build import bind, gpus
from serve_app.deployments.handles import NAME, NAMESPACE, scheduler_client
from serve_app.deployments.process import lean_ray
from serve_app.deployments.process.start_checks import lacking_gpus
from serve_app.deployments.process.supervisor import GIVEN_UP
from serve_app.errors import StoreError, UnavailableError
from serve_app.replica.files import open_catalog
from serve_app.store.models.catalog import DRAWING, no_models

APPLICATION = "serve-app"
STDERR = 2
STAY = "import signal; signal.pause()"
"""The program that is left of this one: as small as an interpreter is."""
QUIET = {"log_to_driver": False, "logging_level": "WARNING", "ignore_reinit_error": False}
_log = log.get("up")


def serve_on_cluster(settings: AppConfig, host: str, port: int, stop: threading.Event) -> int:
    """Deploy to the cluster that RAY_ADDRESS names until `stop`. Returns the exit status."""
    context = ray.init(**QUIET)
    served = _serve(settings, host, port, None, context, stop)
    if served:
        stop.wait()
    log.announce("stopping")
    _withdraw()
    return 0 if served or stop.is_set() else 1


def serve_on_own_ray(
    settings: AppConfig, host: str, port: int, sockets: Path | None, stop: threading.Event, *, dashboard: bool
) -> bool:
    """Start a Ray that listens on this machine only and deploy to it. False if it could not be deployed.

    Its processes are left to the supervisor, which ends them by their mark however this one ends.
    """
    ingress = settings.ingress
    needed = sum(p.num_cpus * p.max_replicas for p in settings.pools) + ingress.num_cpus * ingress.max_replicas
    # A worker each for Serve's controller, the scheduler, the ingress and the first replicas.
    actors = 2 + ingress.max_replicas + sum(p.min_replicas for p in settings.pools)
    context = lean_ray.init(max(actors, math.ceil(needed)), dashboard=dashboard, **QUIET)
    # Elsewhere hosts with GPUs may be yet to come.
    for lack in lacking_gpus(settings, gpus()):
        print(f"serve-app up: {lack}", file=sys.stderr)
        return False
    return _serve(settings, host, port, sockets, context, stop)


def _serve(
    settings: AppConfig, host: str, port: int, sockets: Path | None, context: Any, stop: threading.Event
) -> bool:
    """Deploy, and report readiness once a job can run. False if it could not be deployed, or `stop` came before."""
    # Ray has put handlers of its own in place meanwhile.
    _stop_on_signals(stop)
    deployed: Future[None] = Future()
    proxy = {"proxy_location": "HeadOnly" if sockets is None else "Disabled"}
    deploying = (bind(settings, sockets), {**proxy, "http_options": {"host": host, "port": port}}, deployed)
    threading.Thread(target=_deploy, args=deploying, daemon=True).start()
    if context.dashboard_url:
        log.announce(f"dashboard: http://{context.dashboard_url}")
    works = _wait_until_ready(stop, deployed)
    if works:
        log.announce(f"server:    http://{host}:{port}")
        if _has_no_models(settings):
            log.announce(f"models:    {no_models(settings.models_dir)}")
    elif not stop.is_set():
        print("serve-app up: the application could not be deployed; see the log above", file=sys.stderr)
    return works


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
    """Wait until a replica has registered, so that a job can run. False if the deployment failed or `stop` is set."""

    async def ready() -> bool:
        handle = scheduler_client()
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
    """Remove the application and its scheduler from a running cluster."""
    serve.delete(APPLICATION)
    try:
        ray.kill(ray.get_actor(NAME, NAMESPACE), no_restart=True)
    except ValueError:
        _log.info("the scheduler had ended already")
    ray.shutdown()


def _stay(stop: threading.Event) -> None:
    """Replace this process by a small program that waits to be ended, unless `stop` is set; Ray sees its driver leave.

    Ray's processes stay children of this one and end with it. Only a driver's memory, a fifth of what a server without
    models takes, and its threads are gone.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if stop.is_set():
        return
    for descriptor in map(int, os.listdir("/dev/fd")):
        # The one of the folder itself is closed already.
        with contextlib.suppress(OSError):
            os.set_inheritable(descriptor, descriptor <= STDERR)
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", STAY, *sys.orig_argv[1:]])


def main() -> int:
    """Serve as the supervisor's child."""
    stop = threading.Event()
    _stop_on_signals(stop)
    host, port, sockets, dashboard, ready = sys.argv[1:]
    settings = AppConfig.model_validate_json(sys.stdin.buffer.read())
    log.configure(settings.logs, settings.log_level)
    folder = Path(sockets) if sockets else None
    if serve_on_own_ray(settings, host, int(port), folder, stop, dashboard=dashboard == "1"):
        os.write(int(ready), b"1")
        _stay(stop)
    return 0 if stop.is_set() else GIVEN_UP


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Ray would take seconds to end its processes one by one.
    os._exit(status)
