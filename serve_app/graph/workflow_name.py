"""The name of a workflow that its client gives with it, where people see jobs as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAME_KEY = "workflow_name"
"""The key of the name: in `extra_data`, or in the `extra` of the saved workflow, where the web page has it."""
LONGEST = 200


def workflow_name(extra_data: Mapping[str, Any]) -> str:
    """Return the name that a submission's `extra_data` gives; "" if it gives none."""
    found: Any = extra_data
    for key in ("extra_pnginfo", "workflow", "extra"):
        found = found.get(key) if isinstance(found, Mapping) else None
    places = [place for place in (extra_data, found) if isinstance(place, Mapping)]
    names = (place.get(NAME_KEY) for place in places)
    return next((name[:LONGEST] for name in names if isinstance(name, str)), "")
