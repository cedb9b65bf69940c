"""Who asks: credentials in a request become its principal, or the request is refused.

A credential is an API key or a token, given as a bearer, in X-API-Key or as `?token=`, or a session in the page's
cookie. What comes behind sees none of them. Keys are known for KEY_S; one that is in use is looked up again before that
is over, so that nobody waits for it. What lasts longer has a lease (`lease.py`). Another site's page cannot use the
cookie: `Door` refuses its requests, and browsers send none along.
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

from serve_app.api.auth.lease import READS, Leased, Leases
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
from serve_app.store.tenants.api_keys import AddKey, ApiKey, EndKey, FindKeys, new_session, parts
from serve_app.store.tenants.tenants import is_tenant

if TYPE_CHECKING:
    from serve_app.api.auth.tokens import Tokens


KEY_S = 3.0
"""How long what is known of a key counts: a key that was revoked is refused everywhere once this has passed."""
AWAY_S = 60.0
"""How long it goes on to count while the scheduler cannot be asked; no key can be revoked meanwhile."""
TOKEN_S = 60.0
"""How long a token that held is not checked again; less if it ends before."""
KNOWN = 10_000
"""Keys and tokens that a process remembers."""
LOOKUPS, CHECKS = 8, 2
"""Keys that are looked up, and tokens that are checked at once: whoever makes some up must not keep others from the
database, or from this process's threads, in which the provider may be waited for."""

COOKIE = "serve_app_session"
LOGIN, LOGOUT = "/login", "/logout"
OPEN = frozenset({LOGIN, "/healthz", "/readyz"})
"""Paths that ask nobody who they are."""
METERED = frozenset({"/status", "/metrics"})
"""Paths that tell how the whole server does, for those with the scope metrics."""
ENDED = "has expired or was revoked"
NOBODY = Principal("", "", frozenset())
EVERYONE = "*"
"""As whom the operator asks for what is everyone's."""
_HEADERS = frozenset({b"authorization", b"x-api-key", b"x-tenant"})


class Identity:
    """Finds out who asks, and how often; one a process.

    service: whose database knows the keys. tokens: None where there are none. proxies: who is believed that it speaks
    for another, in the audit log.
    """

    def __init__(
        self,
        service: Callable[[], Service],
        audit: AuditLog,
        tokens: Tokens | None = None,
        proxies: Sequence[Network] = (),
    ) -> None:
        self.audit = audit
        self.proxies = tuple(proxies)
        self.rate = RequestRate(lambda tenant: service().limits.quotas.of(tenant).requests_a_minute)
        self._service = service
        self._tokens = tokens
        self._keys: LRUCache[str, tuple[float, ApiKey | None]] = LRUCache(KNOWN)
        self._asking: dict[str, asyncio.Task[ApiKey | None]] = {}
        self._principals: LRUCache[str, tuple[float, Principal]] = LRUCache(KNOWN)
        self.leases = Leases(self._look_again)
        self._lookups = asyncio.Semaphore(LOOKUPS)
        self._checks = asyncio.Semaphore(CHECKS)

    async def principal(self, credential: str) -> Principal:
        """Return whose a credential is. Errors: UnauthenticatedError, saying why; UnavailableError."""
        if (key := parts(credential)) is not None:
            return await self._of_key(*key)
        if self._tokens is None:
            raise UnauthenticatedError("the key has not the form of one")
        return await self._of_token(self._tokens, credential)

    async def _of_key(self, key_id: str, secret: str) -> Principal:
        known_s, key = self._keys.get(key_id, (float("-inf"), None))
        age_s = time.monotonic() - known_s
        if age_s > KEY_S:
            try:
                key = await asyncio.shield(self._asked(key_id))
            except UnavailableError:
                if key is None or age_s > AWAY_S:
                    raise
        elif age_s > KEY_S / 2 and key is not None:
            self._asked(key_id)
        now_s = time.time()
        if key is None:
            raise UnauthenticatedError("the key is unknown")
        if not key.holds(secret, now_s):
            why = ENDED if key.ended(now_s) else "is wrong"
            raise UnauthenticatedError(f"the key {key.shown} {why}")
        lease = self.leases.grant(key_id, key_id, math.inf if key.ends_s is None else key.ends_s)
        session = "" if key.session_of is None else key_id
        return Principal(key.tenant, key.title, frozenset(key.scopes), lease, session)  # type: ignore[arg-type]

    def _asked(self, key_id: str) -> asyncio.Task[ApiKey | None]:
        """Return the look-up of a key, which all who wait for it share."""
        if (asking := self._asking.get(key_id)) is None:
            asking = self._asking[key_id] = asyncio.create_task(self._ask(key_id))
            asking.add_done_callback(lambda done: self._answered(key_id, done))
        return asking

    def _answered(self, key_id: str, asking: asyncio.Task[ApiKey | None]) -> None:
        self._asking.pop(key_id, None)
        if not asking.cancelled() and asking.exception() is None:
            self._learn(key_id, asking.result())

    async def _ask(self, key_id: str) -> ApiKey | None:
        async with self._lookups:
            found = await self._service().inquire(FindKeys((key_id,)))
        return found[0] if found else None

    async def _look_again(self, key_ids: Sequence[str]) -> None:
        found = {key.key_id: key for key in await self._service().inquire(FindKeys(tuple(key_ids)))}
        for key_id in key_ids:
            self._learn(key_id, found.get(key_id))

    def _learn(self, key_id: str, key: ApiKey | None) -> None:
        self._keys[key_id] = (time.monotonic(), key)
        if key is None or key.ended(time.time()):
            self.leases.end(key_id, "the key is unknown" if key is None else f"the key {key.shown} {ENDED}")

    async def open_session(self, credential: str) -> tuple[Principal, str, float]:
        """Return whose a key or token is, a session that ends with it, and in how many seconds that ends by itself.

        Errors: UnauthenticatedError, UnavailableError.
        """
        principal = await self.principal(credential)
        if principal.session:
            raise UnauthenticatedError("a session is no key: log in with the key that it is of")
        session, text = new_session(
            principal.lease.key_id, principal.tenant, principal.name, principal.scopes, principal.lease.until_s
        )
        await self._service().inquire(AddKey(session))
        return principal, text, (session.ends_s or 0.0) - time.time()

    async def close(self) -> None:
        """Write what of the audit log waits, and look at no lease any more."""
        self.leases.close()
        await self.audit.close()

    async def end_session(self, session: str) -> None:
        """End a session everywhere, here at once. Errors: UnavailableError."""
        await self._service().inquire(EndKey(session))
        await self._look_again((session,))

    async def _of_token(self, tokens: Tokens, text: str) -> Principal:
        name = hashlib.sha256(text.encode(errors="replace")).hexdigest()
        until_s, principal = self._principals.get(name, (0.0, NOBODY))
        if until_s <= time.time():
            async with self._checks:
                token = await asyncio.to_thread(tokens.check, text)
            lease = self.leases.grant(name, "", token.until_s)
            principal = Principal(token.tenant, token.subject, frozenset(token.scopes), lease)  # type: ignore[arg-type]
            self._principals[name] = (min(token.until_s, time.time() + TOKEN_S), principal)
        return principal


class Identified:
    """Middleware that lets in whom credentials name, within their tenant, for what their scopes and quota allow.

    What changes something, and what is refused, is written to the audit log.
    """

    def __init__(self, app: ASGIApp, identity: Identity, answer: Answer) -> None:
        self._app, self._identity, self._answer = app, identity, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403 in its dialect's form."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        principal, left = NOBODY, None
        try:
            if scope["path"] not in OPEN:
                principal = await self._asking(connection)
                left = self._check(principal, connection)
        except ServeAppError as error:
            self._note(scope, principal, _status(error), str(error))
            await self._refuse(connection, error, receive, send)
            return
        seen = {**without_credentials(scope), PRINCIPAL: principal, REQUESTS_LEFT: left}
        if scope["type"] == "websocket" or scope["method"] in READS:
            told: Send = send
        else:
            told = self._noting(scope, principal, send)
        leased = Leased(self._identity.leases, principal.lease, scope, receive, told)
        if await leased.pass_on(self._app, seen, lambda error: self._refuse(connection, error, receive, send)):
            self._note(scope, principal, 401, principal.lease.ended)

    async def _asking(self, connection: HTTPConnection) -> Principal:
        given = credential(connection)
        if given is None:
            raise UnauthenticatedError("the request has no key: send one as 'Authorization: Bearer KEY'")
        return _acting(await self._identity.principal(given), connection)

    def _check(self, principal: Principal, connection: HTTPConnection) -> QuotaLeft | None:
        """Refuse what is one too many, or beyond the scopes; return what is left of how many there may be.

        Errors: QuotaError, ForbiddenError.
        """
        left = None if principal.may("admin") else self._identity.rate.take(principal.tenant)
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

    def _noting(self, scope: Scope, principal: Principal, send: Send) -> Send:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["path"] != LOGIN:
                self._note(scope, principal, message["status"], "")
            await send(message)

        return noting

    def _note(self, scope: Scope, principal: Principal, status: int, reason: str) -> None:
        method, where = scope.get("method", "WEBSOCKET"), source(scope, self._identity.proxies)
        self._identity.audit.note(principal, f"{method} {scope['path']}", where, status, reason)


def credential(connection: HTTPConnection) -> str | None:
    """Return the key or token that a request gives; None without one."""
    headers = connection.headers
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and rest.strip():
        return rest.strip()
    return headers.get("x-api-key") or connection.query_params.get("token") or connection.cookies.get(COOKIE) or None


def without_credentials(scope: Scope) -> Scope:
    """Return a request's scope without what it proves itself by, which is nobody's further on: no pack's, no log's."""
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
    """Return as whom a principal asks: an admin may as any tenant, or as the operator. Errors: ForbiddenError."""
    asked = connection.headers.get("x-tenant")
    if not asked and connection.scope["query_string"]:
        asked = connection.query_params.get("tenant")
    if not asked or asked == principal.tenant:
        return principal
    if not principal.may("admin"):
        raise ForbiddenError("only credentials with the scope admin may ask as another tenant")
    if asked == EVERYONE:
        return replace(principal, tenant=OPERATOR.tenant)
    if not is_tenant(asked):
        raise ForbiddenError(f"{asked[:80]!r} is no tenant's name")
    return replace(principal, tenant=asked)


def _navigates(connection: HTTPConnection) -> bool:
    """Whether a person at a browser asks for a page."""
    return connection.scope["method"] == "GET" and "text/html" in connection.headers.get("accept", "")


def _status(error: ServeAppError) -> int:
    if isinstance(error, QuotaError):
        return 429
    return 401 if isinstance(error, UnauthenticatedError) else 403 if isinstance(error, ForbiddenError) else 503
