"""Replaces references to assets in a graph by the names with which loaders find the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.api.v2.failures import CodedError
from serve_app.errors import short_repr
from serve_app.service.service import Service
from serve_app.service.submissions import is_job_id
from serve_app.store.page.assets import Asset, FindAssets

TYPE = "core/ASSET"


async def resolved(service: Service, workflow: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a graph with its references replaced by names, and the ids of the assets that it uses.

    Errors: CodedError missing_asset, with all unknown ids.
    """
    wanted = list(dict.fromkeys(_ids(workflow)))
    if not wanted:
        return dict(workflow), ()
    ids = tuple(asset_id for asset_id in wanted if is_job_id(asset_id))
    found = await service.query(FindAssets(ids))
    if missing := [asset_id for asset_id in wanted if asset_id not in found]:
        raise missing_assets(missing)
    return {node_id: _with_inputs(node, found) for node_id, node in workflow.items()}, ids


def missing_assets(ids: list[Any]) -> CodedError:
    """Return the error for unknown assets."""
    named = ", ".join(map(short_repr, ids[:5]))
    return CodedError("missing_asset", f"no asset has the id {named}", {"missing_ids": ids})


def _ids(workflow: Mapping[str, Any]) -> Iterator[Any]:
    stack: list[Any] = [node["inputs"] for node in workflow.values() if isinstance(node, dict) and "inputs" in node]
    while stack:
        value = stack.pop()
        if isinstance(value, dict) and value.get("__type") == TYPE:
            info = value.get("info")
            asset_id = info.get("id") if isinstance(info, dict) else None
            yield asset_id if isinstance(asset_id, str) else None
        elif isinstance(value, dict | list):
            stack += value.values() if isinstance(value, dict) else value


def _with_inputs(node: Any, assets: Mapping[str, Asset]) -> Any:
    if not isinstance(node, dict) or "inputs" not in node:
        return node
    return {**node, "inputs": _replaced(node["inputs"], assets)}


def _replaced(value: Any, assets: Mapping[str, Asset]) -> Any:
    if isinstance(value, dict):
        if value.get("__type") == TYPE:
            asset = assets[value["info"]["id"]]
            return asset.path if asset.area == "input" else f"{asset.path} [{asset.area}]"
        return {key: _replaced(child, assets) for key, child in value.items()}
    return [_replaced(child, assets) for child in value] if isinstance(value, list) else value
