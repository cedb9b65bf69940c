"""The image and the compose file, as far as they can be read; neither is built here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import PurePosixPath

import pytest
import yaml

from serve_app.cli import main
from serve_app.config import AppConfig
from serve_app.deployments.process import up
from serve_app.deployments.process.start_checks import Start, exposure
from serve_app.deployments.process.up import UpOptions
from tests.unit.k8s.manifests import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def service(file: str = "compose.yaml") -> dict:
    return yaml.safe_load((ROOT / file).read_text())["services"]["serve-app"]


def up_options(arguments: list[str], port: int = 8188) -> UpOptions:
    """Return what `serve-app` passes on of these arguments in the image, whose environment has that port."""
    given: list[UpOptions] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERVE_APP_PORT", str(port))
        patch.setattr(up, "up", lambda options: given.append(options) or 0)
        assert main(arguments) == 0
    return given[0]


def test_both_targets_end_as_a_user_without_privileges_and_let_nobody_in_unasked():
    stages = {stage.split()[0]: stage for stage in re.split(r"\nFROM \S+ AS ", DOCKERFILE)[1:]}
    assert set(stages) == {"base", "wheel", "cpu", "cuda"}
    for name in ("cpu", "cuda"):
        assert re.search(r"^USER 1000:1000$", stages[name], re.MULTILINE)
        [command] = re.findall(r"^CMD (.*)$", stages[name], re.MULTILINE)
        program, *arguments = yaml.safe_load(command)
        assert program == "serve-app"
        asked = up_options(arguments)
        assert asked.host == "0.0.0.0"
        [finding] = exposure(Start(AppConfig(), asked.host, 8188, insecure=asked.insecure))
        assert finding.level == "error"
        assert "turn on tenants" in str(finding)


def test_what_the_image_copies_is_there_and_is_let_through():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    mounted = re.findall(r"--mount=type=bind,source=(\S+?),", DOCKERFILE)
    assert len(mounted) == 4
    for line in [*re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE), *(f"{name} ." for name in mounted)]:
        *sources, _ = [word for word in shlex.split(line) if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists()
            assert source in allowed


def test_the_image_needs_no_registry_but_that_of_its_base():
    assert re.findall(r"https?://(?!127\.0\.0\.1:)\S+", DOCKERFILE) == []


def test_compose_serves_the_contracts_port_to_this_host_alone():
    served = service()
    arguments = up_options(served["command"][1:])
    assert arguments.port == 8188
    assert served["ports"] == ["127.0.0.1:8188:8188"]
    assert not served.keys() & {"networks", "labels", "network_mode"}


def test_traefik_has_that_port_and_requires_an_authenticator():
    labels = service("compose.traefik.yaml")["labels"]
    assert labels["traefik.http.services.serve-app.loadbalancer.server.port"] == "8188"
    assert labels["traefik.docker.network"] in service("compose.traefik.yaml")["networks"]
    assert labels["traefik.http.routers.serve-app.middlewares"].startswith("${SERVE_APP_AUTH:?")
    assert service("compose.traefik.yaml").keys() == {"networks", "labels", "command"}


def test_allowed_hosts_are_this_hosts_names_and_behind_traefik_any_that_traefik_routes():
    for file, names in (("compose.yaml", ("localhost", "127.0.0.1")), ("compose.traefik.yaml", ("*",))):
        arguments = up_options(service(file)["command"][1:])
        assert (arguments.host, arguments.port, arguments.allowed_hosts) == ("0.0.0.0", 8188, names)


def test_a_container_is_bounded_and_writes_to_mounts_alone():
    served = service()
    assert served["read_only"] is True
    assert {"mem_limit", "pids_limit"} <= served.keys()
    written = [mount.partition(":")[0] for mount in served["tmpfs"]]
    written += [mount.rpartition(":/app/")[2].partition(":")[0] for mount in served["volumes"] if mount[-3:] != ":ro"]
    assert set(written) == {"/tmp", "/home/app", "output", "input", "temp", "work", "user", "state"}


def test_the_image_says_whether_it_works_at_the_port_that_the_server_has():
    assert len(re.findall(r"^HEALTHCHECK .*:\$SERVE_APP_PORT/readyz", DOCKERFILE, re.MULTILINE)) == 2
    assert re.findall(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE) == ["8188", "8188"]
    assert "SERVE_APP_PORT=8188" in DOCKERFILE
    for file in ("compose.yaml", "compose.traefik.yaml"):
        assert up_options(service(file)["command"][1:], 9000).port == 9000


def test_the_source_is_in_the_image_once_and_its_tools_are_not():
    stages = {stage.split()[0]: stage for stage in re.split(r"\nFROM \S+ AS ", DOCKERFILE)[1:]}
    assert [name for name, stage in stages.items() if "COPY serve_app" in stage] == ["wheel"]
    assert "--from=wheel" not in DOCKERFILE


def test_compose_has_shared_memory_for_rays_object_store_and_lets_this_hosts_users_read_outputs():
    """Ray takes 30 % of the memory, and a disk where shared memory is smaller."""
    sizes = {key: re.fullmatch(r"\$\{\w+:-(\d+)g\}", service()[key]).group(1) for key in ("mem_limit", "shm_size")}
    assert int(sizes["shm_size"]) >= 0.3 * int(sizes["mem_limit"])
    assert up_options(service()["command"][1:]).umask == 0o022


def test_the_image_installs_nothing_that_the_lock_file_does_not_know_but_torch_of_an_index_that_is_named():
    commands = re.findall(r"pip install (.*?)(?= *\\?\n)", DOCKERFILE)
    hashed = "--no-deps --require-hashes --only-binary :all: --requirement"
    assert commands == [
        f"{hashed} /build/requirements.lock",
        '--no-deps --index-url "$TORCH_INDEX"',
        f"{hashed} /tmp/requirements.lock",
        "--no-deps /dist/*.whl",
        f"{hashed} /src/requirements.lock",
        "--no-deps /dist/*.whl",
    ]


def test_compose_mounts_every_folder_of_models_and_so_what_the_contract_mounts():
    found = [re.search(r":(/app/\w+):?(\w*)$", mount) for mount in service()["volumes"] if "/app/" in mount]
    mounts = {match.group(1): match.group(2) for match in found}
    assert mounts["/app/models"] == "ro"
    contract = json.loads((ROOT / "serve_app/api/contract/openapi.json").read_text())
    for mount in contract["x-internal-notes"]["volume_mounts"]:
        _, path, mode = mount.split(":")
        [covering] = [mode for folder, mode in mounts.items() if PurePosixPath(path).is_relative_to(folder)]
        assert covering == mode
