"""The scope of database queries: those that a tenant may run on its own data, and those of the server."""

from __future__ import annotations


class TenantScoped:
    """A query on the data of one tenant, in its field `tenant`; "" is the operator, who has all data.

    The service sets the field: see `Service.query`.
    """

    __slots__ = ()


class ServerScoped:
    """A query on data of the server or of all tenants; a tenant's service refuses it."""

    __slots__ = ()
