"""The section `tenants`."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import Field

from serve_app.config.section import Section

KeyScope: TypeAlias = Literal["submit", "read", "admin", "metrics"]
"""What a key or a token allows."""
SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)
Algorithm: TypeAlias = Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]


class JwtConfig(Section):
    """Tokens of an identity provider, beside the keys that are made here."""

    issuer: Annotated[str, Field(min_length=1)]
    audience: Annotated[str, Field(min_length=1)]
    jwks: Annotated[str, Field(min_length=1)]
    """The provider's public keys: an https:// URL, or a file."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256", "EdDSA")
    tenant_claim: str = "tenant"
    """What names the tenant; a token without a tenant's name in it is refused."""
    scopes_claim: str = "scope"
    """What lists scopes or roles; a token without it has submit and read."""
    roles: Mapping[str, tuple[KeyScope, ...]] = {}
    """Scopes of each role, or value of the scopes' claim. One that is not here allows nothing, but for submit and read.

    admin and metrics, which reach beyond the tenant, are given here alone: `roles: {image-admins: [admin]}`.
    """


class TenantsConfig(Section):
    """Who may come in, and that each has only what is its own. An empty section turns it on, with keys alone."""

    jwt: JwtConfig | None = None
    shared_packs: bool = False
    """Whether tenants may use what does not keep them apart: routes of node packs, and pools that are a ComfyUI."""
    shared_results: bool = False
    """Whether a tenant's job may use what another tenant's has computed, where that names and shows nothing of it."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks of proxies before this server whose X-Forwarded-For the audit log believes; else it has who connects."""
    audit_days: Annotated[float, Field(gt=0)] = 90.0
    """How long the audit log is kept."""
