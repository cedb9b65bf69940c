"""Credentials that hold and such as do not, each answered in its dialect's form and written to the audit log."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import httpx
import pytest
import sqlalchemy as sa
import websockets
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from serve_app.api.auth import authentication as identities
from serve_app.api.auth import tokens as token_checks
from serve_app.api.auth.lease import Lease, LeasedConnection, Leases
from serve_app.api.auth.tokens import TokenVerifier
from serve_app.api.concurrency_limits import ConcurrencyLimit
from serve_app.config.quotas import Quota, Quotas
from serve_app.config.tenants import JwtConfig, KeyScope
from serve_app.errors import InvalidSubmissionError, UnauthenticatedError, UnavailableError
from serve_app.scheduler.protocol.client import SchedulerClient
from serve_app.service import service as services
from serve_app.service.request_limits import Limits
from serve_app.service.service import Service
from serve_app.store.database.changes import TenantUsed
from serve_app.store.database.query_scope import ServerScoped
from serve_app.store.files.volume import Volume
from serve_app.store.page.userdata import UserData
from serve_app.store.tenants import api_keys, usage
from serve_app.store.tenants.api_keys import AddKey, EndKey, FindKeys, minted, parts
from serve_app.store.tenants.audit import ReadAudit
from serve_app.store.tenants.listing import DAY_S
from tests.unit.api.tenant_world import WORKFLOW, World, world

RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8))


def jwks() -> dict[str, Any]:
    one, two = RSA_KEY.public_key().public_numbers(), EC_KEY.public_key().public_numbers()
    return {
        "keys": [
            {"kty": "RSA", "kid": "r", "n": number(one.n), "e": number(one.e)},
            {"kty": "EC", "kid": "e", "crv": "P-256", "x": b64(two.x.to_bytes(32)), "y": b64(two.y.to_bytes(32))},
            {"kty": "OKP", "kid": "d", "crv": "Ed25519", "x": b64(ED_KEY.public_key().public_bytes_raw())},
        ]
    }


def signed(algorithm: str, signed_text: bytes) -> bytes:
    match algorithm:
        case "RS256":
            return RSA_KEY.sign(signed_text, padding.PKCS1v15(), hashes.SHA256())
        case "ES256":
            r, s = utils.decode_dss_signature(EC_KEY.sign(signed_text, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32) + s.to_bytes(32)
        case "EdDSA":
            return ED_KEY.sign(signed_text)
    return b""


def token(algorithm: str = "RS256", kid: str = "r", *, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """Return a token that holds but for what is given."""
    usual = {"iss": "https://id.example", "aud": "images", "tenant": "a", "sub": "ann", "exp": time.time() + 60}
    head = b64(json.dumps({"alg": algorithm, "kid": kid, **(header or {})}).encode())
    text = f"{head}.{b64(json.dumps({**usual, **claims}).encode())}"
    return f"{text}.{b64(signed(algorithm, text.encode()))}"


@pytest.fixture
def tokens(tmp_path: Path) -> TokenVerifier:
    place = tmp_path / "jwks.json"
    place.write_text(json.dumps(jwks()))
    roles: dict[str, tuple[KeyScope, ...]] = {"editor": ("submit", "read")}
    return TokenVerifier(
        JwtConfig(issuer="https://id.example", audience="images", jwks=str(place), scopes_claim="roles", roles=roles)
    )


@pytest.mark.parametrize(("algorithm", "kid"), [("RS256", "r"), ("ES256", "e"), ("EdDSA", "d")])
def test_a_token_of_the_issuers_holds(tokens, algorithm, kid):
    found = tokens.check(token(algorithm, kid, aud=["x", "images"], roles=["editor", "unknown"]))
    assert (found.tenant, found.subject, found.scopes) == ("a", "ann", ("submit", "read"))


def test_all_who_come_first_wait_for_the_providers_keys_which_are_read_once(tokens, monkeypatch):
    reads = []

    def slow(place: str) -> bytes:
        reads.append(place)
        time.sleep(0.2)
        return json.dumps(jwks()).encode()

    monkeypatch.setattr(token_checks, "_content", slow)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(tokens.check, [token() for _ in range(4)]))
    assert [each.tenant for each in found] == ["a"] * 4
    assert len(reads) == 1


def test_where_the_provider_has_never_answered_no_token_is_called_wrong(tokens, monkeypatch):
    reads = []

    def away(place: str) -> bytes:
        reads.append(place)
        raise OSError("away")

    monkeypatch.setattr(token_checks, "_content", away)
    for _ in range(3):
        with pytest.raises(UnavailableError, match="cannot be read: away"):
            tokens.check(token())
    assert len(reads) == 1, "it is left alone for a moment"


def forged() -> str:
    """Return a token signed by HMAC with the public key, as if that were a secret."""
    return token("HS256")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (lambda: token(iss="https://other.example"), "its issuer is another"),
        (lambda: token(aud="other"), "it is for another audience"),
        (lambda: token(exp=time.time() - 60), "it has expired"),
        (lambda: token(exp=None), "missing the .exp. claim"),
        (lambda: token(exp=float("nan")), "must be an integer"),
        (lambda: token(nbf=time.time() + 600), "it does not hold yet"),
        (lambda: token(tenant="../b"), "no tenant's name"),
        (lambda: token(tenant=None), "no tenant's name"),
        (lambda: token("none"), "its algorithm is 'none'"),
        (forged, "its algorithm is 'HS256'"),
        (lambda: token("RS256", "e"), "of no key of the issuer's"),
        (lambda: token("ES256", "r"), "of no key of the issuer's"),
        (lambda: token("PS256"), "its algorithm is 'PS256'"),
        (lambda: token(header={"crit": ["x"]}), "crit|critical|xtension"),
        (lambda: token()[:-8] + "AAAAAAAA", "of no key of the issuer's"),
        (lambda: "a.b.c", "Invalid header"),
        (lambda: "no token", "no JSON Web Token"),
    ],
)
def test_a_token_that_does_not_hold_is_refused_and_why(tokens, text, why):
    with pytest.raises(UnauthenticatedError, match=why):
        tokens.check(text())


@pytest.mark.parametrize(
    ("tenant", "scopes", "why"),
    [
        ("../a", ("read",), "a tenant's name is of a-z"),
        ("A", ("read",), "a tenant's name is of a-z"),
        ("a" * 64, ("read",), "a tenant's name is of a-z"),
        ("a", ("root",), "scopes are submit, read, admin, metrics, not root"),
        ("a", (), "scopes are submit, read, admin, metrics, not none"),
        ("", ("read",), "the operator's: it needs the scope admin or metrics"),
    ],
)
def test_a_key_that_cannot_be_is_not_made(tenant, scopes, why):
    with pytest.raises(InvalidSubmissionError, match=why):
        minted(tenant, "", scopes, None)


@pytest.fixture
async def made(tmp_path: Path, tokens: TokenVerifier, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(identities, "KEY_S", 0.2)
    async with world(tmp_path, tokens) as made:
        yield made


async def test_credentials_that_do_not_hold_are_refused_in_each_dialects_form_and_written_down(made):
    good = made.keys["a"]
    expired = await made.key("a", ends_s=time.time() - 1)
    wrong = good[:-3] + ("AAA" if good[-3:] != "AAA" else "BBB")
    cases = {
        wrong: "is wrong",
        expired: "has expired or was revoked",
        "sa_000000000000_" + "x" * 43: "is unknown",
        token(iss="https://other.example"): "its issuer is another",
        token("none"): "its algorithm is 'none'",
    }
    for credential, why in cases.items():
        async with made.client(credential) as client:
            contract, native, v2 = [await client.get(path) for path in ("/queue", "/api/queue", "/api/v2/jobs")]
            assert [answer.status_code for answer in (contract, native, v2)] == [401] * 3
            assert contract.headers["www-authenticate"] == "Bearer"
            assert (contract.json()["error"], native.json()["error"]["type"]) == ("Unauthorized", "unauthorized")
            assert v2.json()["error"]["code"] == "unauthorized"
            for answer in (contract.json()["detail"], native.json()["error"]["details"], v2.json()["error"]["message"]):
                assert why in answer
    async with made.client(made.keys["root"]) as root:
        async with asyncio.timeout(60):
            while True:
                entries = (await root.get("/tenants/audit")).json()["entries"]
                if len(entries) >= 3 * len(cases):
                    break
                await asyncio.sleep(0.2)
    assert {entry["result"] for entry in entries} == {401}
    assert all(any(why in entry["reason"] for entry in entries) for why in cases.values())
    assert {entry["source"] for entry in entries} == {"127.0.0.1"}
    assert all(secret not in json.dumps(entries) for secret in cases)


async def test_a_key_is_given_in_any_of_its_ways_and_nobody_behind_sees_it(made):
    key = made.keys["a"]
    async with made.client(None) as client:
        ways: list[dict[str, Any]] = [
            {"headers": {"Authorization": f"Bearer {key}"}},
            {"headers": {"X-API-Key": key}},
            {"params": {"token": key}},
            {"headers": {"Cookie": f"{identities.COOKIE}={key}"}},
            {"headers": {"Authorization": f"Bearer {token()}"}},
        ]
        for way in ways:
            assert (await client.get("/api/queue", **way)).status_code == 200, way
    headers = [(b"cookie", f"x=1; {identities.COOKIE}={key}".encode()), (b"authorization", b"b"), (b"x-mine", b"yes")]
    for query in (f"a=1&token={key}", f"a=1&t%6Fken={key}"):
        seen = identities.without_credentials({"headers": headers, "query_string": query.encode()})
        assert (seen["headers"], seen["query_string"]) == ([(b"cookie", b"x=1"), (b"x-mine", b"yes")], b"a=1")
    without = {"headers": [], "query_string": b"a=%20b&c"}
    assert identities.without_credentials(without) == without, "what has none is passed on to the byte"


def test_a_tenants_service_is_made_once_and_of_the_tenants_seen_last(tmp_path, monkeypatch):
    monkeypatch.setattr(services, "TENANTS", 2)
    nobody = cast(SchedulerClient, None)
    whole = Service(nobody, Volume({}), lambda folder: [], Limits(1, 1), user_data=UserData(tmp_path))
    a, b = whole.for_tenant("a"), whole.for_tenant("b")
    assert (a.tenant, b.tenant, a.for_tenant("b"), b.for_tenant("")) == ("a", "b", b, whole)
    assert whole.for_tenant("a") is a
    assert whole.for_tenant("c").tenant == "c"
    assert whole.for_tenant("a") is a
    assert whole.for_tenant("b") is not b


async def test_a_revoked_key_is_refused_within_seconds_and_a_rotated_one_never_fails(made):
    found = parts(made.keys["a"])
    assert found is not None
    async with made.client(made.keys["a"]) as a:
        assert (await a.get("/api/queue")).status_code == 200
        await made.service.query(EndKey(found[0]))
        async with asyncio.timeout(60):
            while (await a.get("/api/queue")).status_code == 200:
                await asyncio.sleep(0.05)
    old = made.keys["b"]
    async with made.client(made.keys["root"]) as root:
        rotated = await root.post(f"/tenants/keys/{(parts(old) or ('',))[0]}/rotate", json={"grace_s": 60})
        assert rotated.status_code == 201
    statuses = set()
    for key in (old, rotated.json()["key"]) * 10:
        async with made.client(key) as client:
            statuses.add((await client.get("/api/queue")).status_code)
        await asyncio.sleep(0.02)
    assert statuses == {200}


async def test_an_admin_asks_as_a_tenant_and_nobody_else_does(made):
    async with made.client(made.keys["a"]) as a, made.client(made.keys["root"]) as root:
        await a.post("/settings", json={"mine": 1})
        assert (await root.get("/settings/mine")).json() is None
        assert (await root.get("/settings/mine", headers={"X-Tenant": "a"})).json() == 1
        assert (await root.get("/settings/mine?tenant=a")).json() == 1
        assert (await a.get("/settings/mine?tenant=b")).status_code == 403
        assert (await a.get("/settings/mine?tenant=a")).json() == 1
        assert (await root.get("/settings/mine?tenant=../a")).status_code == 403


async def test_the_page_logs_in_by_a_cookie_that_scripts_do_not_see(made):
    async with made.client(None) as browser:
        refused = await browser.post("/login", data={"key": "sa_000000000000_<b>"})
        assert refused.status_code == 401
        assert "<b>" not in refused.text
        entered = await browser.post("/login", data={"key": made.keys["a"]})
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert "secure" not in cookie
        secure = await browser.post("/login", data={"key": made.keys["a"]}, headers={"X-Forwarded-Proto": "https"})
        assert "secure" in secure.headers["set-cookie"].lower()
        assert made.keys["a"] not in entered.headers["set-cookie"]
        browser.cookies.clear()
        browser.cookies.set(identities.COOKIE, entered.cookies[identities.COOKIE])
        assert (await browser.get("/")).text == "the page"
        other = await browser.post("/api/interrupt", headers={"Origin": "https://other.example"})
        assert other.status_code == 403
        left = await browser.post("/logout")
        assert (left.status_code, left.headers["location"]) == (303, "/login")
        assert "max-age=0" in left.headers["set-cookie"].lower()


@dataclass(frozen=True)
class Use(ServerScoped):
    """What a tenant has used of GPUs, written down as the ends of its jobs do."""

    writes: ClassVar[bool] = True

    whose: str
    gpu_s: float

    def execute(self, connection: sa.Connection) -> None:
        today = int(time.time() // DAY_S)
        usage.write(connection, [TenantUsed("", self.whose, today, self.gpu_s), TenantUsed("", "d", today - 1, 9.0)])


async def test_the_operators_routes_make_end_and_list_keys(made):
    async with made.client(made.keys["root"]) as root, made.client(made.keys["a"]) as a:
        assert (await a.post("/prompt", json={"prompt": WORKFLOW})).status_code == 200
        new = (await root.post("/tenants/keys", json={"tenant": "c", "name": "n", "scopes": ["read"]})).json()
        listed = (await root.get("/tenants/keys")).json()["keys"]
        assert new["key"] not in json.dumps(listed)
        assert next(k for k in listed if k["key_id"] == new["key_id"])["scopes"] == ["read"]
        short = (await root.post("/tenants/keys", json={"tenant": "e", "expires_in_s": 600})).json()
        assert 500 < short["ends_s"] - time.time() <= 600
        assert (await root.post("/tenants/keys", json={"tenant": "C"})).status_code == 400
        assert (await root.post("/tenants/keys", json={"tenant": "c", "scope": []})).status_code == 400
        assert (await root.post("/tenants/keys/unknown/rotate", json={})).status_code == 404
        assert (await root.post(f"/tenants/keys/{new['key_id']}/revoke")).status_code == 200
        quotas = Quotas(default=Quota(queued=5), tenants={"c": Quota(gpu_s_a_day=60.0)})
        made.service.limits = replace(made.service.limits, quotas=quotas)
        await made.service.query(Use("c", 12.5))
        told = {one["tenant"]: one for one in (await root.get("/tenants")).json()["tenants"]}
        limits = {"weight": 1.0, "queued": 5, "gpu_s_a_day": 60.0}
        used = {"gpu_s_today": 12.5, "bytes_stored": 0}
        assert told["c"] == {"tenant": "c", "keys": 0, "jobs": {}, **used, "quotas": limits}
        assert (told["a"]["keys"], told["a"]["gpu_s_today"], told[""]["quotas"]) == (1, 0.0, {"weight": 1.0})
        assert told["a"]["jobs"] == {"queued": 1}
        assert "d" not in told, "what was used yesterday is not today's"
    await made.service.query(AddKey(minted("d", "", ("read",), None)[0]))


async def test_the_audit_log_has_who_is_connected_unless_that_is_a_trusted_proxy(made):
    forged = {"X-Forwarded-For": "198.51.100.7"}
    async with made.client(made.keys["a"]) as a, made.client(None) as nobody:
        for proxies in ((), (ipaddress.IPv4Network("127.0.0.0/8"),)):
            made.app.state.authenticator.proxies = proxies
            await a.post("/api/interrupt", headers=forged)
            await nobody.post("/login", data={"key": "none"}, headers=forged)
    await made.app.state.authenticator.audit.close()
    entries = await made.service.query(ReadAudit(9))
    assert [entry.source for entry in reversed(entries)] == ["127.0.0.1"] * 2 + ["198.51.100.7"] * 2
    key_id, _ = parts(made.keys["a"]) or ("", "")
    assert {entry.who for entry in entries} == {f"sa_{key_id}_… test", ""}


def websocket(made: World, credential: str, client_id: str) -> websockets.connect:
    """Return a websocket that is opened with a credential."""
    headers = {"Authorization": f"Bearer {credential}"}
    return websockets.connect(f"{made.url.replace('http', 'ws')}/ws?clientId={client_id}", additional_headers=headers)


async def closed(socket: websockets.ClientConnection) -> tuple[int, str]:
    """Return code and reason that a websocket is closed with, once it is."""
    async with asyncio.timeout(60):
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await socket.recv()
    assert socket.close_code is not None
    return socket.close_code, socket.close_reason or ""


async def arriving(pieces: int, go_on: asyncio.Event) -> AsyncIterator[bytes]:
    """Yield a body whose end waits for a word."""
    yield b"x" * pieces
    await go_on.wait()
    yield b"y"


async def test_whatever_a_key_has_open_ends_with_it_and_nothing_of_others(made):
    made.service.limits = replace(made.service.limits, poll_s=60.0)
    key, other = await made.key("c"), made.keys["b"]
    (key_id, _), revoked = parts(key) or ("", ""), "has expired or was revoked"
    go_on = asyncio.Event()
    async with made.client(key) as c, websocket(made, key, "c") as mine, websocket(made, other, "b") as others:
        job = (await c.post("/prompt", json={"prompt": WORKFLOW})).json()["prompt_id"]
        heard = (await c.get(f"/jobs/{job}/events", params={"timeout_s": 0})).json()["events"][-1]["seq"]
        poll = asyncio.create_task(c.get(f"/jobs/{job}/events", params={"after": heard, "timeout_s": 50}))
        upload = asyncio.create_task(c.post("/userdata/large", content=arriving(10, go_on)))
        async with c.stream("GET", f"/api/v2/jobs/{job}/events") as stream:
            assert stream.status_code == 200
            await made.service.query(EndKey(key_id))
            assert [chunk async for chunk in stream.aiter_text()], "the stream ends as a whole answer does"
        code, reason = await closed(mine)
        assert (code, revoked in reason) == (1008, True)
        answer = await poll
        assert (answer.status_code, revoked in answer.text) == (401, True)
        go_on.set()
        assert (await upload).status_code == 401
        assert (await c.get("/queue")).status_code == 401
        async with made.client(made.keys["root"]) as root:
            assert (await root.get("/userdata/large", headers={"X-Tenant": "c"})).status_code == 404
        async with asyncio.timeout(60):
            await (await others.ping())


async def test_what_a_token_has_open_ends_as_it_expires(made, monkeypatch):
    monkeypatch.setattr(token_checks, "EXPIRY_LEEWAY_S", 0.0)
    async with websocket(made, token(exp=int(time.time()) + 2), "t") as socket:
        assert await closed(socket) == (1008, "the credentials have expired")


async def test_an_answer_that_is_cut_off_is_not_taken_for_a_whole_one():
    lease, sent = Lease(), []
    leases = Leases(lambda ids: asyncio.sleep(0))

    async def download(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"image/png")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        lease.end("over")
        leases.watch(leased)
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    leased = LeasedConnection(leases, lease, {"type": "http", "method": "GET"}, cast(Any, None), send)
    assert await leased.pass_on(download, {}, cast(Any, None))
    assert [message.get("more_body") for message in sent] == [None, True]


async def test_a_change_that_is_under_way_is_answered_and_no_more_streamed_of_it():
    lease, sent = Lease(), []
    leases = Leases(lambda ids: asyncio.sleep(0))

    async def change(scope: Any, receive: Any, send: Any) -> None:
        leases.watch(leased)
        lease.end("over")
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200})
        await asyncio.sleep(0)
        for more in scope:
            await send({"type": "http.response.body", "more_body": more})
            await asyncio.sleep(0)

    async def send(message: Any) -> None:
        sent.append(message)

    for pieces in ([False], [True, True]):
        sent.clear()
        leased = LeasedConnection(leases, lease, {"type": "http", "method": "POST"}, cast(Any, None), send)
        was_cut = await leased.pass_on(change, cast(Any, pieces), cast(Any, None))
        assert (was_cut, len(sent)) == (pieces[0], 2)


async def test_a_session_is_no_key_and_ends_at_the_logout_and_with_its_key(made):
    key = await made.key("c")
    found = parts(key)
    assert found is not None

    async def refused(browser: httpx.AsyncClient, session: str) -> None:
        async with asyncio.timeout(60):
            cookies = {"Cookie": f"{identities.COOKIE}={session}"}
            while (await browser.get("/api/queue", headers=cookies)).status_code != 401:
                await asyncio.sleep(0.05)

    async with made.client(None) as one, made.client(None) as two, made.client(made.keys["root"]) as root:
        for browser in (one, two):
            assert (await browser.post("/login", data={"key": key})).status_code == 303
        sessions = [browser.cookies[identities.COOKIE] for browser in (one, two)]
        assert key not in sessions
        assert (await one.get("/api/queue")).status_code == 200
        assert (await one.post("/login", data={"key": sessions[0]})).status_code == 401
        listed = (await root.get("/tenants/keys")).json()["keys"]
        assert [each["key_id"] for each in listed if each["tenant"] == "c"] == [found[0]]
        rotation = await root.post(f"/tenants/keys/{(parts(sessions[0]) or ('',))[0]}/rotate", json={})
        assert rotation.status_code == 404
        await one.post("/logout")
        await refused(one, sessions[0])
        assert (await two.get("/api/queue")).status_code == 200
        await made.service.query(EndKey(found[0]))
        await refused(two, sessions[1])


async def test_a_session_of_a_token_ends_as_the_token_does_and_the_oldest_makes_room(made, monkeypatch):
    monkeypatch.setattr(api_keys, "SESSIONS", 2)
    async with made.client(None) as browser:
        text = token(exp=int(time.time()) + 1000)
        sessions = []
        for _ in range(3):
            entered = await browser.post("/login", data={"key": text})
            sessions.append(browser.cookies[identities.COOKIE])
        age = int(entered.headers["set-cookie"].lower().partition("max-age=")[2].partition(";")[0])
        assert 900 < age <= 1000 + token_checks.EXPIRY_LEEWAY_S
        found = await made.service.query(FindKeys(tuple((parts(each) or ("",))[0] for each in sessions)))
        assert len(found) == 2
        assert {each.session_of for each in found} == {""}


@pytest.mark.parametrize("text", ["1" + "0" * 400, "1e400"])
def test_a_time_beyond_all_times_is_no_time(tokens, text):
    claims = json.dumps({"iss": "https://id.example", "aud": "images", "tenant": "a"})[:-1] + f', "exp": {text}}}'
    signed_text = f"{b64(json.dumps({'alg': 'RS256', 'kid': 'r'}).encode())}.{b64(claims.encode())}"
    with pytest.raises(UnauthenticatedError):
        tokens.check(f"{signed_text}.{b64(signed('RS256', signed_text.encode()))}")


def test_no_scope_of_a_providers_reaches_beyond_the_tenant_but_by_a_role(tokens, tmp_path):
    assert tokens.check(token(roles=["admin", "metrics", "read", "submit"])).scopes == ("submit", "read")
    mapped = JwtConfig(
        issuer="https://id.example",
        audience="images",
        jwks=str(tmp_path / "jwks.json"),
        scopes_claim="roles",
        roles={"boss": ("admin",)},
    )
    assert TokenVerifier(mapped).check(token(roles=["boss"])).scopes == ("admin",)


async def test_unfinished_logins_keep_no_other_body_out(made):
    made.app.state.concurrency.logins = ConcurrencyLimit("logins", "ingress.max_logins", 1)
    go_on = asyncio.Event()
    async with made.client(None) as nobody, made.client(made.keys["a"]) as a:
        slow = asyncio.create_task(nobody.post("/login", content=arriving(4, go_on), headers=FORM))
        async with asyncio.timeout(60):
            while made.app.state.concurrency.logins.use[1] < 1:
                await asyncio.sleep(0.01)
        assert (await nobody.post("/login", data={"key": "x"})).status_code == 503
        assert (await a.post("/settings", json={"mine": 1})).status_code == 200
        assert (await nobody.get("/healthz")).status_code == 200
        assert made.app.state.concurrency.bodies.use[1] == 0
        go_on.set()
        assert (await slow).status_code == 401
