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
    """Tokens of an identity provider, accepted beside API keys."""

    issuer: Annotated[str, Field(min_length=1)]
    audience: Annotated[str, Field(min_length=1)]
    jwks: Annotated[str, Field(min_length=1)]
    """The provider's public keys: an https:// URL, or a file."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256", "EdDSA")
    tenant_claim: str = "tenant"
    """The claim with the tenant's name; a token without it is refused."""
    scopes_claim: str = "scope"
    """The claim with scopes or roles; a token without it has submit and read."""
    roles: Mapping[str, tuple[KeyScope, ...]] = {}
    """Scopes of each role, or value of the scopes' claim. Unlisted values allow nothing, except submit and read. admin
    and metrics, which reach beyond the tenant, can be granted here only: `roles: {image-admins: [admin]}`.
    """


class TenantsConfig(Section):
    """Authentication and separation of tenants. An empty section turns it on, with API keys alone."""

    jwt: JwtConfig | None = None
    shared_packs: bool = False
    """Whether tenants may use what does not separate them: routes of node packs, and pools that are a ComfyUI."""
    shared_results: bool = False
    """Whether a tenant's job may use cached results of another tenant, if they contain none of its files or names."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks of proxies before this server whose X-Forwarded-For the audit log trusts; else it logs the peer."""
    audit_days: Annotated[float, Field(gt=0)] = 90.0
    """How long the audit log is kept."""
