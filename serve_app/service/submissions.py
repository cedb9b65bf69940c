"""Parsing and validation of submissions, up to a job that the scheduler can accept.

The allowed keys are decided here once for all dialects, and so is the pool in which a workflow can run. Keys: ComfyUI's
own (`server.py`, POST /prompt) and the contract's.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve_app.config.pool import SHARED
from serve_app.errors import FileMissingError, InvalidGraphError, InvalidSubmissionError, Problem, UnavailableError
from serve_app.graph.bounds import within_bounds
from serve_app.graph.destination import destinations
from serve_app.graph.files import FEW_NODES, is_quick
from serve_app.graph.graph import Graph
from serve_app.graph.job_size import within_quota
from serve_app.graph.missing_classes import with_packs
from serve_app.graph.model_files import with_known_files
from serve_app.graph.parse import parse, render
from serve_app.graph.plan import Pool
from serve_app.graph.spec import NodeSpec
from serve_app.graph.uploads import with_uploads
from serve_app.graph.validate import Validated, needs_prevalidation, validate, with_findings
from serve_app.limits import refused
from serve_app.nodes.replacements import replaced
from serve_app.nodes.unsupported import NOT_THERE
from serve_app.scheduler.core.time_limit import LONGEST_DEADLINE_S
from serve_app.scheduler.protocol.client import SchedulerClient
from serve_app.service.request_limits import Limits
from serve_app.store.database.changes import Submission
from serve_app.store.files.store import FileRef, Store
from serve_app.store.models.check import ModelCheck

KEYS = ("prompt", "client_id", "extra_data", "prompt_id", "number", "front", "partial_execution_targets")
"""The keys of a submission: the contract's two and ComfyUI's other five."""

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class SubmissionCheck:
    """Finds the pools in which a tenant's workflows can run. choices, store, pools: as in `Service`."""

    def __init__(
        self,
        scheduler: SchedulerClient,
        choices: Callable[[str], Sequence[str]],
        store: Store,
        pools: Sequence[Pool],
        limits: Limits,
        model_check: ModelCheck,
        tenant: str,
    ) -> None:
        self._scheduler = scheduler
        self._choices = choices
        self._store = store
        self._pools = pools
        self._limits = limits
        self._model_check = model_check
        self._tenant = tenant

    async def settled(
        self, submission: Submission, targets: Sequence[str] | None, *, partial: bool
    ) -> tuple[Submission, list[Problem]]:
        """Return a submission with its destination, and why some of its output nodes were left out.

        Errors: as `Service.submit`; NotReadyError if it needs a class that only a pool may have whose classes are not
        known yet.
        """
        self._check_pool(submission.extra_data)
        try:
            pool, validated = await self._settle(submission, targets, partial=partial)
        except InvalidGraphError as error:
            raise InvalidGraphError(with_packs(error.problems, submission.prompt)) from None
        if pool != SHARED:
            # Stored with the job, so that it is planned again as it was validated.
            submission = replace(submission, extra_data={**submission.extra_data, "pool": pool})
        prompt = _prompt(validated.graph, submission.prompt)
        return replace(submission, prompt=prompt, targets=tuple(validated.outputs)), list(validated.problems)

    def _check_pool(self, extra_data: Mapping[str, Any]) -> None:
        names = [SHARED, *(pool.name for pool in self._pools)]
        if "pool" in extra_data and extra_data["pool"] not in names:
            reason = f"must be one of {', '.join(names)}, not {abbreviated(extra_data['pool'])}"
            raise InvalidSubmissionError(f"'pool' in 'extra_data' {reason}")

    async def _settle(
        self, submission: Submission, targets: Sequence[str] | None, *, partial: bool
    ) -> tuple[str, Validated]:
        """Return the first destination where a whole workflow can run, else where some of its outputs can."""
        known, silent = await self.known()
        few = len(submission.prompt) <= FEW_NODES
        parsed = self._parsed(submission.prompt) if few else await asyncio.to_thread(self._parsed, submission.prompt)
        graph = replaced(parsed, known[SHARED])
        asked = submission.extra_data.get("pool")
        if asked in silent:
            raise silent[asked]
        try:
            able = destinations(graph, known, self._pools, asked)
        except InvalidGraphError:
            for reason in silent.values():
                raise reason from None
            raise
        found: list[tuple[str, Validated]] = []
        for name in able:
            unsupported = NOT_THERE if name == SHARED else {}
            check = functools.partial(validate, graph, known[name], self._choices, targets, unsupported)
            quick = is_quick(graph, known[name])
            # Reading the choices lists directories, which may be slow on a shared volume.
            validated = check() if quick else await asyncio.to_thread(check)
            if not quick:
                validated = await asyncio.to_thread(with_uploads, validated, known[name], self._exists)
            if name == SHARED:
                validated = within_bounds(validated, known[name], self._limits.sizes, self._limits.latents)
            if name == SHARED and not quick:
                refusal = self._model_check.refusal
                validated = await asyncio.to_thread(with_known_files, validated, known[name], refusal)
            if name == SHARED and needs_prevalidation(validated, known[name]):
                checked = await self._scheduler.check(validated.graph, validated.outputs)
                validated = with_findings(validated, checked.problems, checked.fingerprints)
            grave = any(not partial or problem.type == "missing_node_type" for problem in validated.problems)
            if not validated.problems or (validated.outputs and not grave):
                within_quota(validated.graph, validated.outputs, known[name], self._limits.quotas.of(self._tenant))
                return name, validated
            found.append((name, validated))
        raise InvalidGraphError(found[0][1].problems)

    def _exists(self, name: str) -> bool:
        try:
            self._store.stat(FileRef.parse(name))
        except FileMissingError:
            return False
        return True

    async def known(self) -> tuple[dict[str, Mapping[str, NodeSpec]], dict[str, UnavailableError]]:
        """Return the node classes by destination, and for unknown ones the reason."""
        known = {SHARED: await self._scheduler.specs()}
        silent: dict[str, UnavailableError] = {}
        for pool in self._pools:
            if pool.whole:
                try:
                    known[pool.name] = await self._scheduler.specs(pool.name)
                except UnavailableError as error:
                    silent[pool.name] = error
        return known, silent

    def _parsed(self, prompt: Mapping[str, Any]) -> Graph:
        if len(prompt) > (most := self._limits.sizes.graph_nodes):
            refused("limits.graph_nodes")
            message = f"the prompt has {len(prompt)} nodes; limits.graph_nodes of the configuration allows {most}"
            raise InvalidGraphError([Problem("too_many_nodes", message)])
        return parse(prompt)


def parse_submission(body: Mapping[str, Any]) -> tuple[Submission, Sequence[str] | None]:
    """Return the body as a submission with its prompt unchecked, and the targets. Errors: InvalidSubmissionError."""
    wrong: list[str] = []

    def field(key: str, what: str, fits: Callable[[Any], bool], default: Any = None) -> Any:
        if key not in body:
            return default
        if not fits(body[key]):
            wrong.append(f"'{key}' must be {what}, not {abbreviated(body[key])}")
            return default
        return body[key]

    number = field("number", "a finite number", _is_finite)
    targets = field("partial_execution_targets", "a list of node ids", _is_id_list)
    job_id = field("prompt_id", "a UUID such as 550e8400-e29b-41d4-a716-446655440000", is_job_id)
    submission = Submission(
        job_id=job_id or str(uuid.uuid4()),
        prompt=field("prompt", "an object of nodes by id", _is_object, {}),
        targets=(),
        client_id=field("client_id", "a string without NUL", _is_string),
        extra_data=field("extra_data", "an object", _is_object, {}),
        number=None if number is None else float(number),
        front=field("front", "true or false", lambda value: isinstance(value, bool), False),
        id_is_new=job_id is None,
    )
    strict = submission.extra_data.get("strict", False)
    if not isinstance(strict, bool):
        wrong.append(f"'strict' in 'extra_data' must be true or false, not {abbreviated(strict)}")
    for key in ("node_time_s", "job_time_s"):
        seconds = submission.extra_data.get(key, 1)
        if not _is_finite(seconds) or seconds <= 0:
            wrong.append(f"'{key}' in 'extra_data' must be a number of seconds above 0, not {abbreviated(seconds)}")
    deadline_s = submission.extra_data.get("deadline_s", 1)
    if not _is_finite(deadline_s) or not 0 < deadline_s <= LONGEST_DEADLINE_S:
        allowed = f"above 0 and at most {LONGEST_DEADLINE_S:.0f}"
        past = ", which has passed already" if _is_finite(deadline_s) and deadline_s <= 0 else ""
        wrong.append(
            f"'deadline_s' in 'extra_data' must be seconds from the submission on, {allowed}, "
            f"not {abbreviated(deadline_s)}{past}"
        )
    priority = submission.extra_data.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int):
        wrong.append(f"'priority' in 'extra_data' must be a whole number, not {abbreviated(priority)}")
    if "prompt" not in body:
        wrong.append("'prompt' is missing: an object of nodes by id")
    wrong += [
        f"{abbreviated(key)} is not a key of a submission; allowed are {', '.join(KEYS)}"
        for key in body
        if key not in KEYS
    ]
    if wrong:
        raise InvalidSubmissionError("; ".join(wrong))
    return submission, targets


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_string(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def is_job_id(value: Any) -> bool:
    """Whether a value has the form of a job's id."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _is_id_list(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(i, str) for i in value))


def abbreviated(value: Any) -> str:
    """Return a value's repr for an error message, cut to a short length."""
    if isinstance(value, Mapping | list):
        return "an object" if isinstance(value, Mapping) else "a list"
    try:
        text = repr(value) if isinstance(value, str) else json.dumps(value)
    except ValueError:  # an integer with more digits than Python prints
        return "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}…"


def _prompt(graph: Graph, prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the wire JSON of a validated graph: converted constants, and the other members of its nodes."""
    return {node_id: {**prompt[node_id], **node} for node_id, node in render(graph).items()}
