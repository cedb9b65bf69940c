"""Whose an inquiry is: which of them a tenant may ask, of what it has alone, and which only the server itself."""

from __future__ import annotations


class TenantScoped:
    """An inquiry about what one tenant has: its field `tenant` says whose; "" is the operator, who has everyone's.

    The service says which: see `Service.query`.
    """

    __slots__ = ()


class ServerScoped:
    """An inquiry about what is no tenant's, or everyone's; a tenant's service refuses it."""

    __slots__ = ()
