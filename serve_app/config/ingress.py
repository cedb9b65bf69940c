"""The section `ingress`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from serve_app.config.section import Section

Dialect: TypeAlias = Literal["contract", "comfy"]
ROOT_DIALECT: Dialect = "contract"
"""The default dialect of root routes that both dialects have."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""The names of this machine for itself."""
COMMAND_BYTES, IDS = 1_000_000, 1000
QUEUE_ITEMS, QUEUE_BYTES = 2000, 1_000_000
BODIES, LISTENERS, LOGINS, PACK_STREAMS = 200, 1000, 50, 50
BODY_S, LOGIN_S = 120.0, 10.0


class IngressConfig(Section):
    """The HTTP replicas. Serve scales them by concurrent requests."""

    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    ongoing_requests: Annotated[int, Field(ge=1)] = 200
    """Target concurrent requests per replica, long polls included; above it Serve adds one."""
    num_cpus: float = 0.0
    hosts: Mapping[str, str] = {}
    """As a pool's."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 20_000_000
    max_upload_bytes: Annotated[int, Field(ge=1024)] = 100 * 1024 * 1024
    """Size of an uploaded file."""
    max_bodies: Annotated[int, Field(ge=1)] = BODIES
    """Bodies that may be arriving at one replica at once; one more is answered 503."""
    body_s: Annotated[float, Field(gt=0)] = BODY_S
    """How long a body may take to arrive; then it is answered 408."""
    max_logins: Annotated[int, Field(ge=1)] = LOGINS
    """Bodies of POST /login that may be arriving at one replica at once; one more is answered 503."""
    login_s: Annotated[float, Field(gt=0)] = LOGIN_S
    """How long a body of POST /login may take to arrive."""
    max_listeners: Annotated[int, Field(ge=1)] = LISTENERS
    """Websockets and event polls that one replica has at once; one more is answered 503, a handshake too."""
    max_pack_streams: Annotated[int, Field(ge=1)] = PACK_STREAMS
    """Streamed answers and websockets of node packs that one replica relays at once."""
    max_command_bytes: Annotated[int, Field(ge=1024)] = COMMAND_BYTES
    """Size of any other body, for example settings, and of one message of a client on a node pack's websocket."""
    max_ids: Annotated[int, Field(ge=1)] = IDS
    """Jobs that one request cancels or forgets."""
    queue_items: Annotated[int, Field(ge=1)] = QUEUE_ITEMS
    """Jobs that an answer to GET /queue names: all that run, then those that wait, the next to start first."""
    queue_bytes: Annotated[int, Field(ge=0)] = QUEUE_BYTES
    """Memory limit for the prompts in that answer; prompts beyond it are empty."""
    root_dialect: Dialect = ROOT_DIALECT
    """The dialect of root routes that the contract and ComfyUI both have: comfy lets every ComfyUI client use the
    root.
    """
    allowed_hosts: tuple[str, ...] = LOOPBACK
    """Accepted names in a request's Host header, "*.example" for all subdomains; "*" for any, as behind a proxy.
    `serve-app up` accepts any if it listens beyond this machine and the key is not set.
    """
    page_hosts: tuple[str, ...] = ()
    """Hosts that ComfyUI's page may ask beside this server, such as https://api.comfy.org; "*" for any. Browsers
    enforce it. The frontend asks some for news, statistics and accounts; scripts of node packs may need others.
    """
    allowed_origins: tuple[str, ...] = ()
    """Origins whose pages may use this server beside its own, as https://app.example; "*" for any."""
