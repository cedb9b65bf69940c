"""Verification of JSON Web Tokens of an identity provider.

Only signatures with a public key are accepted, by an algorithm that the configuration names: never `none`, never a
shared secret, as a public key could then be used as one. A key's type decides which algorithms it is for. PyJWT checks
signatures and claims (RFC 7515 to 7519), with the options that RFC 8725 recommends.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from jwt.types import Options

from serve_app.config.tenants import JwtConfig
from serve_app.errors import UnauthenticatedError, UnavailableError
from serve_app.store.tenants.api_keys import KEY_SCOPES, USUAL_SCOPES
from serve_app.store.tenants.tenants import is_tenant

TOKEN_CHARACTERS = 16_384
JWKS_BYTES = 1_000_000
FRESH_S = 300.0
"""How old the provider's keys may be."""
AGAIN_S, AWAY_S = 10.0, 1.0
"""The shortest time between two requests to the provider: for an unknown key; while no key is known yet."""
LEEWAY_S = 30.0
"""By how much the provider's clock may be ahead: new tokens are valid at once."""
EXPIRY_LEEWAY_S = 2.0
"""By how much it may be behind. A token's connections end within five seconds of its `exp`."""
SMALLEST_RSA = 2048
KINDS: Mapping[str, tuple[str, str | None]] = {
    "R": ("RSA", None),
    "P": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""Kind and curve of the keys that an algorithm is for, by its name or first letter."""
CLAIMS: Mapping[type[jwt.InvalidTokenError], str] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it does not hold yet",
    jwt.InvalidIssuerError: "its issuer is another",
    jwt.InvalidAudienceError: "it is for another audience",
}
"""The reason for a refusal by PyJWT's exception, in our words."""


@dataclass(frozen=True, slots=True)
class Token:
    """The claims of a valid token. until_s: Unix time of its end."""

    tenant: str
    subject: str
    scopes: tuple[str, ...]
    until_s: float


class TokenVerifier:
    """Checks tokens. It blocks while it asks the provider: callers on an event loop use a thread."""

    def __init__(self, rules: JwtConfig) -> None:
        self._rules = rules
        self._keys: Sequence[Mapping[str, Any]] = ()
        self._asked_s = float("-inf")
        self._why = "it has none"
        # Others wait for the provider's answer too.
        self._asking = threading.Lock()

    def check(self, text: str) -> Token:
        """Return a token's claims. Errors: UnauthenticatedError with the reason; UnavailableError without any keys."""
        if len(text) > TOKEN_CHARACTERS or text.count(".") != 2:
            raise _refused("it is no JSON Web Token")
        try:
            header = jwt.get_unverified_header(text)
        except jwt.InvalidTokenError as error:
            raise _refused(str(error)) from error
        algorithm = header.get("alg")
        if algorithm not in self._rules.algorithms:
            raise _refused(f"its algorithm is {str(algorithm)[:20]!r}; allowed are {', '.join(self._rules.algorithms)}")
        for key in self._candidates(header.get("kid"), algorithm):
            try:
                return self._read(self._claims(text, key, algorithm))
            except (jwt.InvalidSignatureError, jwt.InvalidKeyError, jwt.PyJWKError):
                continue
            except jwt.InvalidTokenError as error:
                raise _refused(CLAIMS.get(type(error), str(error))) from error
            except OverflowError as error:
                raise _refused("a time in it is beyond all times") from error
        raise _refused("its signature is of no key of the issuer's")

    def _claims(self, text: str, key: Mapping[str, Any], algorithm: str) -> Mapping[str, Any]:
        public: Any = jwt.PyJWK(dict(key), algorithm)
        if getattr(public.key, "key_size", SMALLEST_RSA) < SMALLEST_RSA and key["kty"] == "RSA":
            raise jwt.InvalidKeyError(f"an RSA key is of {SMALLEST_RSA} bits at least")
        rules = self._rules
        required: Options = {"require": ["exp", "iss", "aud"]}
        return jwt.decode(
            text, public, [algorithm], required, audience=rules.audience, issuer=rules.issuer, leeway=LEEWAY_S
        )

    def _read(self, claims: Mapping[str, Any]) -> Token:
        tenant = claims.get(self._rules.tenant_claim)
        if not is_tenant(tenant):
            raise _refused(f"its claim {self._rules.tenant_claim!r} is no tenant's name")
        until_s = float(claims["exp"]) + EXPIRY_LEEWAY_S
        if until_s <= time.time():
            raise _refused(CLAIMS[jwt.ExpiredSignatureError])
        subject = str(claims.get("sub", ""))[:150]
        return Token(str(tenant), subject, self._scopes(claims), until_s)

    def _scopes(self, claims: Mapping[str, Any]) -> tuple[str, ...]:
        given = claims.get(self._rules.scopes_claim)
        if given is None:
            return USUAL_SCOPES
        words = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
        own = {scope: (scope,) for scope in USUAL_SCOPES}
        allowed = {s for word in map(str, words) for s in {**own, **self._rules.roles}.get(word, ())}
        return tuple(scope for scope in KEY_SCOPES if scope in allowed)

    def _candidates(self, kid: object, algorithm: str) -> list[Mapping[str, Any]]:
        """Return the provider's keys that may have signed; fetch them again for an unknown key."""
        with self._asking:
            self._refresh(FRESH_S if self._keys else AWAY_S)
            if not (found := [key for key in self._keys if _fits(key, kid, algorithm)]):
                self._refresh(AGAIN_S if self._keys else AWAY_S)
                found = [key for key in self._keys if _fits(key, kid, algorithm)]
            if not self._keys:
                raise UnavailableError(f"the keys at {self._rules.jwks} cannot be read: {self._why}", 5)
            return found

    def _refresh(self, older_s: float) -> None:
        """Fetch the provider's keys if they are older than this; if it does not answer, keep the known ones."""
        if time.monotonic() - self._asked_s <= older_s:
            return
        try:
            document = json.loads(_content(self._rules.jwks))
            self._keys = [key for key in document["keys"] if isinstance(key, dict)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._why = str(error)
        self._asked_s = time.monotonic()


def _content(place: str) -> bytes:
    if place.startswith(("https://", "http://")):
        with urllib.request.urlopen(place, timeout=5) as answer:
            return bytes(answer.read(JWKS_BYTES))
    return Path(place).read_bytes()[:JWKS_BYTES]


def _fits(key: Mapping[str, Any], kid: object, algorithm: str) -> bool:
    """Whether a key may have made a signature: by its id, its use, and the algorithms of its kind."""
    if (kid is not None and key.get("kid") != kid) or key.get("use", "sig") != "sig":
        return False
    kind, curve = KINDS.get(algorithm) or KINDS[algorithm[0]]
    return key.get("alg", algorithm) == algorithm and key.get("kty") == kind and curve in (None, key.get("crv"))


def _refused(why: str) -> UnauthenticatedError:
    return UnauthenticatedError(f"the token does not hold: {why}")
