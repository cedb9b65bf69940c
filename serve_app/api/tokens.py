"""JSON Web Tokens of an identity provider: whether one holds, and whose it is.

Only signatures with a public key count, by an algorithm that the configuration names: never `none`, never a shared
secret, for which a public key could be taken. The key says by its own kind which algorithms it is for.
Sources: RFC 7515 (signatures), 7517 (keys), 7518 (algorithms), 7519 (claims), 8725 (best current practices).
"""

from __future__ import annotations

import base64
import binascii
import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from serve_app.api.token_rules import TokenRules
from serve_app.errors import UnauthenticatedError, UnavailableError
from serve_app.store.api_keys import KEY_SCOPES, USUAL_SCOPES
from serve_app.store.tenants import is_tenant

TOKEN_CHARACTERS = 16_384
JWKS_BYTES = 1_000_000
FRESH_S = 300.0
"""How old the provider's keys may be."""
AGAIN_S = 10.0
"""How long after the provider was asked it may be asked again, for a key that is not known."""
LEEWAY_S = 30.0
"""By how much clocks may differ."""
SMALLEST_RSA = 2048
LAST_S = 1e12
"""No time is as late; NaN is not before it either."""

_HASHES: Mapping[str, type[hashes.HashAlgorithm]] = {
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
_CURVES: Mapping[str, tuple[type[ec.EllipticCurve], str, int]] = {
    "P-256": (ec.SECP256R1, "ES256", 32),
    "P-384": (ec.SECP384R1, "ES384", 48),
}


@dataclass(frozen=True, slots=True)
class Token:
    """What a token that holds says. until_s: Unix time of its end."""

    tenant: str
    subject: str
    scopes: tuple[str, ...]
    until_s: float


class Tokens:
    """Checks tokens; synchronous, as the provider may be asked: callers on an event loop use a thread."""

    def __init__(self, rules: TokenRules) -> None:
        self._rules = rules
        self._keys: Sequence[Mapping[str, Any]] = ()
        self._asked_s = float("-inf")

    def check(self, text: str) -> Token:
        """Return what a token says. Errors: UnauthenticatedError, saying why; UnavailableError without any keys."""
        if len(text) > TOKEN_CHARACTERS or text.count(".") != 2:
            raise _refused("it is no JSON Web Token")
        signed, _, signature = text.rpartition(".")
        head, _, body = signed.partition(".")
        header = _object(head)
        algorithm = header.get("alg")
        if algorithm not in self._rules.algorithms:
            raise _refused(f"its algorithm is {str(algorithm)[:20]!r}; allowed are {', '.join(self._rules.algorithms)}")
        if "crit" in header:
            raise _refused("it asks for extensions that are not known here")
        given = _bytes(signature)
        candidates = self._candidates(header.get("kid"), algorithm)
        if not any(_verifies(key, algorithm, signed.encode(), given) for key in candidates):
            raise _refused("its signature is of no key of the issuer's")
        return self._read(_object(body))

    def _read(self, claims: Mapping[str, Any]) -> Token:
        rules, now_s = self._rules, time.time()
        if claims.get("iss") != rules.issuer:
            raise _refused("its issuer is another")
        audience = claims.get("aud")
        if rules.audience not in (audience if isinstance(audience, list) else [audience]):
            raise _refused("it is for another audience")
        until_s: Any = claims.get("exp")
        from_s: Any = claims.get("nbf", 0)
        if not _is_time(until_s) or not _is_time(from_s):
            raise _refused("it has no time until which it holds")
        if until_s + LEEWAY_S <= now_s:
            raise _refused("it has expired")
        if from_s - LEEWAY_S > now_s:
            raise _refused("it does not hold yet")
        tenant = claims.get(rules.tenant_claim)
        if not is_tenant(tenant):
            raise _refused(f"its claim {rules.tenant_claim!r} is no tenant's name")
        return Token(str(tenant), str(claims.get("sub", ""))[:150], self._scopes(claims), float(until_s) + LEEWAY_S)

    def _scopes(self, claims: Mapping[str, Any]) -> tuple[str, ...]:
        given = claims.get(self._rules.scopes_claim)
        if given is None:
            return USUAL_SCOPES
        words = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
        own = {scope: (scope,) for scope in KEY_SCOPES}
        allowed = {s for word in map(str, words) for s in {**own, **self._rules.roles}.get(word, ())}
        return tuple(scope for scope in KEY_SCOPES if scope in allowed)

    def _candidates(self, kid: object, algorithm: str) -> list[Mapping[str, Any]]:
        """Return the provider's keys that may have signed; asked again for a key that is not known."""
        now_s = time.monotonic()
        if now_s - self._asked_s > FRESH_S:
            self._fetch()
        found = [key for key in self._keys if _fits(key, kid, algorithm)]
        if not found and now_s - self._asked_s > AGAIN_S:
            self._fetch()
            found = [key for key in self._keys if _fits(key, kid, algorithm)]
        return found

    def _fetch(self) -> None:
        """Read the provider's keys; where it does not answer, those that are known go on to hold."""
        self._asked_s = time.monotonic()
        try:
            document = json.loads(_content(self._rules.jwks))
            self._keys = [key for key in document["keys"] if isinstance(key, dict)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            if not self._keys:
                self._asked_s = time.monotonic() - FRESH_S
                raise UnavailableError(f"the keys at {self._rules.jwks} cannot be read: {error}", 5) from error


def _content(place: str) -> bytes:
    if place.startswith(("https://", "http://")):
        with urllib.request.urlopen(place, timeout=5) as answer:
            return bytes(answer.read(JWKS_BYTES))
    return Path(place).read_bytes()[:JWKS_BYTES]


def _fits(key: Mapping[str, Any], kid: object, algorithm: str) -> bool:
    """Whether a key may have made a signature: by its id, its use, and the algorithms of its kind."""
    if (kid is not None and key.get("kid") != kid) or key.get("use", "sig") != "sig":
        return False
    if key.get("alg", algorithm) != algorithm:
        return False
    if key.get("kty") == "RSA":
        return algorithm[:2] in ("RS", "PS")
    if key.get("kty") == "EC":
        return key.get("crv") in _CURVES and _CURVES[key["crv"]][1] == algorithm
    return key.get("kty") == "OKP" and key.get("crv") == "Ed25519" and algorithm == "EdDSA"


def _verifies(key: Mapping[str, Any], algorithm: str, signed: bytes, signature: bytes) -> bool:
    try:
        match key["kty"]:
            case "RSA":
                public = rsa.RSAPublicNumbers(_number(key["e"]), _number(key["n"])).public_key()
                if public.key_size < SMALLEST_RSA:
                    return False
                digest = _HASHES[algorithm[2:]]()
                pss = padding.PSS(padding.MGF1(digest), padding.PSS.DIGEST_LENGTH)
                public.verify(signature, signed, pss if algorithm[0] == "P" else padding.PKCS1v15(), digest)
            case "EC":
                curve, _, size = _CURVES[key["crv"]]
                if len(signature) != 2 * size:
                    return False
                numbers = ec.EllipticCurvePublicNumbers(_number(key["x"]), _number(key["y"]), curve())
                r, s = (int.from_bytes(half) for half in (signature[:size], signature[size:]))
                digest = _HASHES[algorithm[2:]]()
                numbers.public_key().verify(encode_dss_signature(r, s), signed, ec.ECDSA(digest))
            case _:
                ed25519.Ed25519PublicKey.from_public_bytes(_bytes(key["x"])).verify(signature, signed)
    except (InvalidSignature, KeyError, ValueError, TypeError, UnauthenticatedError):
        return False
    return True


def _number(text: str) -> int:
    return int.from_bytes(_bytes(text))


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise _refused("a part of it is not base64url") from error


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(_bytes(text))
    except (ValueError, RecursionError) as error:
        raise _refused("a part of it is no JSON") from error
    if not isinstance(found, dict):
        raise _refused("a part of it is no JSON object")
    return found


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LAST_S


def _refused(why: str) -> UnauthenticatedError:
    return UnauthenticatedError(f"the token does not hold: {why}")
