"""Our node classes declare what those of ComfyUI 0.33.0 do (golden/declared.json, by `make_figures`)."""

from __future__ import annotations

import json
from typing import Any

from serve_app.nodes.registry import specs
from tests.parity.declared import ours
from tests.parity.figures import GOLDEN

DECLARED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "declared.json").read_text())


LATER = {"CLIPLoader", "ComfySwitchNode", "CreateVideo", "GetVideoComponents"}
"""Classes that take what a later ComfyUI's do, as saved workflows have it."""


def test_every_class_that_is_compared_is_there():
    assert DECLARED.keys() <= specs().keys()


def test_classes_declare_what_comfyuis_do():
    described, differing = specs(), {}
    for name, theirs in DECLARED.items():
        if (declared := ours(described[name])) != theirs:
            differing[name] = (declared, theirs)
    assert differing.keys() == LATER, {name: both for name, both in differing.items() if name not in LATER}
