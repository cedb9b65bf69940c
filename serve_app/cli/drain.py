"""`serve-app drain`: a replica or host takes no more tasks; it finishes or hands over what it has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from serve_app.cli.server import ServerClient

EVERY_S = 1.0


def drain(server: ServerClient, kind: str, name: str, *, undo: bool, hand_over: bool = False) -> list[str]:
    """Drain a replica or a host, or undo that; return what is drained then. kind: "replica" or "host"."""
    asked = {kind: name} | ({"hand_over": True} if hand_over else {})
    drained: list[str] = server.post("/undrain" if undo else "/drain", asked)["drained"]
    return drained


def wait_until_idle(server: ServerClient, kind: str, name: str, every_s: float = EVERY_S) -> None:
    """Return once no task runs on a replica, or on any of a host's."""
    while any(is_drained(kind, name, each) and each["running"] for each in server.get("/status")["replicas"]):
        time.sleep(every_s)


def is_drained(kind: str, name: str, replica: Mapping[str, Any]) -> bool:
    """Whether a drain of this name concerns a replica, as `GET /status` shows it."""
    return name in ([replica["replica_id"]] if kind == "replica" else [replica["host"], *replica["rank_hosts"]])
