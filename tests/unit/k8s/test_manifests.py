"""The Kubernetes manifests: valid to the last field, and saying what the cluster needs."""

from __future__ import annotations

import contextlib
import copy
import ipaddress
import os
import re
import shutil
import socket
import subprocess
import time
from typing import Any

import jsonschema
import kubernetes_validate
import psutil
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app import config
from tests.unit.k8s.manifests import CRDS, OVERLAYS, ROOT, one, parse_quantity, pods, rendered, strict
from tests.unit.k8s.network import made_by_kuberay, selects

VERSION = "1.32"
CORE = {
    "v1",
    "apps/v1",
    "policy/v1",
    "networking.k8s.io/v1",
}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def rayservice_schema() -> dict[str, Any]:
    path = CRDS / "ray.io_rayservices.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's CRDs are not at {CRDS}; they are not part of the repository")
    versions = yaml.safe_load(path.read_text())["spec"]["versions"]
    [schema] = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    made = strict(schema)
    made["properties"]["metadata"] = {"type": "object"}
    return made


def test_every_core_object_is_valid_to_the_last_field(overlay):
    core = [o for o in rendered(overlay, "monitoring") if o["apiVersion"] in CORE]
    assert {o["kind"] for o in core} >= {"Namespace", "StatefulSet", "Ingress", "NetworkPolicy", "PodDisruptionBudget"}
    for manifest in core:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    # Only what no schema is at hand for is left; the other kinds are the Prometheus operator's, which many lack.
    others = [
        {o["kind"] for o in rendered(overlay, *added)} - {o["kind"] for o in core} for added in ([], ["monitoring"])
    ]
    assert others == [{"RayService"}, {"RayService", "PodMonitor", "PrometheusRule"}]


def test_the_example_secrets_are_valid_and_have_every_key_that_pods_ask_for():
    secrets = list(yaml.safe_load_all((ROOT / "k8s" / "base" / "secrets.example.yaml").read_text()))
    for secret in secrets:
        kubernetes_validate.validate(secret, VERSION, strict=True)
    keys = {s["metadata"]["name"]: set(s["stringData"]) for s in secrets}
    asked = set()
    for overlay in OVERLAYS:
        for found in _found(list(rendered(overlay)), "secretKeyRef"):
            assert found["key"] in keys[found["name"]]
        asked |= {found["name"] for kind in ("secretKeyRef", "secretRef") for found in _found(rendered(overlay), kind)}
    assert asked == set(keys)


def test_the_plain_ingress_is_valid_and_leads_where_traefiks_does():
    plain = yaml.safe_load((ROOT / "k8s" / "components" / "ingress" / "ingress.yaml").read_text())
    kubernetes_validate.validate(plain, VERSION, strict=True)
    assert plain["spec"]["rules"] == one("volume", "Ingress")["spec"]["rules"]


def test_the_rayservice_fits_kuberays_crd(overlay, rayservice_schema):
    jsonschema.validate(one(overlay, "RayService"), rayservice_schema, jsonschema.Draft202012Validator)


def test_a_misspelt_field_of_the_rayservice_is_refused(rayservice_schema):
    wrong = copy.deepcopy(one("volume", "RayService"))
    wrong["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(wrong, rayservice_schema, jsonschema.Draft202012Validator)


def test_pods_are_valid_pods_once_they_have_a_kind(overlay):
    for name, template in pods(overlay).items():
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": name, **template["metadata"]}}
        kubernetes_validate.validate(pod, VERSION, strict=True)


def test_the_serve_config_inside_is_the_shipped_one_and_serve_accepts_it():
    inside = yaml.safe_load(one("volume", "RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(inside)
    del inside["applications"][0]["args"]["webhooks"]
    assert inside == yaml.safe_load((ROOT / "configs" / "cluster.yaml").read_text())


def test_the_s3_overlay_differs_from_it_by_where_files_are_alone():
    shipped = yaml.safe_load((ROOT / "configs" / "cluster.yaml").read_text())
    inside = yaml.safe_load(one("s3", "RayService")["spec"]["serveConfigV2"])
    arguments = inside["applications"][0]["args"]
    parsed = config.parse(arguments, "s3")
    assert parsed.store.kind == "s3"
    assert parsed.models is not None
    for key in ("store", "models", "models_cache_bytes", "webhooks"):
        del arguments[key]
    assert inside == shipped


def test_no_pod_runs_as_root_or_may_become_more_than_it_is(overlay):
    templates = [*pods(overlay).values(), one(overlay, "StatefulSet", "redis")["spec"]["template"]]
    for template in templates:
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"requests", "limits"} <= set(container["resources"])
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_what_ray_writes_has_a_volume_in_every_container_of_it(overlay):
    for template in pods(overlay).values():
        mounts = {mount["mountPath"] for mount in template["spec"]["containers"][0]["volumeMounts"]}
        assert {"/tmp", "/tmp/ray", "/home/app", "/dev/shm"} <= mounts
    options = one(overlay, "RayService")["spec"]["rayClusterConfig"]["autoscalerOptions"]
    assert options["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {volume["name"] for volume in pods(overlay)["head"]["spec"]["volumes"]}
    assert {mount["mountPath"]: mount["name"] in volumes for mount in options["volumeMounts"]} == {
        "/tmp": True,
        "/home/app": True,
    }


def test_shared_memory_has_room_for_rays_object_store(overlay):
    """Ray gives its object store 30 % of the memory, and takes the disk at /tmp where shared memory is smaller."""
    for template in pods(overlay).values():
        [shm] = [v["emptyDir"] for v in template["spec"]["volumes"] if v["name"] == "shm"]
        assert shm["medium"] == "Memory"
        memory = parse_quantity(template["spec"]["containers"][0]["resources"]["limits"]["memory"])
        # Without a limit of its own it has the pod's.
        assert parse_quantity(shm.get("sizeLimit", memory)) >= memory * 3 / 10


def test_the_session_is_in_the_volume_that_kuberay_mounts_for_the_autoscaler_too(overlay):
    for template in pods(overlay).values():
        mounts = {m["mountPath"]: m["name"] for m in template["spec"]["containers"][0]["volumeMounts"]}
        assert mounts["/tmp/ray"] == "ray-logs"


def test_a_drain_is_never_refused_for_good(overlay):
    """Owners of these pods have no scale subresource, so a budget may name a whole number of pods alone, and one fewer
    than there are."""
    groups = one(overlay, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    fewest = {"head": 1} | {group["groupName"]: group["minReplicas"] for group in groups}
    budgets = [o["spec"] for o in rendered(overlay) if o["kind"] == "PodDisruptionBudget"]
    assert budgets
    for budget in budgets:
        assert set(budget) == {"minAvailable", "selector"}
        covered = sum(fewest[pod.name] for pod in made_by_kuberay(overlay) if selects(budget["selector"], pod.labels))
        assert isinstance(budget["minAvailable"], int)
        assert budget["minAvailable"] < covered


def test_ray_asks_for_a_token(overlay):
    assert one(overlay, "RayService")["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def test_every_object_that_has_a_namespace_is_in_ours(overlay):
    outside = [o["kind"] for o in rendered(overlay) if o["metadata"].get("namespace") != "serve-app"]
    assert outside == ["Namespace"]


def test_a_peer_of_another_namespace_is_selected_by_the_namespaces_name(overlay):
    limits = policies(overlay, "monitoring")
    peers = [peer for policy in limits for rule in policy.get("ingress", []) for peer in rule["from"]]
    names = [peer["namespaceSelector"]["matchLabels"] for peer in peers if "namespaceSelector" in peer]
    assert [set(name) for name in names] == [{"kubernetes.io/metadata.name"}] * 3
    assert {name["kubernetes.io/metadata.name"] for name in names} == {"kuberay-system", "traefik", "monitoring"}
    assert all(peer.get("namespaceSelector") or peer["podSelector"]["matchLabels"] for peer in peers)


def test_what_goes_out_is_listed_for_every_pod(overlay):
    labels = [template["metadata"]["labels"] for template in pods(overlay).values()]
    labels.append(one(overlay, "StatefulSet", "redis")["spec"]["template"]["metadata"]["labels"])
    limited = [p["podSelector"]["matchLabels"] for p in policies(overlay) if "Egress" in p["policyTypes"]]
    assert all(any(wanted.items() <= had.items() for wanted in limited) for had in labels)
    rules = [rule for policy in policies(overlay) for rule in policy.get("egress", [])]
    assert all(rule["to"] and rule["ports"] for rule in rules if not any("podSelector" in to for to in rule["to"]))
    # An installer's addresses: those of documentation stand for them, which no host has.
    blocks = [ipaddress.IPv4Network(to["ipBlock"]["cidr"]) for rule in rules for to in rule["to"] if "ipBlock" in to]
    assert len(blocks) == (3 if overlay == "s3" else 2)
    assert all(block.subnet_of(ipaddress.IPv4Network("192.0.2.0/24")) for block in blocks)


@pytest.mark.parametrize(("component", "group"), [("internet", "webhooks"), ("token-provider", "cpu")])
def test_the_internet_is_reached_by_a_component_from_one_group_and_nothing_private_by_it(component, group):
    policy = yaml.safe_load((ROOT / "k8s" / "components" / component / "network.yaml").read_text())
    kubernetes_validate.validate(policy, VERSION, strict=True)
    [rule] = policy["spec"]["egress"]
    [block] = [to["ipBlock"] for to in rule["to"]]
    closed = [ipaddress.ip_network(cidr) for cidr in block["except"]]
    inside = ("10.1.1.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "127.0.0.1", "224.0.0.1")
    assert all(any(ipaddress.ip_address(each) in network for network in closed) for each in inside)
    assert not any(ipaddress.ip_address("1.1.1.1") in network for network in closed)
    assert policy["spec"]["podSelector"]["matchLabels"]["ray.io/group"] == group
    assert group in pods("volume")


def test_the_webhook_sender_is_alone_in_its_pod_which_has_no_file_and_no_secret_of_the_servers(overlay):
    groups = one(overlay, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    [group] = [group for group in groups if group["groupName"] == "webhooks"]
    arguments = yaml.safe_load(one(overlay, "RayService")["spec"]["serveConfigV2"])["applications"][0]["args"]
    assert config.parse(arguments, overlay).webhooks.hosts == group["labels"]
    assert (group["minReplicas"], group["rayStartParams"]["num-cpus"]) == (1, "0")
    spec = group["template"]["spec"]
    assert "envFrom" not in spec["containers"][0]
    assert all("emptyDir" in volume for volume in spec["volumes"])


def test_the_other_ingress_controllers_http_comes_from_its_own_namespace_too():
    plain = yaml.safe_load((ROOT / "k8s" / "components" / "ingress" / "network.yaml").read_text())
    kubernetes_validate.validate(plain, VERSION, strict=True)
    traefik = one("volume", "NetworkPolicy", "serve-app-http")
    names = [p["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"] for p in (plain, traefik)]
    assert names == [{"kubernetes.io/metadata.name": name} for name in ("ingress-nginx", "traefik")]


def test_redis_asks_for_a_password_that_its_command_line_does_not_show(tmp_path):
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    [container] = one("volume", "StatefulSet", "redis")["spec"]["template"]["spec"]["containers"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = container["args"][0].replace("dir /data", f"dir {tmp_path}\nbind 127.0.0.1\nport {port}")
    started = subprocess.Popen(
        [*container["command"], script], env={**os.environ, "REDIS_PASSWORD": "se cret'$"}, stdout=subprocess.DEVNULL
    )
    try:
        answers = []
        deadline = time.monotonic() + 30
        while not answers and time.monotonic() < deadline:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as client:
                lines = client.makefile("rw", newline="\r\n")
                for command in ("PING", 'AUTH "se cret\'$"', "PING"):
                    lines.write(f"{command}\n")
                    lines.flush()
                    answers.append(lines.readline().strip())
        assert answers == ["-NOAUTH Authentication required.", "+OK", "+PONG"]
        shown = psutil.Process(started.pid).cmdline()
        assert shown[0].startswith("redis-server")
        assert "cret" not in " ".join(shown)
    finally:
        started.kill()
        started.wait()


def test_gpus_are_the_gpu_groups_alone_which_starts_from_zero(overlay):
    cluster = one(overlay, "RayService")["spec"]["rayClusterConfig"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert (groups["gpu"]["minReplicas"], groups["gpu"]["labels"]) == (0, {"role": "gpu"})
    assert groups["cpu"]["minReplicas"] >= 1
    limits = {
        name: template["spec"]["containers"][0]["resources"]["limits"] for name, template in pods(overlay).items()
    }
    assert [name for name, limit in limits.items() if "nvidia.com/gpu" in limit] == ["gpu"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert all(template["spec"]["restartPolicy"] == "Never" for template in pods(overlay).values())


def test_what_stays_runs_on_no_host_with_gpus():
    settings = config.load(ROOT / "configs" / "cluster.yaml")
    staying: list[Any] = [settings.ingress, *(pool for pool in settings.pools if pool.min_replicas)]
    assert [place.hosts for place in staying] == [{"role": "!gpu"}] * len(staying)


def test_models_are_read_only_and_the_rest_of_the_contracts_folders_is_not():
    for template in working("volume"):
        mounts = {m["mountPath"]: m.get("readOnly", False) for m in template["spec"]["containers"][0]["volumeMounts"]}
        assert mounts["/app/models"] is True
        assert not any(mounts[path] for path in ("/app/output", "/app/files"))
        claims = {v["name"]: v.get("persistentVolumeClaim", {}).get("claimName") for v in template["spec"]["volumes"]}
        assert {name: claim for name, claim in claims.items() if claim} == {n: n for n in ("models", "output", "files")}
        for folder in config.load(ROOT / "configs" / "cluster.yaml").directories.values():
            assert any(folder.is_relative_to(path) for path in mounts if not mounts[path])
    claimed = [o for o in rendered("volume") if o["kind"] == "PersistentVolumeClaim"]
    assert all(claim["spec"]["accessModes"] == ["ReadWriteMany"] for claim in claimed)


def test_with_a_bucket_every_process_has_the_credentials_and_no_volume_is_shared():
    assert not [o for o in rendered("s3") if o["kind"] == "PersistentVolumeClaim"]
    for template in working("s3"):
        sources = [source["secretRef"]["name"] for source in template["spec"]["containers"][0]["envFrom"]]
        assert "serve-app-s3" in sources


def test_ports_that_others_name_are_ports_that_pods_have(overlay):
    had = {p["name"]: p["containerPort"] for t in pods(overlay).values() for p in t["spec"]["containers"][0]["ports"]}
    [endpoint] = one(overlay, "PodMonitor", "serve-app", "monitoring")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in had
    limits = policies(overlay, "monitoring")
    ours = [p for p in limits if p["podSelector"]["matchLabels"].get("app") == "serve-app"]
    for rule in [rule for policy in ours for rule in policy.get("ingress", [])]:
        assert all(port["port"] in had or isinstance(port["port"], int) for port in rule.get("ports", []))
    serve = yaml.safe_load(one(overlay, "RayService")["spec"]["serveConfigV2"])["http_options"]["port"]
    backend = one(overlay, "Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "serve-app-serve-svc", "port": {"number": serve}}
    assert had["serve"] == serve


def test_images_can_be_renamed_by_kustomize(tmp_path):
    assert rendered("volume")
    relative = os.path.relpath(ROOT / "k8s" / "overlays" / "volume", tmp_path)
    images = [{"name": f"serve-app-{kind}", "newName": f"mirror/{kind}", "newTag": "v9"} for kind in ("cpu", "cuda")]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [relative], "images": images}))
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=True)
    [service] = [o for o in yaml.safe_load_all(done.stdout) if o["kind"] == "RayService"]
    cluster = service["spec"]["rayClusterConfig"]
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    found = {group["template"]["spec"]["containers"][0]["image"] for group in templates}
    assert found == {"mirror/cpu:v9", "mirror/cuda:v9"}


def working(overlay: str) -> list[dict[str, Any]]:
    """Return the pods that have to do with jobs: all but the webhook sender's."""
    return [template for name, template in pods(overlay).items() if name != "webhooks"]


def policies(overlay: str, *components: str) -> list[dict[str, Any]]:
    return [o["spec"] for o in rendered(overlay, *components) if o["kind"] == "NetworkPolicy"]


def _found(value: Any, key: str) -> list[dict[str, Any]]:
    """Return every value under that key, however deep."""
    if isinstance(value, dict):
        here = [value[key]] if key in value else []
        return here + [found for inner in value.values() for found in _found(inner, key)]
    if isinstance(value, list | tuple):
        return [found for inner in value for found in _found(inner, key)]
    return []


def test_the_table_of_what_was_tested_has_every_object():
    rows = [row for row in (ROOT / "docs" / "deploy-tested.md").read_text().splitlines() if row.startswith("| ")]
    said = set(re.findall(r"[\w-]+", " ".join(row.split("|")[1] for row in rows)))
    for path in sorted((ROOT / "k8s").rglob("*.yaml")):
        for found in yaml.safe_load_all(path.read_text()):
            if isinstance(found, dict) and found.get("kind") not in (None, "Kustomization", "Component"):
                assert {found["kind"], found["metadata"]["name"]} <= said, path
