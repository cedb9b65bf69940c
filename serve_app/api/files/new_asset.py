"""Uploads of assets, for all dialects: checking the fields, and storing equal bytes once.

Errors of fields: InvalidSubmissionError.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from serve_app.errors import InvalidSubmissionError, KeyReusedError, short_repr
from serve_app.service.service import Service
from serve_app.store.files.blobs import HASH, FilePieces
from serve_app.store.files.store import FileRef
from serve_app.store.page.assets import Asset, HasBytes, MintAsset, Minted

NAME_LENGTH = 1024

CONTROL = re.compile("[\0-\x1f\x7f]")
_TYPE = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}(; ?[\w.+-]+=[\w.+\"-]+){0,3}", re.ASCII)


def asset_name(given: Any, field: str) -> str:
    """Return the path that a client chose as its asset's name."""
    if not isinstance(given, str) or not 1 <= len(given) <= NAME_LENGTH or CONTROL.search(given) or "\\" in given:
        raise InvalidSubmissionError(f"{field} must be a relative path, not {short_repr(given)}")
    parts = given.split("/")
    if given.startswith("/") or ".." in parts or not parts[-1] or re.match(r"[A-Za-z]:", given):
        raise InvalidSubmissionError(f"{field} must be relative and stay in its folder, not {short_repr(given)}")
    if parts[0] == "models":
        raise InvalidSubmissionError("model files cannot be uploaded here: put them where the server loads them")
    return given


def asset_type(given: Any, field: str) -> str:
    """Return a content type."""
    if not isinstance(given, str) or not _TYPE.fullmatch(given):
        raise InvalidSubmissionError(f"{field} must be like image/png, not {short_repr(given)}")
    return given


def asset_hash(given: Any) -> str:
    """Return a hash."""
    if not isinstance(given, str) or not HASH.fullmatch(given):
        raise InvalidSubmissionError(f"a hash is blake3: and 64 of 0-9 a-f, not {short_repr(given)}")
    return given


async def store_asset(service: Service, asset: Asset, ref: FileRef, content: FilePieces, key: str | None) -> Minted:
    """Store an asset, and its bytes in `ref` unless they are stored already. Errors: KeyReusedError."""
    if await service.query(HasBytes(asset.hash or "")):
        minted = await service.query(MintAsset(asset, stored=False, key=key))
        if minted is not None:
            return minted
    await asyncio.to_thread(service.store.write, ref, content)
    try:
        minted = await service.query(MintAsset(asset, stored=True, key=key))
        assert minted is not None, "an asset that came with its bytes is kept"
    except KeyReusedError:
        await asyncio.to_thread(service.store.delete, ref)
        raise
    if minted.asset.path != asset.path:  # another upload of the same bytes was first
        await asyncio.to_thread(service.store.delete, ref)
    return minted
