"""Recognises a submission that is sent again because its answer was lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from serve_app.errors import InvalidSubmissionError
from serve_app.graph.parse import FINGERPRINT
from serve_app.graph.plan import OPTIMIZATIONS
from serve_app.scheduler.protocol.request_ids import without_request_id
from serve_app.store.database.changes import JobRow, Submission
from serve_app.store.tenants.credentials import without_credentials
from serve_app.store.tenants.tenants import prompt_id_of


def check_repeat(row: JobRow, submission: Submission) -> None:
    """Check that a submission with a job's id is equal to the job.

    Compared are the prompt with constants converted, without fingerprints; the output nodes; and extra_data, without
    credentials, the request's id, a configured `strict` and the pools' optimizations. The client and the queue number
    are not compared. Errors: InvalidSubmissionError.
    """
    # An ended job has no credentials.
    accepted_data, given_data = _plain_data(row.extra_data), _plain_data(submission.extra_data)
    differing = [
        name
        for name, accepted, given in (
            ("prompt", _plain(row.prompt), _plain(submission.prompt)),
            ("outputs", _text(row.targets), _text(submission.targets)),
            ("extra_data", _text(accepted_data), _text(given_data)),
        )
        if accepted != given
    ]
    if differing == ["extra_data"] and _text(accepted_data) == _text({"strict": True, **given_data}):
        return
    if differing:
        raise InvalidSubmissionError(
            f"prompt_id {prompt_id_of(row.job_id)} is that of a job with another {' and '.join(differing)}; "
            "give a new one, or none"
        )


def _plain(prompt: Mapping[str, Any]) -> str:
    return _text({n: {key: v for key, v in node.items() if key != FINGERPRINT} for n, node in prompt.items()})


def _plain_data(extra_data: Mapping[str, Any]) -> dict[str, Any]:
    given = without_request_id(without_credentials(extra_data))
    return {key: value for key, value in given.items() if key != OPTIMIZATIONS}


def _text(value: Any) -> str:
    """Return JSON text, so that NaN equals itself and parsed values equal unparsed ones."""
    return json.dumps(value, sort_keys=True)
