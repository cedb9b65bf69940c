"""The name that a client gives its workflow."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.graph.workflow_name import workflow_name


@pytest.mark.parametrize(
    ("extra_data", "name"),
    [
        ({"workflow_name": "cards"}, "cards"),
        ({"extra_pnginfo": {"workflow": {"extra": {"workflow_name": "saved"}}}}, "saved"),
        ({"extra_pnginfo": {"workflow": {"extra": None}}}, ""),
        ({"extra_pnginfo": [], "workflow_name": 7}, ""),
        ({"workflow_name": "x" * 900}, "x" * 200),
    ],
)
def test_a_workflow_is_called_what_its_client_says(extra_data: dict[str, Any], name: str) -> None:
    assert workflow_name(extra_data) == name
