"""Which tokens of an identity provider hold, as the configuration says it; `tokens.py` checks them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Algorithm: TypeAlias = Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Which tokens hold. jwks: the provider's keys, a URL or a file. tenant_claim, scopes_claim: where a token says so.

    roles: what each value of the scopes' claim allows; submit and read need no entry. What reaches beyond the tenant,
    admin and metrics, is of those alone who have a role with it: providers have scopes of their own of these names.
    """

    issuer: str
    audience: str
    jwks: str
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")
    tenant_claim: str = "tenant"
    scopes_claim: str = "scope"
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
