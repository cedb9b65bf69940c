"""Where the official templates run, which the web page marks them with.

They come in packages of ComfyUI's, each a file of a saved workflow.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from pkgutil import iter_modules

from serve_app.errors import WorkflowFileError
from serve_app.graph.saved.classes import needed_classes

PACKAGES = "comfyui_workflow_templates_"
"""The name prefix of the packages whose `templates` hold workflows, their thumbnails and the index of them."""


def packages() -> list[str]:
    """Return the names of the installed packages that have templates."""
    found = [name for _, name, _ in iter_modules() if name.startswith(PACKAGES)]
    return [name for name in found if _folder(name).is_dir()]


@lru_cache(maxsize=1)
def needed_by_template() -> dict[str, frozenset[str]]:
    """Return the node classes that each installed template needs. It reads some hundred files, once."""
    found = {}
    for path in (path for name in packages() for path in sorted(_folder(name).glob("*.json"))):
        try:
            workflow = json.loads(path.read_bytes())
            if isinstance(workflow, dict) and "nodes" in workflow:
                found[path.stem] = needed_classes(workflow)
        except (ValueError, WorkflowFileError):
            continue
    return found


def _folder(package: str) -> Path:
    return Path(str(files(package))) / "templates"
