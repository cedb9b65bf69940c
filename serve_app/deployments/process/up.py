"""`serve-app up`: the whole server on one machine, or on the Ray cluster that RAY_ADDRESS names.

A Ray started here ends with this process, whatever ends it, and is started again when it dies; jobs are in the database
and go on at the next start.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_app import config, log
from serve_app.config import AppConfig
from serve_app.deployments.process import private, supervisor
from serve_app.deployments.process.start_checks import Start, examine
from serve_app.deployments.process.torch_environment import ENVIRONMENT
from serve_app.deployments.proxy import haproxy
from serve_app.deployments.proxy.haproxy import HAProxy
from serve_app.errors import ConfigError
from serve_app.models.shipped import provide

OWN_RAY = {
    # Ray's word for machines that form no cluster: all its processes then listen on this one alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Three failures in a row replace the HTTP proxy, and nobody is answered until then.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.deployments.proxy.gate:middlewares",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's own is 15: replicas would yield to all else on this machine, and a busy one would starve them.
    "RAY_worker_niceness": "0",
    # What pools ask for: all processes have it, so that the first replicas need none of their own.
    **ENVIRONMENT,
}
"""The default environment variables of our own Ray's processes."""
QUIET_RAY = {
    # Of Serve's controller, which looks at everything once in each; Serve's own is 0.1.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Of each replica, whose counters Ray exports every ten seconds; Serve's own is 100.
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    # Of one host nobody else has to know what is free or waits; a tenth of a second and one second otherwise.
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_report_worker_backlog_interval_ms": "10000",
    # No object is fetched from another host: how often such fetches are looked at; 100 otherwise.
    "RAY_object_manager_timer_freq_ms": "1000",
    # How often the raylet looks whether memory, disk or object store are nearly full, and whether too many workers
    # are idle; 250, 100, 100 and 200 otherwise.
    "RAY_memory_monitor_refresh_ms": "1000",
    "RAY_local_fs_monitor_interval_ms": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_kill_idle_workers_interval_ms": "1000",
    # For Ray's own debugging: how long each kind of handler took, how late loops are, and a file of all state.
    "RAY_event_stats": "0",
    "RAY_io_context_monitor_probe_interval_ms": "10000",
    "RAY_debug_dump_period_milliseconds": "0",
}
"""More defaults, so that an idle server uses almost no CPU."""
WITHOUT_DASHBOARD = {
    # What only its pages show: every call with its times, and the host's figures every few seconds.
    "RAY_task_events_report_interval_ms": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "METRICS_RECORD_INTERVAL_S": "60",
    "SCAN_EVENT_DIR_INTERVAL_SECONDS": "60",
}
SERVES_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
"""Serve's own HAProxy is never wanted here, for its replicas listen on every interface; 0 keeps ours off too."""
PORT = 8188
"""The port where neither the command line nor the configuration file names one: ComfyUI's."""
DESCRIPTORS = 65_536
"""Files that a process may open, if its hard limit allows that."""
_log = log.get("up")


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The command line's options. changed: configuration keys with new values, None for those that stay.

    port: None for the configuration file's. demo: provide the models that ship. insecure: listen beyond this machine
    without tenants. umask: mode bits that files it writes do not have.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    insecure: bool = False
    dashboard: bool = False
    demo: bool = False
    umask: int = private.OTHERS
    config: Path | None = None
    root_dialect: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    changed: Mapping[str, Any] = field(default_factory=dict)


def up(arguments: UpOptions) -> int:
    """Start the server, block until SIGTERM or Ctrl-C, stop it. Returns the exit status."""
    log.configure()
    raise_descriptors()
    try:
        start = planned(arguments)
        settings = start.settings
        if arguments.demo:
            _provide(settings)
        # Before anything is written.
        folder = private.prepare(settings.database_url, arguments.umask) if start.own_ray else None
    except ConfigError as error:
        print(f"serve-app up: {error}", file=sys.stderr)
        return 2
    if not _may_start(start):
        return 2
    if folder is not None:
        quiet = QUIET_RAY if arguments.dashboard else QUIET_RAY | WITHOUT_DASHBOARD
        environment = {**OWN_RAY, **quiet, **os.environ, "RAY_TMPDIR": str(folder), SERVES_HAPROXY: "0"}
        front = _haproxy(folder, start.host, start.port, settings.ingress.max_replicas)
        command = [
            sys.executable,
            "-P",
            "-m",
            "serve_app.deployments.process.serving",
            start.host,
            str(start.port),
        ]
        command += ["" if front is None else front[1], str(int(arguments.dashboard))]
        supervisor.become(command, settings.model_dump_json().encode(), environment, front)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # Here and not above: a Ray of our own is another process's.
    from serve_app.deployments.process.serving import serve_on_cluster

    return serve_on_cluster(settings, start.host, start.port, stop)


def planned(arguments: UpOptions, *, looking: bool = False) -> Start:
    """Return what these options start. looking: only to look at it, which makes no folder. Errors: ConfigError."""
    settings = settings_of(arguments).resolved(make=not looking)
    own_ray = "RAY_ADDRESS" not in os.environ
    port = _port(arguments) or _free_port(arguments.host, own_ray)
    return Start(settings, arguments.host, port, own_ray, arguments.insecure, looking)


def raise_descriptors() -> None:
    """Let this process and its children open as many files as it may allow itself, up to DESCRIPTORS."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _haproxy(folder: Path, host: str, port: int, replicas: int) -> tuple[str, str, str, int, int] | None:
    """Return what makes the HAProxy that is to listen; None leaves that to Serve's own proxy, which is slower."""
    if os.environ.get(SERVES_HAPROXY) == "0":
        return None
    if (binary := haproxy.find()) is None:
        reason = "there is none on this machine"
    else:
        sockets = folder / f"http-{host}-{port}"
        if (refusal := HAProxy(binary, sockets, host, port, replicas).refusal()) is None:
            fits = haproxy.connection_limits()
            _log.info(
                "there is room for %d clients at once, %d of them by websockets (ulimit -n is %d)",
                fits.clients,
                fits.sockets,
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            )
            return binary, str(sockets), host, port, replicas
        reason = refusal
    _log.warning("Serve's own proxy listens, for HAProxy cannot: %s", reason)
    return None


def settings_of(arguments: UpOptions) -> AppConfig:
    """Return the file's configuration with the command line's changes. Errors: ConfigError."""
    settings = config.load(arguments.config) if arguments.config else AppConfig()
    changed = {name: value for name, value in arguments.changed.items() if value is not None}
    ingress = settings.ingress.model_dump()
    if arguments.root_dialect is not None:
        ingress["root_dialect"] = arguments.root_dialect
    ingress["allowed_origins"] = arguments.allowed_origins or ingress["allowed_origins"]
    if arguments.allowed_hosts:
        ingress["allowed_hosts"] = arguments.allowed_hosts
    elif "allowed_hosts" not in settings.ingress.model_fields_set:
        if arguments.host.startswith("127."):
            ingress["allowed_hosts"] = (*ingress["allowed_hosts"], arguments.host)
        elif arguments.host not in ingress["allowed_hosts"]:
            ingress["allowed_hosts"] = ("*",)
    return config.parse({**settings.model_dump(), **changed, "ingress": ingress}, "command line")


def _port(arguments: UpOptions) -> int:
    """Return the port of the command line, else the file's, else the usual one; 0 for any. Errors: ConfigError."""
    if arguments.port is not None:
        return arguments.port
    configured = config.port_of(arguments.config) if arguments.config else None
    return PORT if configured is None else configured


def _free_port(host: str, own_ray: bool) -> int:
    """Return a port that is free now: what listens is started again on the same one. Errors: ConfigError."""
    if not own_ray:
        raise ConfigError("port 0 means one that is free on this machine, and RAY_ADDRESS names a cluster: give --port")
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}: {error.strerror}; give another --host") from error
        return int(probe.getsockname()[1])


def _may_start(start: Start) -> bool:
    """Print what the checks find wrong; False if the server cannot start."""
    findings = [finding for finding in examine(start) if finding.level != "ok"]
    for finding in findings:
        if finding.level == "error":
            print(f"serve-app up: {finding}", file=sys.stderr)
        else:
            _log.warning("%s", finding)
    return all(finding.level != "error" for finding in findings)


def _provide(settings: AppConfig) -> None:
    """Install the bundled models into the models folder. Errors: ConfigError."""
    if settings.models is not None:
        raise ConfigError(
            f"--demo fills models_dir, and the model files are in bucket {settings.models.bucket}: copy them there"
        )
    try:
        provided = provide(settings.models_dir)
    except OSError as error:
        raise ConfigError(f"--demo cannot fill models_dir {settings.models_dir}: {error.strerror}") from error
    for path in provided:
        log.announce(f"demo:      {path}")
