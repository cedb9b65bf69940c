"""The exceptions of the project: one root, a class per failure.

A message has what was given, what is allowed and where. They know no transport: `api` decides the status code.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """Return "; did you mean 'X'?" for the nearest allowed word that is a typing error away, else "".

    Ends an error's sentence. One edit is a typing error in a short word, up to three are in a long one; capitals count
    as nothing.
    """
    # Comparing costs the product of the lengths, and a client's value may be megabytes long.
    if not isinstance(given, str) or len(given) > 100:
        return ""
    most, plain = min(max(1, len(given) // 6), 3), given.casefold()
    letters = set(plain)
    near = [
        (_edits(plain, word.casefold()), word)
        for word in allowed
        if abs(len(word) - len(given)) <= most and len(letters - set(word.casefold())) <= most
    ]
    edits, word = min(near, default=(most + 1, ""), key=lambda found: found[0])
    return f"; did you mean {word!r}?" if edits <= most else ""


def _edits(one: str, other: str) -> int:
    """Return how many letters to insert, drop, replace or swap with the next make one word the other."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, above, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            edits = min(row[j - 1] + 1, before[j] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], wanted):
                edits = min(edits, above[j - 2] + 1)
            row.append(edits)
    return row[-1]


def short_repr(value: Any) -> str:
    """Return a value's repr for an error message, cut to a short length."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    short.maxlevel = 3
    try:
        return short.repr(value)
    except ValueError:  # an integer too long for Python to write
        return "an absurdly long number"


class ServeAppError(Exception):
    """Root of every failure raised on purpose by this project."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a submitted graph.

    type: ComfyUI's name for it (`required_input_missing`, `value_not_in_list`, …).
    extra: ComfyUI's `extra_info` members. node_id is None for a problem of the whole graph.
    """

    type: str
    message: str
    details: str = ""
    node_id: str | None = None
    class_type: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        where = "" if self.node_id is None else f"{self.class_type or 'node'} {self.node_id}: "
        return f"{where}{self.message}" + (f" ({self.details})" if self.details else "")


class InvalidGraphError(ServeAppError):
    """The graph cannot run; carries every problem found, not only the first."""

    SHOWN = 20
    """How many problems its words name before they count the others."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        more = len(problems) - self.SHOWN
        super().__init__(
            "; ".join(map(str, problems[: self.SHOWN])) + (f"; and {more} more problems" if more > 0 else "")
        )
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[InvalidGraphError], tuple[tuple[Problem, ...]]]:
        return (InvalidGraphError, (self.problems,))


class InvalidSubmissionError(ServeAppError):
    """The submission's body is invalid: not JSON, an unknown key, a wrong type."""


class BodyTooLargeError(ServeAppError):
    """The request body is larger than the configured limit."""


class ForeignPageError(ServeAppError):
    """A browser's request comes from another site's page, or has a Host that is not this server's."""


class DeviceMemoryError(ServeAppError):
    """Work does not fit the device's memory, even alone; has the requested and the available bytes."""

    @staticmethod
    def figures(out_of_memory: BaseException) -> str:
        """Return torch's message about a failed allocation, without its advice on its own settings."""
        return str(out_of_memory).partition(" If reserved but unallocated")[0].partition("\n")[0]


class RankLostError(ServeAppError):
    """Another rank of this replica has ended or does not answer: what they compute together cannot go on."""


class WeightsFreedError(ServeAppError):
    """Weights are used whose memory is free: the hold that kept them is closed. A fault of the server."""


class UnavailableError(ServeAppError):
    """The server cannot take a request at the moment.

    retry_after_s: seconds until a retry is sensible.
    """

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """What an answer says beside the reason."""
        return {"Retry-After": str(self.retry_after_s)}

    def __reduce__(self) -> tuple[type[UnavailableError], tuple[str, int]]:
        return (type(self), (str(self), self.retry_after_s))


class NotReadyError(UnavailableError):
    """The cluster is still starting: no replica has joined."""


class QueueFullError(UnavailableError):
    """As many jobs wait as the configuration allows."""


@dataclass(frozen=True, slots=True)
class QuotaLeft:
    """What is left of a quota. quota: its key in the configuration. limit, remaining: the allowed number, and what is
    left.

    reset_s: seconds until more is available; if that does not depend on time, until a retry is sensible.
    """

    quota: str
    limit: float
    remaining: float
    reset_s: int

    @property
    def share(self) -> float:
        """The share that is left, 0 to 1."""
        return self.remaining / self.limit if self.limit else 0.0

    @property
    def headers(self) -> dict[str, str]:
        """The headers of an answer."""
        values = {"Limit": _figure(self.limit), "Remaining": _figure(self.remaining), "Reset": str(self.reset_s)}
        return {"X-Quota": self.quota, **{f"X-RateLimit-{key}": value for key, value in values.items()}}


class QuotaError(UnavailableError):
    """A tenant's quota is used up; the arguments are those of `QuotaLeft`."""

    def __init__(self, reason: str, retry_after_s: int, quota: str, limit: float, remaining: float) -> None:
        super().__init__(reason, retry_after_s)
        self.quota, self.limit, self.remaining = quota, limit, remaining

    @property
    def headers(self) -> dict[str, str]:
        """The headers of an answer: the quota, its limit, what is left, and until when."""
        left = QuotaLeft(self.quota, self.limit, self.remaining, self.retry_after_s)
        return {**super().headers, **left.headers}

    def __reduce__(self) -> tuple[type[QuotaError], tuple[str, int, str, float, float]]:  # type: ignore[override]
        return (QuotaError, (str(self), self.retry_after_s, self.quota, self.limit, self.remaining))


def _figure(number: float) -> str:
    """Return a number of a quota, of seconds to the millisecond, without an exponent."""
    return f"{round(number, 3):f}".rstrip("0").rstrip(".")


class DrainingError(UnavailableError):
    """This scheduler is about to be replaced and takes no new job."""


class DatabaseAwayError(UnavailableError):
    """The job database does not answer, or refuses for reasons of its own; a retry is possible."""


class DatabaseGoneError(DatabaseAwayError):
    """The database's file is no longer at its path; nothing is accepted, for it would be lost with the file."""


class DatabaseDamagedError(DatabaseAwayError):
    """The database's file cannot be read; it must be restored from a copy, or moved away to begin anew."""


class ChangeRefusedError(ServeAppError):
    """The database will never accept a job's record, because of its content."""

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(reason)
        self.job_id = job_id

    def __reduce__(self) -> tuple[type[ChangeRefusedError], tuple[str, str]]:
        return (type(self), (self.job_id, str(self)))


class ClaimRefusedError(ChangeRefusedError):
    """A new job's claim cannot be granted: see `changes.Claims`."""


class KeyReusedError(ClaimRefusedError):
    """The idempotency key of a submission or an upload was used for another one."""


class AssetMissingError(ClaimRefusedError):
    """An asset that a job uses does not exist."""

    def __init__(self, job_id: str, reason: str, asset_id: str) -> None:
        super().__init__(job_id, reason)
        self.asset_id = asset_id

    def __reduce__(self) -> tuple[type[AssetMissingError], tuple[str, str, str]]:  # type: ignore[override]
        return (AssetMissingError, (self.job_id, str(self), self.asset_id))


class ConcurrencyLimitError(UnavailableError):
    """One process has as many concurrent requests of a kind as its limit allows."""


class SlowBodyError(ServeAppError):
    """A request's body has not arrived within its timeout."""


class StoreError(UnavailableError):
    """The store of files does not answer, or refuses; has the operation, the place and the reason."""


class StoreRefusedError(StoreError):
    """The store of files refuses and would again: the bucket is not there, or the credentials do not allow it."""


class OutgoingError(ServeAppError):
    """A message could not be sent to a client's URL; has the reason."""


class StaleEpochError(ServeAppError):
    """A newer scheduler has the lease: operations of an older one must not be executed."""


class StaleAttemptError(ServeAppError):
    """A task's attempt has been replaced: its answers no longer count."""


class JobMissingError(ServeAppError):
    """No job has this id."""


class JobUnfinishedError(ServeAppError):
    """An unfinished job cannot be deleted; it must be cancelled first."""


class FileMissingError(ServeAppError):
    """A file is not in its directory, or the name leaves the directory."""


class ForbiddenPathError(ServeAppError):
    """A name of a user's file leaves the user's folder."""


class UnauthenticatedError(ServeAppError):
    """A request has no credentials, or invalid ones."""


class ForbiddenError(ServeAppError):
    """The credentials of a request are valid, but lack a scope."""


class UserMissingError(ServeAppError):
    """No user has this id."""


class ModelFileInUseError(ServeAppError):
    """A model file to upload exists already, or unfinished jobs use one to delete."""


class ModelFileError(ServeAppError):
    """A model file is missing, unreadable, or of a layout that is not supported."""


class NodeError(ServeAppError):
    """A node has an input that it cannot work with."""


class RunStateError(ServeAppError):
    """The saved state of a run does not go with the run."""


class ComfyUIError(ServeAppError):
    """A ComfyUI cannot be started, reached or used, or has ended; has the reason and the end of its log."""


class CancelledJobError(ServeAppError):
    """The job was cancelled while a node of it ran."""


class BackupError(ServeAppError):
    """A file is no complete backup of this release, or must not be restored into this database."""


class TenantMoveError(ServeAppError):
    """A tenant cannot be moved out of this database, or into it."""


class ConfigError(ServeAppError):
    """The configuration is wrong; has the key, what was given and what is allowed."""


class WorkflowFileError(ServeAppError):
    """A workflow file given to the command line, or a change to it, cannot be used."""


class ServerRefusedError(ServeAppError):
    """The server refused a request of the command line; has its error and detail."""


class ServerUnreachableError(ServeAppError):
    """The server has not answered the command line within its patience_s."""
