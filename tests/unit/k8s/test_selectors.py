"""Which pods the manifests select and let connect, by the labels that pods have in a cluster."""

from __future__ import annotations

import pytest

from tests.unit.k8s.manifests import OVERLAYS, one, rendered
from tests.unit.k8s.network import CLUSTER, Pod, connects, made_by_kuberay, redis, selects

HELM = {"app.kubernetes.io/name": "kuberay-operator", "app.kubernetes.io/instance": "kuberay"}
KUSTOMIZE = {"app.kubernetes.io/name": "kuberay"}
OPERATORS = [
    Pod("operator", {**labels, "app.kubernetes.io/component": "kuberay-operator"}, "kuberay-system")
    for labels in (HELM, KUSTOMIZE)
]
"""KubeRay's operator as its two ways of installing it label it."""
TRAEFIK = Pod("traefik", {"app.kubernetes.io/name": "traefik"}, "traefik")
PROMETHEUS = Pod("prometheus", {"app.kubernetes.io/name": "prometheus"}, "monitoring")
CLEANUP = Pod("cleanup", {"app.kubernetes.io/created-by": "kuberay-operator"})
"""KubeRay's job that removes a cluster's state from Redis."""
STRANGERS = [
    Pod("stranger", {}, "elsewhere"),
    Pod("neighbour", {}, "serve-app"),
    Pod("impostor", {"app": "serve-app", "app.kubernetes.io/component": "kuberay-operator"}, "elsewhere"),
]
DASHBOARD, SERVE, METRICS, AGENT, GCS, REDIS = 8265, 8000, 8080, 52365, 6379, 6379
DATABASE, API_SERVER, STORE = ("192.0.2.1", 5432), ("192.0.2.2", 6443), ("192.0.2.3", 443)


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ours(overlay: str) -> dict[str, Pod]:
    return {pod.name: pod for pod in made_by_kuberay(overlay)}


def test_the_service_that_kuberay_makes_for_the_head_selects_the_head_alone(ours):
    selector = {
        "ray.io/cluster": CLUSTER,
        "ray.io/node-type": "head",
        "ray.io/identifier": f"{CLUSTER}-head",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    assert [name for name, pod in ours.items() if selects({"matchLabels": selector}, pod.labels)] == ["head"]


def test_no_template_overrides_a_label_that_kuberay_sets(ours):
    assert {pod.labels["app.kubernetes.io/name"] for pod in ours.values()} == {"kuberay"}
    assert [pod.labels["ray.io/group"] for pod in ours.values()] == ["headgroup", "cpu", "gpu", "webhooks"]


def test_the_podmonitor_scrapes_every_pod_of_rays_and_no_other(overlay, ours):
    selector = one(overlay, "PodMonitor", "serve-app", "monitoring")["spec"]["selector"]
    assert all(selects(selector, pod.labels) for pod in ours.values())
    assert not selects(selector, redis(overlay).labels)


def test_every_pod_is_limited_both_ways(overlay, ours):
    objects = rendered(overlay)
    for pod in (*ours.values(), redis(overlay)):
        assert not connects(objects, pod, "1.1.1.1", 443)
        assert not connects(objects, pod, "10.1.2.3", 443)
        assert not any(connects(objects, stranger, pod, port) for stranger in STRANGERS for port in pod.ports.values())


def test_pods_of_rays_reach_each_other_at_every_port(overlay, ours):
    objects = rendered(overlay)
    assert all(connects(objects, a, b, port) for a in ours.values() for b in ours.values() for port in (GCS, 30001))


def test_the_operator_reaches_rays_dashboard_agents_and_serve_however_it_was_installed(overlay, ours):
    objects = rendered(overlay)
    for operator in OPERATORS:
        assert all(connects(objects, operator, ours["head"], port) for port in (DASHBOARD, AGENT, SERVE))
        assert not connects(objects, operator, ours["head"], GCS)


def test_http_comes_through_the_ingress_controller_and_metrics_go_to_prometheus(overlay, ours):
    plain, monitored = rendered(overlay), rendered(overlay, "monitoring")
    for pod in ours.values():
        assert connects(plain, TRAEFIK, pod, SERVE)
        assert not any(connects(plain, TRAEFIK, pod, port) for port in (DASHBOARD, METRICS, AGENT, GCS))
        assert not connects(plain, PROMETHEUS, pod, METRICS)
        assert connects(monitored, PROMETHEUS, pod, METRICS)
        assert not connects(monitored, PROMETHEUS, pod, SERVE)


def test_redis_is_for_ray_and_for_kuberays_cleanup(overlay, ours):
    objects = rendered(overlay)
    assert all(connects(objects, pod, redis(overlay), REDIS) for pod in (*ours.values(), CLEANUP))
    assert not any(connects(objects, redis(overlay), pod, GCS) for pod in ours.values())


def test_the_database_and_the_api_server_are_reached_by_the_head_alone_and_the_store_by_all_but_the_webhook_sender(
    overlay, ours
):
    objects = rendered(overlay)
    for outside in (DATABASE, API_SERVER):
        assert [name for name, pod in ours.items() if connects(objects, pod, *outside)] == ["head"]
    readers = [name for name, pod in ours.items() if connects(objects, pod, *STORE)]
    assert readers == (["head", "cpu", "gpu"] if overlay == "s3" else [])


@pytest.mark.parametrize(("component", "group"), [("internet", "webhooks"), ("token-provider", "cpu")])
def test_a_component_opens_the_internet_to_one_group(overlay, ours, component, group):
    objects = rendered(overlay, component)
    assert [name for name, pod in ours.items() if connects(objects, pod, "1.1.1.1", 443)] == [group]
    assert not any(connects(objects, pod, "10.1.2.3", 443) for pod in ours.values())
