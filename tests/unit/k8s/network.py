"""A small model of what a cluster does with selectors: which pods they select, and who may connect to whom.

Pods have the labels that KubeRay 1.7 gives them (`labelPod` in its ray-operator/controllers/ray/common/pod.go).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.unit.k8s.manifests import one, pods

CLUSTER = "serve-app-x7k2p"
"""The name that KubeRay gives the RayService's cluster, but for its random end."""


@dataclass(frozen=True)
class Pod:
    """A pod with its ports by name."""

    name: str
    labels: dict[str, str]
    namespace: str = "serve-app"
    ports: dict[str, int] = field(default_factory=dict)


def made_by_kuberay(overlay: str) -> list[Pod]:
    """Return one pod of each group of the RayService; a label of the template's wins over KubeRay's."""
    return [
        Pod(
            name,
            {
                "ray.io/is-ray-node": "yes",
                "ray.io/cluster": CLUSTER,
                "ray.io/node-type": "head" if name == "head" else "worker",
                "ray.io/group": "headgroup" if name == "head" else name,
                "ray.io/identifier": f"{CLUSTER}-{'head' if name == 'head' else 'worker'}",
                "app.kubernetes.io/name": "kuberay",
                "app.kubernetes.io/created-by": "kuberay-operator",
            }
            | template["metadata"]["labels"],
            ports={p["name"]: p["containerPort"] for p in template["spec"]["containers"][0]["ports"]},
        )
        for name, template in pods(overlay).items()
    ]


def redis(overlay: str) -> Pod:
    """Return the pod of the StatefulSet `redis`."""
    template = one(overlay, "StatefulSet", "redis")["spec"]["template"]
    ports = {p["name"]: p["containerPort"] for p in template["spec"]["containers"][0]["ports"]}
    return Pod("redis", template["metadata"]["labels"], ports=ports)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector selects what has these labels."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(_meets(each, labels) for each in selector.get("matchExpressions", []))


def _meets(expression: dict[str, Any], labels: dict[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case other:
            raise ValueError(f"no operator of selectors: {other}")


def connects(objects: Sequence[dict[str, Any]], source: Pod, destination: Pod | str, port: int) -> bool:
    """Whether these objects' NetworkPolicies let a TCP connection pass. destination: a pod, or an address outside."""
    names = {} if isinstance(destination, str) else destination.ports
    if not _passes(_limits(objects, "Egress", source), source, destination, names, port):
        return False
    if isinstance(destination, str):
        return True
    return _passes(_limits(objects, "Ingress", destination), destination, source, names, port)


def _limits(objects: Sequence[dict[str, Any]], way: str, pod: Pod) -> list[list[dict[str, Any]]]:
    """Return the rules of each NetworkPolicy that limits what this pod sends or receives; `from` is called `to`."""
    return [
        [{"to": rule.get("to", rule.get("from")), "ports": rule.get("ports")} for rule in spec.get(way.lower(), [])]
        for found in objects
        if found["kind"] == "NetworkPolicy" and found["metadata"]["namespace"] == pod.namespace
        for spec in [found["spec"]]
        if way in spec["policyTypes"] and selects(spec["podSelector"], pod.labels)
    ]


def _passes(limits: list[list[dict[str, Any]]], pod: Pod, peer: Pod | str, names: dict[str, int], port: int) -> bool:
    """Whether a pod's rules let it connect with that peer. Without any policy everything passes."""
    return not limits or any(
        _has(rule["ports"], names, port) and any(_is(each, peer, pod.namespace) for each in rule["to"])
        for rules in limits
        for rule in rules
    )


def _has(ports: list[dict[str, Any]] | None, names: dict[str, int], port: int) -> bool:
    """Whether a rule's ports, all if it has none, include this one of the pod whose ports have these names."""
    return ports is None or any(
        each["protocol"] == "TCP" and names.get(each["port"], each["port"]) == port for each in ports
    )


def _is(wanted: dict[str, Any], peer: Pod | str, namespace: str) -> bool:
    """Whether a peer of a policy in that namespace is this one."""
    if isinstance(peer, str) or "ipBlock" in wanted:
        return isinstance(peer, str) and "ipBlock" in wanted and _contains(wanted["ipBlock"], peer)
    space = {"kubernetes.io/metadata.name": peer.namespace}
    there = (
        selects(wanted["namespaceSelector"], space) if "namespaceSelector" in wanted else peer.namespace == namespace
    )
    return there and selects(wanted.get("podSelector", {}), peer.labels)


def _contains(block: dict[str, Any], address: str) -> bool:
    def within(cidr: str) -> bool:
        return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)

    return within(block["cidr"]) and not any(within(cidr) for cidr in block.get("except", []))
