"""The image and the compose file, as far as they can be read; neither is built here."""

from __future__ import annotations

import re
import shlex

import yaml

from serve_app.cli import _parser
from tests.unit.k8s.manifests import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def service() -> dict:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["serve-app"]


def test_both_targets_end_as_a_user_without_privileges_and_start_a_command_that_exists():
    stages = {stage.split()[0]: stage for stage in re.split(r"\nFROM \S+ AS ", DOCKERFILE)[1:]}
    assert set(stages) == {"base", "cpu", "cuda"}
    for name in ("cpu", "cuda"):
        assert re.search(r"^USER 1000:1000$", stages[name], re.MULTILINE)
        [command] = re.findall(r"^CMD (.*)$", stages[name], re.MULTILINE)
        program, *arguments = yaml.safe_load(command)
        assert program == "serve-app"
        assert _parser().parse_args(arguments).host == "0.0.0.0"


def test_what_the_image_copies_is_there_and_is_let_through():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = [word for word in shlex.split(line) if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists()
            assert source in allowed


def test_the_image_needs_no_registry_but_that_of_its_base():
    assert re.findall(r"https?://\S+", DOCKERFILE) == []


def test_compose_serves_the_contracts_port_and_tells_traefik_so():
    served = service()
    arguments = _parser().parse_args(served["command"][1:])
    assert arguments.port == 8188
    assert served["labels"]["traefik.http.services.serve-app.loadbalancer.server.port"] == "8188"
    assert served["ports"] == ["127.0.0.1:8188:8188"]
    assert served["labels"]["traefik.docker.network"] in served["networks"]


def test_compose_mounts_what_the_contract_mounts():
    mounts = {mount.rpartition("/app/")[2] for mount in service()["volumes"]}
    assert {"models/checkpoints:ro", "models/loras:ro", "models/controlnet:ro", "output:rw"} <= mounts
