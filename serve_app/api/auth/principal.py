"""The principal of a request: its tenant and its scopes.

`authentication.py` determines it; without tenants every caller is the operator, who may do and see everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from starlette.requests import HTTPConnection, Request

from serve_app.api.auth.lease import UNLIMITED, Lease
from serve_app.api.routing import Depends
from serve_app.config.tenants import SCOPES, KeyScope
from serve_app.errors import ForbiddenError

PRINCIPAL = "principal"
"""The ASGI scope's key of the principal."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request.

    tenant: whose jobs and files it may use; "" is the operator, who has all. name: the title of its key. lease: how
    long its credential is valid. session: the session's id where the credential is one, else "".
    """

    tenant: str
    name: str
    scopes: frozenset[KeyScope]
    lease: Lease = field(default=UNLIMITED, compare=False)
    session: str = ""

    def may(self, scope: KeyScope) -> bool:
        """Whether the principal has a scope; an admin has all."""
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: KeyScope) -> None:
        """Check that the principal has a scope. Errors: ForbiddenError."""
        if not self.may(scope):
            has = ", ".join(sorted(self.scopes)) or "none"
            raise ForbiddenError(f"this needs the scope {scope}; the credentials have {has}")


OPERATOR = Principal("", "", frozenset(SCOPES))


def principal_of(connection: HTTPConnection) -> Principal:
    """Return a request's principal."""
    principal: Principal = connection.scope.get(PRINCIPAL, OPERATOR)
    return principal


def _admin(request: Request) -> Principal:
    principal = principal_of(request)
    principal.require("admin")
    return principal


Admin = Annotated[Principal, Depends(_admin)]
"""The principal, as the parameter of a handler that only admins may call."""
