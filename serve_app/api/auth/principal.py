"""Who makes a request: a principal of one tenant, with what it may do.

`identity.py` finds it out; without tenants everyone is the operator, who may do everything and sees all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from starlette.requests import HTTPConnection, Request

from serve_app.api.auth.lease import UNLIMITED, Lease
from serve_app.api.routing import Given
from serve_app.config.tenants import SCOPES, KeyScope
from serve_app.errors import ForbiddenError

PRINCIPAL = "principal"
"""The key of an ASGI scope that says who it is."""


@dataclass(frozen=True, slots=True)
class Principal:
    """tenant: whose jobs and files it has; "" is the operator's, who has all. name: of its key, as people gave it.

    lease: how long its credential holds. session: the id of the session that the credential is of, "" for another.
    """

    tenant: str
    name: str
    scopes: frozenset[KeyScope]
    lease: Lease = field(default=UNLIMITED, compare=False)
    session: str = ""

    def may(self, scope: KeyScope) -> bool:
        """Whether it has a scope; an admin has all."""
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: KeyScope) -> None:
        """Refuse who has not a scope. Errors: ForbiddenError."""
        if not self.may(scope):
            has = ", ".join(sorted(self.scopes)) or "none"
            raise ForbiddenError(f"this needs the scope {scope}; the credentials have {has}")


OPERATOR = Principal("", "", frozenset(SCOPES))


def principal_of(connection: HTTPConnection) -> Principal:
    """Return who makes a request."""
    principal: Principal = connection.scope.get(PRINCIPAL, OPERATOR)
    return principal


def _admin(request: Request) -> Principal:
    principal = principal_of(request)
    principal.require("admin")
    return principal


Admin = Annotated[Principal, Given(_admin)]
"""Who asks, as the parameter of a handler that is for admins alone."""
