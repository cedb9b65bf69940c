"""What `kubectl kustomize` makes of an overlay, offline."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
OVERLAYS = ("volume", "s3", "comfyui")
CRDS = ROOT.parent / "shared" / "crds"
"""KubeRay's CRDs, which are not in the repository."""


@functools.cache
def rendered(overlay: str, *components: str) -> tuple[dict[str, Any], ...]:
    """Return every object of an overlay to which these components were added."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (apt-get install kubectl)")
    with tempfile.TemporaryDirectory() as folder:
        shipped = Path(os.path.relpath(ROOT / "k8s", Path(folder).resolve()))
        asked = {
            "resources": [str(shipped / "overlays" / overlay)],
            "components": [str(shipped / "components" / name) for name in components],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(asked))
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def one(overlay: str, kind: str, name: str = "serve-app", *components: str) -> dict[str, Any]:
    """Return the object of that kind and name."""
    [found] = [o for o in rendered(overlay, *components) if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    """Return the pod templates of the RayService by group."""
    cluster = one(overlay, "RayService")["spec"]["rayClusterConfig"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **groups}


def parse_quantity(quantity: str | int) -> int:
    """Return the bytes of a quantity of memory, such as 4Gi."""
    number, unit = re.fullmatch(r"(\d+)([KMGT]i)?", str(quantity)).groups()
    return int(number) * 1024 ** (" KMGT".index(unit[0]) if unit else 0)


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a CRD's schema so that it refuses what the API server would drop: fields that it does not know.

    What the API server fills in by itself need not be given.
    """
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: strict(inner) for name, inner in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            made[key] = strict(value)
        else:
            made[key] = value
    if "properties" in made:
        defaulted = {name for name, inner in made["properties"].items() if "default" in inner}
        made["required"] = [name for name in made.get("required", []) if name not in defaulted]
        if not made.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
    return made
