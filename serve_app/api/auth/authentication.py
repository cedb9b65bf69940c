"""Authentication: a request's credentials become its principal, or the request is refused.

A credential is an API key or a token, given as a bearer, in X-API-Key or as `?token=`, or a session in the page's
cookie. They are removed before handlers run. Keys are cached for KEY_S; one that is in use is refreshed before it
expires, so that no request waits for it. Longer requests have a lease (`lease.py`). Another site's page cannot use the
cookie: `OriginMiddleware` refuses its requests, and browsers do not send the cookie with them.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from cachetools import LRUCache
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from serve_app.api.auth.lease import READS, LeasedConnection, Leases
from serve_app.api.auth.principal import OPERATOR, PRINCIPAL, Principal
from serve_app.api.operator.audit import AuditLog
from serve_app.api.problems import Answer
from serve_app.api.request import REQUESTS_LEFT
from serve_app.api.request_rate import RequestRate
from serve_app.api.source import Network, source
from serve_app.errors import (
    ForbiddenError,
    QuotaError,
    QuotaLeft,
    ServeAppError,
    UnauthenticatedError,
    UnavailableError,
)
from serve_app.service.service import Service
from serve_app.store.tenants.api_keys import PREFIX, AddKey, ApiKey, EndKey, FindKeys, new_session, parts
from serve_app.store.tenants.tenants import is_tenant

if TYPE_CHECKING:
    from serve_app.api.auth.tokens import TokenVerifier


KEY_S = 3.0
"""How long a key is cached: a revoked key is refused everywhere once this has passed."""
AWAY_S = 60.0
"""How long a cached key stays valid while the scheduler cannot be reached; no key can be revoked meanwhile."""
TOKEN_S = 60.0
"""How long a valid token is not checked again; less if it expires before."""
KNOWN = 10_000
"""Keys and tokens that a process remembers."""
LOOKUPS, CHECKS = 8, 2
"""How many keys are looked up, and tokens checked, at once: requests with made-up credentials must not keep others from
the database, or from this process's threads, which may wait for the provider.
"""

COOKIE = "serve_app_session"
LOGIN, LOGOUT = "/login", "/logout"
OPEN = frozenset({LOGIN, "/healthz", "/readyz"})
"""Paths that need no credentials."""
METERED = frozenset({"/status", "/metrics"})
"""Paths about the state of the whole server, for callers with the scope metrics."""
ENDED = "has expired or was revoked"
NOBODY = Principal("", "", frozenset())
ALL_TENANTS = "*"
"""The tenant's name with which an operator addresses all tenants."""
_HEADERS = frozenset({b"authorization", b"x-api-key", b"x-tenant"})


class Authenticator:
    """Authenticates requests and counts them per tenant; one per process.

    service: its database has the keys. tokens: None where tokens are not configured. proxies: networks whose
    X-Forwarded-For is trusted, for the audit log.
    """

    def __init__(
        self,
        service: Callable[[], Service],
        audit: AuditLog,
        tokens: TokenVerifier | None = None,
        proxies: Sequence[Network] = (),
    ) -> None:
        self.audit = audit
        self.proxies = tuple(proxies)
        self.rate = RequestRate(lambda tenant: service().limits.quotas.of(tenant).requests_a_minute)
        self._service = service
        self._tokens = tokens
        self._keys: LRUCache[str, tuple[float, ApiKey | None]] = LRUCache(KNOWN)
        self._authenticate: dict[str, asyncio.Task[ApiKey | None]] = {}
        self._principals: LRUCache[str, tuple[float, Principal]] = LRUCache(KNOWN)
        self.leases = Leases(self._look_again)
        self._lookups = asyncio.Semaphore(LOOKUPS)
        self._checks = asyncio.Semaphore(CHECKS)

    async def principal(self, credential: str) -> Principal:
        """Return the principal of a credential. Errors: UnauthenticatedError with the reason; UnavailableError."""
        if (key := parts(credential)) is not None:
            return await self._of_key(*key)
        if self._tokens is None:
            raise UnauthenticatedError(f"this is no key: a key begins with {PREFIX}_ and has 59 characters")
        return await self._of_token(self._tokens, credential)

    async def _of_key(self, key_id: str, secret: str) -> Principal:
        known_s, key = self._keys.get(key_id, (float("-inf"), None))
        age_s = time.monotonic() - known_s
        if age_s > KEY_S:
            try:
                key = await asyncio.shield(self._look_up(key_id))
            except UnavailableError:
                if key is None or age_s > AWAY_S:
                    raise
        elif age_s > KEY_S / 2 and key is not None:
            self._look_up(key_id)
        now_s = time.time()
        if key is None:
            raise UnauthenticatedError("the key is unknown")
        if not key.holds(secret, now_s):
            why = ENDED if key.ended(now_s) else "is wrong"
            raise UnauthenticatedError(f"the key {key.shown} {why}")
        lease = self.leases.grant(key_id, key_id, math.inf if key.ends_s is None else key.ends_s)
        session = "" if key.session_of is None else key_id
        return Principal(key.tenant, key.title, frozenset(key.scopes), lease, session)  # type: ignore[arg-type]

    def _look_up(self, key_id: str) -> asyncio.Task[ApiKey | None]:
        """Return the look-up of a key, shared by all requests that wait for it."""
        if (asking := self._authenticate.get(key_id)) is None:
            asking = self._authenticate[key_id] = asyncio.create_task(self._ask(key_id))
            asking.add_done_callback(lambda done: self._answered(key_id, done))
        return asking

    def _answered(self, key_id: str, asking: asyncio.Task[ApiKey | None]) -> None:
        self._authenticate.pop(key_id, None)
        if not asking.cancelled() and asking.exception() is None:
            self._learn(key_id, asking.result())

    async def _ask(self, key_id: str) -> ApiKey | None:
        async with self._lookups:
            found = await self._service().query(FindKeys((key_id,)))
        return found[0] if found else None

    async def _look_again(self, key_ids: Sequence[str]) -> None:
        found = {key.key_id: key for key in await self._service().query(FindKeys(tuple(key_ids)))}
        for key_id in key_ids:
            self._learn(key_id, found.get(key_id))

    def _learn(self, key_id: str, key: ApiKey | None) -> None:
        self._keys[key_id] = (time.monotonic(), key)
        if key is None or key.ended(time.time()):
            self.leases.end(key_id, "the key is unknown" if key is None else f"the key {key.shown} {ENDED}")

    async def open_session(self, credential: str) -> tuple[Principal, str, float]:
        """Return the principal of a key or token, a session that ends with it, and the session's lifetime in seconds.

        Errors: UnauthenticatedError, UnavailableError.
        """
        principal = await self.principal(credential)
        if principal.session:
            raise UnauthenticatedError("a session is no key: log in with the key that it is of")
        session, text = new_session(
            principal.lease.key_id, principal.tenant, principal.name, principal.scopes, principal.lease.until_s
        )
        await self._service().query(AddKey(session))
        return principal, text, (session.ends_s or 0.0) - time.time()

    async def close(self) -> None:
        """Flush the audit log and stop checking leases."""
        self.leases.close()
        await self.audit.close()

    async def end_session(self, session: str) -> None:
        """End a session: in this process at once, in the others within seconds. Errors: UnavailableError."""
        await self._service().query(EndKey(session))
        await self._look_again((session,))

    async def _of_token(self, tokens: TokenVerifier, text: str) -> Principal:
        name = hashlib.sha256(text.encode(errors="replace")).hexdigest()
        until_s, principal = self._principals.get(name, (0.0, NOBODY))
        if until_s <= time.time():
            async with self._checks:
                token = await asyncio.to_thread(tokens.check, text)
            lease = self.leases.grant(name, "", token.until_s)
            principal = Principal(token.tenant, token.subject, frozenset(token.scopes), lease)  # type: ignore[arg-type]
            self._principals[name] = (min(token.until_s, time.time() + TOKEN_S), principal)
        return principal


class AuthenticationMiddleware:
    """Middleware that authenticates requests, and checks the scopes and request quota of their tenant.

    Requests that change something, and refused ones, are written to the audit log.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator, answer: Answer) -> None:
        self._app, self._authenticator, self._answer = app, authenticator, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403 in its dialect's form."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        principal, left = NOBODY, None
        try:
            if scope["path"] not in OPEN:
                principal = await self._authenticate(connection)
                left = self._check(principal, connection)
        except ServeAppError as error:
            self._note(scope, principal, _status(error), str(error))
            await self._refuse(connection, error, receive, send)
            return
        seen = {**without_credentials(scope), PRINCIPAL: principal, REQUESTS_LEFT: left}
        if scope["type"] == "websocket" or scope["method"] in READS:
            audited: Send = send
        else:
            audited = self._audited(scope, principal, send)
        leased = LeasedConnection(self._authenticator.leases, principal.lease, scope, receive, audited)
        if await leased.pass_on(self._app, seen, lambda error: self._refuse(connection, error, receive, send)):
            self._note(scope, principal, 401, principal.lease.ended)

    async def _authenticate(self, connection: HTTPConnection) -> Principal:
        given = credential(connection)
        if given is None:
            raise UnauthenticatedError("the request has no key: send one as 'Authorization: Bearer KEY'")
        return _acting(await self._authenticator.principal(given), connection)

    def _check(self, principal: Principal, connection: HTTPConnection) -> QuotaLeft | None:
        """Refuse a request beyond the quota or the scopes; return what is left of the quota.

        Errors: QuotaError, ForbiddenError.
        """
        left = None if principal.may("admin") else self._authenticator.rate.take(principal.tenant)
        if connection.scope["path"] in METERED:
            principal.require("metrics")
        elif connection.scope["path"] != LOGOUT:
            reads = connection.scope["type"] == "websocket" or connection.scope["method"] in READS
            principal.require("read" if reads else "submit")
        return left

    async def _refuse(self, connection: HTTPConnection, error: ServeAppError, receive: Receive, send: Send) -> None:
        scope = connection.scope
        if scope["type"] == "websocket":
            socket = WebSocket(scope, receive, send)
            if "websocket.http.response" in scope.get("extensions", {}):
                await socket.send_denial_response(self._answer(Request({**scope, "type": "http"}), error))
            else:
                await socket.close()
            return
        if isinstance(error, UnauthenticatedError) and _navigates(connection):
            await RedirectResponse(LOGIN, 303)(scope, receive, send)
            return
        await self._answer(Request(scope, receive), error)(scope, receive, send)

    def _audited(self, scope: Scope, principal: Principal, send: Send) -> Send:
        async def audited_send(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["path"] != LOGIN:
                self._note(scope, principal, message["status"], "")
            await send(message)

        return audited_send

    def _note(self, scope: Scope, principal: Principal, status: int, reason: str) -> None:
        method, where = scope.get("method", "WEBSOCKET"), source(scope, self._authenticator.proxies)
        self._authenticator.audit.note(principal, f"{method} {scope['path']}", where, status, reason)


def credential(connection: HTTPConnection) -> str | None:
    """Return a request's key or token; None without one."""
    headers = connection.headers
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and rest.strip():
        return rest.strip()
    return headers.get("x-api-key") or connection.query_params.get("token") or connection.cookies.get(COOKIE) or None


def without_credentials(scope: Scope) -> Scope:
    """Return a request's ASGI scope without its credentials, so that no pack and no log sees them."""
    headers = []
    for name, value in scope["headers"]:
        if name == b"cookie":
            kept = [c for c in value.split(b";") if c.strip().partition(b"=")[0] != COOKIE.encode()]
            if kept:
                headers.append((name, b";".join(kept)))
        elif name not in _HEADERS:
            headers.append((name, value))
    query: bytes = scope["query_string"]
    if query:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        others = [pair for pair in pairs if pair[0] != "token"]
        if len(others) < len(pairs):
            query = urlencode(others).encode()
    return {**scope, "headers": headers, "query_string": query}


def _acting(principal: Principal, connection: HTTPConnection) -> Principal:
    """Return the principal to act as: an admin may act as any tenant, or as the operator. Errors: ForbiddenError."""
    asked = connection.headers.get("x-tenant")
    if not asked and connection.scope["query_string"]:
        asked = connection.query_params.get("tenant")
    if not asked or asked == principal.tenant:
        return principal
    if not principal.may("admin"):
        raise ForbiddenError("only credentials with the scope admin may ask as another tenant")
    if asked == ALL_TENANTS:
        return replace(principal, tenant=OPERATOR.tenant)
    if not is_tenant(asked):
        raise ForbiddenError(f"{asked[:80]!r} is no tenant's name")
    return replace(principal, tenant=asked)


def _navigates(connection: HTTPConnection) -> bool:
    """Whether the request is a browser's navigation to a page."""
    return connection.scope["method"] == "GET" and "text/html" in connection.headers.get("accept", "")


def _status(error: ServeAppError) -> int:
    if isinstance(error, QuotaError):
        return 429
    return 401 if isinstance(error, UnauthenticatedError) else 403 if isinstance(error, ForbiddenError) else 503
