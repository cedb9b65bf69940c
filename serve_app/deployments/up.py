"""`serve-app up`: the whole server on one machine, or on the Ray cluster that RAY_ADDRESS names.

A Ray started here ends with this process, whatever ends it; jobs are in the database and go on at the next start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import uuid
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from serve_app import config, log
from serve_app.config import AppConfig
from serve_app.errors import ConfigError, UnavailableError

APPLICATION = "serve-app"
_log = log.get("up")


def up(arguments: argparse.Namespace) -> int:
    """Start the server, block until SIGTERM or Ctrl-C, stop it. Returns the exit status."""
    log.configure()
    own = "RAY_ADDRESS" not in os.environ
    try:
        settings = _settings(arguments)
        if own:
            _check_port(arguments.host, arguments.port)
    except ConfigError as error:
        print(f"serve-app up: {error}", file=sys.stderr)
        return 2
    stop = threading.Event()
    _stop_on_signals(stop)
    mark = str(uuid.uuid4())
    if own:
        _prepare_environment(mark)
    # Ray and Serve read the environment when they are imported.
    from serve_app.deployments import reaper

    watched = reaper.watch(mark) if own else None
    try:
        return _serve(settings, arguments, own, stop)
    finally:
        if own:
            reaper.reap(mark)
        if watched is not None:
            os.close(watched)


def _serve(settings: AppConfig, arguments: argparse.Namespace, own: bool, stop: threading.Event) -> int:
    import ray
    from ray import serve

    from serve_app.deployments.build import bind

    context = _connect(ray, settings, own)
    # Ray has put handlers of its own in place meanwhile.
    _stop_on_signals(stop)
    deployed: Future[None] = Future()
    threading.Thread(target=_deploy, args=(serve, bind(settings), arguments, deployed), daemon=True).start()
    print(f"dashboard: http://{context.dashboard_url}" if context.dashboard_url else "dashboard: none", flush=True)
    url = f"http://{arguments.host}:{arguments.port}"
    ready = _wait_until_ready(stop, deployed)
    if ready:
        print(f"server:    {url}", flush=True)
        stop.wait()
    elif not stop.is_set():
        print("serve-app up: the application could not be deployed; see the log above", file=sys.stderr)
    print("stopping", flush=True)
    if own:
        ray.shutdown()
    else:
        _withdraw(ray, serve)
    return 0 if ready or stop.is_set() else 1


def _stop_on_signals(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


def _connect(ray: Any, settings: AppConfig, own: bool) -> Any:
    """Connect to the cluster, or start one that listens on this machine only."""
    quiet = {"log_to_driver": False, "logging_level": "WARNING", "ignore_reinit_error": False}
    if not own:
        return ray.init(**quiet)
    needed = sum(p.num_cpus * p.max_replicas for p in settings.pools)
    return ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=True,
        num_cpus=max(os.cpu_count() or 1, round(needed + 1)),
        **quiet,
    )


def _deploy(serve: Any, application: Any, arguments: argparse.Namespace, deployed: Future[None]) -> None:
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": arguments.host, "port": arguments.port})
        serve.run(application, name=APPLICATION, route_prefix="/", blocking=False)
    except Exception as error:
        for name, deployment in _deployments(serve):
            error.add_note(f"{name} is {deployment.status}: {deployment.message}")
        deployed.set_exception(error)
    else:
        deployed.set_result(None)


def _deployments(serve: Any) -> list[tuple[str, Any]]:
    """Return the application's deployments by name, as Serve sees them; Serve's own error does not say why."""
    application = serve.status().applications.get(APPLICATION)
    return [] if application is None else list(application.deployments.items())


def _wait_until_ready(stop: threading.Event, deployed: Future[None]) -> bool:
    """Wait until a replica has joined, so that a job can run. False if the deployment failed or a stop was asked."""
    from serve_app.deployments.handles import SchedulerHandle

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


def _withdraw(ray: Any, serve: Any) -> None:
    """Take the application and its scheduler off a cluster that goes on."""
    from serve_app.deployments.handles import NAME, NAMESPACE

    serve.delete(APPLICATION)
    try:
        ray.kill(ray.get_actor(NAME, NAMESPACE), no_restart=True)
    except ValueError:
        _log.info("the scheduler had ended already")
    ray.shutdown()


def _settings(arguments: argparse.Namespace) -> AppConfig:
    """Return the file's configuration with the command line's paths over it. Errors: ConfigError."""
    settings = config.load(Path(arguments.config)) if arguments.config else AppConfig()
    directories = ("models_dir", "input_dir", "output_dir", "temp_dir", "user_dir", "custom_nodes_dir")
    names = (*directories, "database_url", "cache", "preview_method")
    given = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    ingress = settings.ingress.model_dump()
    if arguments.root_dialect is not None:
        ingress["root_dialect"] = arguments.root_dialect
    if "allowed_hosts" not in settings.ingress.model_fields_set:
        if arguments.host.startswith("127."):
            ingress["allowed_hosts"] = (*ingress["allowed_hosts"], arguments.host)
        elif arguments.host not in ingress["allowed_hosts"]:
            ingress["allowed_hosts"] = ("*",)
    return config.parse({**settings.model_dump(), **given, "ingress": ingress}, "command line").resolved()


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; give another --port") from error


def _prepare_environment(mark: str) -> None:
    """Set what Ray's processes inherit: the reaper's mark, the proxy's gate, and calls without needless hops."""
    from serve_app.deployments.reaper import MARK

    os.environ[MARK] = mark
    # Ray renames its processes; this keeps their environment, and so the mark, readable.
    os.environ["SPT_NOENV"] = "1"
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve_app.deployments.gate:middlewares")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
