"""Sets up a process's log and traces, as the configuration says."""

from __future__ import annotations

from serve_app import log, tracing
from serve_app.config import AppConfig


def configure(config: AppConfig, service: str, **ids: str) -> None:
    """Set up the log, whose every line has these ids, and traces. service: what the process is. Once a process."""
    log.configure(config.logs, config.log_level, **ids)
    if config.traces is not None:
        tracing.configure(service, config.traces.endpoint, config.traces.sample)
