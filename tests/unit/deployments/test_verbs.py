"""What every verb of the scheduler's takes and answers, and every error, comes out as it went in, and nothing else."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pickle
import types
import typing
from collections import abc
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import pytest

import serve_app
from serve_app import errors
from serve_app.deployments import verbs
from serve_app.deployments.codec import Encoder, Shapes, UndeclaredError, decode
from serve_app.deployments.verbs import VERBS, FaultError, Verb, pack_error, queries, unpack_error
from serve_app.errors import Problem, ServeAppError
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Lora
from serve_app.scheduler.protocol.messages import Free, Prefetch, TaskStopped
from serve_app.store.database.query_scope import ServerScoped, TenantScoped

SHAPES = Shapes(lambda: verbs.client_names() | verbs.replica_names())
SCALARS = {str: "é\ud800", bytes: b"\x00\xff", bool: True, int: 1 << 70, float: 0.5, None: None, type(None): None}
JSON = {"a": [1, 2.5, None, True, "\ud83d"], "b": {"c": -(1 << 80)}, "\ud800": "a key"}


def sent(packed: Any) -> Any:
    """Return what arrives of packed values."""
    return decode(Encoder()(packed))


def examples(kind: Any, within: tuple[Any, ...] = ()) -> list[Any]:
    """Return values of a type that have, together, every class that it may hold."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in SCALARS:
        return [SCALARS[kind]]
    if kind in (Any, object):
        return [JSON]
    if origin is Literal:
        return list(arguments)
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return [value for member in arguments if declared(member) for value in examples(member, within)]
    if origin is tuple and ... not in arguments:
        return together([examples(argument, within) for argument in arguments], tuple)
    if origin in (list, tuple, frozenset, abc.Sequence):
        make = tuple if origin is abc.Sequence else origin
        return [make(examples(arguments[0], within)), make(())]
    if origin in (dict, abc.Mapping):
        [key, *_] = examples(arguments[0])
        return [{}, *({key: value} for value in examples(arguments[1], within))]
    hints = SHAPES.hints(kind)
    names = [field.name for field in fields(kind) if field.init] if is_dataclass(kind) else kind._fields
    if kind in within:  # it ends here: without what it can be made without
        names = [field.name for field in fields(kind) if (field.default, field.default_factory) == (MISSING, MISSING)]
    return together([examples(hints[name], (*within, kind)) for name in names], lambda values: kind(*values))


def together(choices: list[list[Any]], make: Any) -> list[Any]:
    """Return as many values as it takes for each place to have had each of its choices."""
    most = max(map(len, choices), default=1)
    return [make([choice[i % len(choice)] for choice in choices]) for i in range(most)]


def declared(kind: Any) -> bool:
    try:
        SHAPES.of(kind)
    except UndeclaredError:
        return False
    return True


@pytest.mark.parametrize("verb", [verb for verb in VERBS.values() if verb.name != "query"], ids=lambda verb: verb.name)
def test_what_a_verb_takes_and_answers_arrives_as_it_was_sent(verb: Verb) -> None:
    kinds = [verb.hints[name] for name in list(verb.signature.parameters)[1:]]
    for arguments in together([examples(kind) for kind in kinds], tuple):
        assert verb.unpack(sent(verb.pack(arguments))) == arguments
    for answer in examples(verb.hints["return"]):
        assert verb.unpack_answer((), sent(verb.pack_answer((), answer))) == answer


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.__name__)
def test_a_query_and_its_answer_arrive_as_they_were_sent(query: Any) -> None:
    verb = VERBS["query"]
    for asked in examples(query):
        assert verb.unpack(sent(verb.pack((asked,)))) == (asked,)
        for answer in examples(SHAPES.hints(query.execute)["return"]):
            assert verb.unpack_answer((asked,), sent(verb.pack_answer((asked,), answer))) == answer


def used_by_the_ingress() -> Iterator[type]:
    """Yield the queries that modules above the scheduler import."""
    root = Path(serve_app.__file__).parent
    for file in [*root.glob("api/**/*.py"), *root.glob("service/**/*.py"), root / "store" / "tenants" / "metered.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("serve_app.store"):
                module = importlib.import_module(str(node.module))
                found = [getattr(module, alias.name) for alias in node.names]
                yield from (
                    kind for kind in found if isinstance(kind, type) and kind not in (TenantScoped, ServerScoped)
                )


def test_the_ingress_may_send_each_query_that_it_has_and_no_other() -> None:
    used = {kind for kind in used_by_the_ingress() if issubclass(kind, (TenantScoped, ServerScoped))}
    assert used == set(queries())


def test_a_query_that_is_not_listed_is_refused() -> None:
    from serve_app.store.tenants.pauses import AllPauses

    with pytest.raises(UndeclaredError, match="a AllPauses is none of what is declared here"):
        VERBS["query"].pack((AllPauses(),))
    with pytest.raises(UndeclaredError):
        VERBS["query"].unpack([["AllPauses", []]])


def test_only_what_is_data_may_be_in_a_message() -> None:
    recipe = Recipe("backbone", "checkpoints", "a", (PackFunctions(),))
    with pytest.raises(UndeclaredError, match="a PackFunctions is none of what is declared here"):
        VERBS["poll"].pack_answer(("r", 1, 0), [(1, Prefetch((recipe,)))])
    with pytest.raises(UndeclaredError, match="a TaskStopped is none"):
        VERBS["free"].pack((TaskStopped(None),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verb", "content"),
    [
        ("free", [[True]]),
        ("free", [[True, 1]]),
        ("free", [{"weights": True, "results": True}]),
        ("forget", ["a job", ""]),
        ("cancel", [["a job"], ""]),
        ("cancel_all", [None, "ended", ""]),
        ("poll", ["replica", "1", 0]),
        ("report", ["replica", 1, [["os.system", ["true"]]], None]),
        ("report", ["replica", 1, [["TaskStopped", [["job", 0]]]], None]),
    ],
)
def test_arguments_of_other_types_are_refused(verb: str, content: list[Any]) -> None:
    with pytest.raises(UndeclaredError):
        VERBS[verb].unpack(sent(content))


def all_errors() -> list[type[ServeAppError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ServeAppError)]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_an_error_of_the_project_arrives_with_its_fields(kind: Any) -> None:
    made = {"problems": [Problem("type", "why", extra={"a": 1})], "retry_after_s": 7, "limit": 5, "remaining": 0.5}
    parameters = [] if kind.__init__ is Exception.__init__ else inspect.signature(kind).parameters
    error = kind(*(made.get(name, name) for name in parameters or ["why"]))
    arrived = unpack_error(sent(pack_error(error)))
    assert (type(arrived), str(arrived), vars(arrived)) == (kind, str(error), vars(error))


def test_any_other_error_arrives_as_a_fault_with_its_words() -> None:
    arrived = unpack_error(sent(pack_error(KeyError("missing"))))
    assert (type(arrived), str(arrived)) == (FaultError, "KeyError: 'missing'")
    for content in (["SystemExit", "0", [0]], ["ServeAppError", "why", None], ["QuotaError", "why", ["too few"]]):
        assert isinstance(unpack_error(content), FaultError)
    with pytest.raises(UndeclaredError):
        unpack_error("no error")


def test_what_is_no_data_in_a_nodes_output_arrives_as_its_types_name() -> None:
    """Whoever writes it down as JSON says which type that cannot be."""
    arrived = sent({"of NumPy": numpy.float64(0.5), "own": Path("a"), "mapping": types.MappingProxyType({"a": 1})})
    assert (arrived["of NumPy"], arrived["mapping"]) == (0.5, {"a": 1})
    for value in (arrived["own"], pickle.loads(pickle.dumps(arrived["own"]))):
        with pytest.raises(TypeError, match="Object of type PosixPath is not JSON serializable"):
            json.dumps(value)


def test_lora_strengths_and_other_whole_numbers_stay_whole() -> None:
    [(_, arrived)] = VERBS["poll"].unpack_answer(
        ("r", 1, 0),
        sent(VERBS["poll"].pack_answer(("r", 1, 0), [(1, Prefetch((Recipe("vae", "f", "n", (Lora("l", 1),)),)))])),
    )
    assert repr(arrived.recipes[0].patches) == "(Lora(name='l', strength=1, bypass=False),)"
    assert VERBS["free"].unpack(sent(VERBS["free"].pack((Free(True, False),)))) == (Free(True, False),)
