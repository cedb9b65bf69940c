"""Logging set-up: one line an event, key=value pairs after the message, to standard error."""

from __future__ import annotations

import logging


def get(name: str) -> logging.Logger:
    """Return the project's logger for a floor, e.g. get("scheduler")."""
    return logging.getLogger(f"serve_app.{name}")


def configure(level: int = logging.INFO) -> None:
    """Send the project's log lines to standard error. Called once a process, by the entry point."""
    logger = logging.getLogger("serve_app")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
