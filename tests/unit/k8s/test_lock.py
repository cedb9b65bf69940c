"""requirements.lock: what the image installs is what pyproject.toml asks for, each file known by its hash."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.k8s.manifests import ROOT

LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\\n", LOCK, re.MULTILINE))


def test_the_lock_covers_every_dependency_in_a_version_that_is_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [Requirement(line) for line in project["project"]["dependencies"]]
    for extra in ("postgres", "dit", "media", "gguf"):
        asked += [Requirement(line) for line in project["project"]["optional-dependencies"][extra]]
    asked += [Requirement(line) for line in project["build-system"]["requires"]]
    assert {name for r in asked if (name := canonicalize_name(r.name)) not in LOCKED} == set(), "run `make lock`"
    assert [str(r) for r in asked if LOCKED[canonicalize_name(r.name)] not in r.specifier] == [], "run `make lock`"


def test_every_entry_has_a_hash_and_none_names_a_registry():
    entries = re.split(r"\n(?=[a-z0-9-]+==)", LOCK)[1:]
    assert len(entries) == len(LOCKED)
    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []
    assert "://" not in LOCK
    assert not re.search(r"^\s*--(?!hash=)", LOCK, re.MULTILINE)
