"""The verbs of the scheduler as they go between processes: what each takes and answers, its queries, and its errors.

A verb is declared once, in `SchedulerClient` or `SchedulerForReplicas`; from its annotations come the shapes of its
arguments and of its answer (`codec.py`). Peers can send the queries that are listed here, and no others.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Protocol

from serve_app.deployments.codec import Row, Shape, Shapes, UndeclaredError
from serve_app.errors import ServeAppError
from serve_app.graph.spec import NodeSpec
from serve_app.recipe.patch import Patch
from serve_app.recipe.recipe import Recipe
from serve_app.scheduler.protocol.client import SchedulerClient
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import ReplicaInfo, SchedulerForReplicas


class FaultError(Exception):
    """The other process failed by an error that is none of the project's; has its class's name and its message."""


class ActorVerbs(Protocol):
    """What the clients of the scheduler's actor call in the place of verbs of its protocols."""

    async def specs_since(self, tag: str, pool: str | None) -> tuple[str, Mapping[str, NodeSpec] | None]:
        """Return a tag of the node classes, and the classes as `specs`, None if the tag is the given one."""
        ...

    async def join(self, info: ReplicaInfo, specs: list[NodeSpec], host: HostStats, actor: str) -> int:
        """Register as `SchedulerForReplicas.join`. actor: the name of the replica's actor, whose death is noticed."""
        ...


class Verb:
    """One verb: its signature, and how its arguments and its answer are packed."""

    def __init__(self, function: Callable[..., Any], shapes: Shapes) -> None:
        self.name = function.__name__
        self.signature = inspect.signature(function)
        self._function = function
        self._shapes = shapes

    def pack(self, arguments: tuple[Any, ...]) -> Sequence[Any]:
        """Return the arguments packed, without self. Errors: UndeclaredError."""
        return self._arguments.pack(arguments)

    def unpack(self, content: Any) -> tuple[Any, ...]:
        """Return the arguments. Errors: UndeclaredError."""
        try:
            return tuple(self._arguments.unpack(content))
        except UndeclaredError as error:
            raise UndeclaredError(f"{self.name}: {error}") from error

    def pack_answer(self, arguments: tuple[Any, ...], answer: Any) -> Any:
        """Return the answer to these arguments, packed. Errors: UndeclaredError."""
        pack = self.answer(arguments).pack
        return answer if pack is None else pack(answer)

    def unpack_answer(self, arguments: tuple[Any, ...], content: Any) -> Any:
        """Return the answer to these arguments. Errors: UndeclaredError."""
        return self.answer(arguments).unpack(content)

    def answer(self, arguments: tuple[Any, ...]) -> Shape:
        """Return the shape of the answer to these arguments."""
        return self._answer

    @cached_property
    def hints(self) -> dict[str, Any]:
        return self._shapes.hints(self._function)

    @cached_property
    def _arguments(self) -> Row:
        return Row([self._argument(self.hints[name]) for name in list(self.signature.parameters)[1:]])

    def _argument(self, kind: Any) -> Shape:
        return self._shapes.of(kind)

    @cached_property
    def _answer(self) -> Shape:
        return self._shapes.of(self.hints["return"])


class QueryVerb(Verb):
    """The verb that runs a query: any of those that are listed, each of which declares its own answer."""

    def answer(self, arguments: tuple[Any, ...]) -> Shape:
        [query] = arguments
        return self._answers[type(query)]

    def _argument(self, kind: Any) -> Shape:
        return self._shapes.union(queries())

    @cached_property
    def _answers(self) -> dict[type, Shape]:
        return {kind: self._shapes.of(self._shapes.hints(kind.execute)["return"]) for kind in queries()}


@cache
def queries() -> tuple[Any, ...]:
    """Return the classes of the queries that the ingress may send."""
    # Here and not above: a replica sends none, and needs no database.
    from serve_app.store.database import activity, queries, webhooks
    from serve_app.store.models import named_models
    from serve_app.store.page import assets, exports, gallery
    from serve_app.store.retention import named_files
    from serve_app.store.tenants import api_keys, audit, listing, stored_bytes

    return (
        *(queries.ListJobs, activity.ReadActivity, activity.ReadTenantDays),
        *(webhooks.AddWebhook, webhooks.Webhooks, webhooks.DeleteWebhook, webhooks.Deliveries, webhooks.SendAgain),
        named_models.NamesModel,
        *(assets.MintAsset, assets.RecordOutputs, assets.SetHash, assets.OutputsOf, assets.FindAssets),
        *(assets.HasBytes, assets.DeleteAsset),
        *(exports.KeepExport, exports.FindExport),
        *(gallery.EndedOutputs, gallery.JobOutputs, gallery.Uploads, gallery.ChangeTags, gallery.ChangeAsset),
        named_files.NeededFiles,
        *(api_keys.AddKey, api_keys.EndKey, api_keys.FindKey, api_keys.FindKeys, api_keys.ListKeys),
        *(audit.WriteAudit, audit.ReadAudit),
        listing.ListTenants,
        *(stored_bytes.ClaimBytes, stored_bytes.NoteFiles),
    )


def replica_names() -> dict[str, Any]:
    """Return what the types of the replicas' protocol name for type checkers alone."""
    return {"Patch": Patch, "Recipe": Recipe}


def client_names() -> dict[str, Any]:
    """Return what the protocol of clients names of the database, for type checkers alone."""
    from serve_app.store.database.queries import Query
    from serve_app.store.tenants.pauses import Pause

    return {"Query": Query, "Pause": Pause}


def verbs_of(protocol: type, shapes: Shapes) -> dict[str, Verb]:
    """Return the verbs that a protocol declares, by name."""
    declared = {name: verb for name, verb in vars(protocol).items() if inspect.iscoroutinefunction(verb)}
    return {name: (QueryVerb if name == "query" else Verb)(verb, shapes) for name, verb in declared.items()}


_OF_CLIENTS, _OF_REPLICAS = Shapes(client_names), Shapes(replica_names)
CALLED: Mapping[str, Verb] = {
    **verbs_of(SchedulerClient, _OF_CLIENTS),
    **verbs_of(SchedulerForReplicas, _OF_REPLICAS),
}
"""The verbs of both protocols, as callers call them."""
VERBS: Mapping[str, Verb] = {**CALLED, **verbs_of(ActorVerbs, _OF_REPLICAS)}
"""The verbs as they go between processes."""


def pack_error(error: Exception) -> Any:
    """Return an error packed: its class's name, its message and, of the project's own, the arguments that make it."""
    arguments = None
    if isinstance(error, ServeAppError):
        with contextlib.suppress(UndeclaredError):
            made_of = error.__reduce__()[1]
            arguments = _parameters(type(error), len(made_of)).pack(made_of)
    return type(error).__name__, str(error), arguments


def unpack_error(content: Any) -> Exception:
    """Return the error: one of the project's classes, made of its arguments, else FaultError."""
    match content:
        case [str(name), str(message), arguments]:
            kind = next((kind for kind in _errors() if kind.__name__ == name), None)
            if kind is not None and isinstance(arguments, list):
                with contextlib.suppress(UndeclaredError, TypeError, ValueError):
                    return kind(*_parameters(kind, len(arguments)).unpack(arguments))
            return FaultError(f"{name}: {message}")
    raise UndeclaredError("no error")


def _errors(root: type[ServeAppError] = ServeAppError) -> Iterator[type[ServeAppError]]:
    """Yield the classes of the project's errors that this process knows."""
    yield root
    for kind in root.__subclasses__():
        yield from _errors(kind)


def _parameters(kind: type[ServeAppError], count: int) -> Row:
    """Return the shapes of the first arguments that make an error. Errors: UndeclaredError."""
    if kind.__init__ is Exception.__init__:
        return Row([_OF_REPLICAS.of(Any)] * count)
    hints = _OF_REPLICAS.hints(kind.__init__)
    return Row([_OF_REPLICAS.of(hints[name]) for name in list(inspect.signature(kind).parameters)[:count]])
