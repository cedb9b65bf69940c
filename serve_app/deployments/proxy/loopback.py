"""Lets Serve's replicas listen where their node does.

Serve binds each replica's gRPC server, through which other replicas call it, to every interface and has no setting for
it. It does so after the deployment's constructor has run, so a constructor comes in time.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import ray
from ray._common.network_utils import build_address
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica


def keep_to_the_node() -> None:
    """Call in a deployment's constructor: on a node whose address is this machine's alone, listen there only."""
    address = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(address).is_loopback:
        return

    def add_port(server: Any, _everywhere: str) -> int:
        port: int = add_port_to_grpc_server(server, build_address(address, 0))
        return port

    replica.add_port_to_grpc_server = add_port
