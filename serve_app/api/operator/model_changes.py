"""Routes to upload and delete model files, for admins, where the configuration allows it.

A file is streamed to its folder and appears there whole or not at all. It never overwrites another: a name can be
reused only after its file was deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from starlette.requests import Request
from starlette.responses import Response

from serve_app import log
from serve_app.api.auth.principal import Admin
from serve_app.api.concurrency_limits import set_body_timeout
from serve_app.api.request import Current, with_body_bound
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.config.limits import ModelChangeLimits
from serve_app.errors import ForbiddenError, ModelFileInUseError, StoreError
from serve_app.service.request_limits import BodyBound
from serve_app.service.service import Service
from serve_app.store.models.named_models import NamesModel

router = Routes()

PATH = "/models/{folder}/{name:path}"
RETRY_AFTER_S = 30
_log = log.get("api")


@router.on(PATH, ["PUT"])
async def put_model(request: Request, service: Current, _: Admin) -> Response:
    """Store the body, a safetensors file, as a folder's new model."""
    limits = _limits(service)
    folder, name = request.path_params["folder"], request.path_params["name"]
    body = with_body_bound(request, BodyBound(limits.max_bytes, "model_changes.max_bytes"))
    set_body_timeout(request, limits.body_s, "model_changes.body_s")
    size = 0

    def pieces() -> Iterator[bytes]:
        """Yield the body in the thread that writes it, with backpressure."""
        nonlocal size
        while (piece := asyncio.run_coroutine_threadsafe(_next(stream), loop).result()) is not None:
            size += len(piece)
            yield piece

    loop, stream = asyncio.get_running_loop(), body.stream()
    with request.app.state.concurrency.model_files.acquire():
        try:
            await asyncio.to_thread(service.catalog.put, folder, name, pieces())
        except FileExistsError as error:
            raise ModelFileInUseError(f"{folder}/{name} is there; delete it before another takes its place") from error
        except OSError as error:
            raise _not_changed(folder, name, error) from error
    _log.info("model %s/%s is uploaded: %d bytes", folder, name, size)
    return JsonResponse({"folder": folder, "name": name, "size": size}, 201)


@router.on(PATH, ["DELETE"])
async def delete_model(request: Request, service: Current, _: Admin) -> Response:
    """Delete a model file that no unfinished job uses. Replicas keep loaded weights until they evict them."""
    _limits(service)
    folder, name = request.path_params["folder"], request.path_params["name"]
    await asyncio.to_thread(service.catalog.stat, folder, name)
    if (job_id := await service.for_tenant("").query(NamesModel(name))) is not None:
        raise ModelFileInUseError(f"{folder}/{name} is named by job {job_id}, which has not ended")
    try:
        await asyncio.to_thread(service.catalog.delete, folder, name)
    except OSError as error:
        raise _not_changed(folder, name, error) from error
    _log.info("model %s/%s is deleted", folder, name)
    return JsonResponse({"deleted": True})


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    return await anext(stream, None)


def _limits(service: Service) -> ModelChangeLimits:
    if service.limits.model_changes is None:
        raise ForbiddenError("model files are not changed here: model_changes is not in the configuration")
    return service.limits.model_changes


def _not_changed(folder: str, name: str, error: OSError) -> StoreError:
    reason = error.strerror or type(error).__name__
    return StoreError(f"{folder}/{name} could not be changed: {reason}", retry_after_s=RETRY_AFTER_S)
