"""The home of every failure the project names: one root, a class per failure.

An error says what was given, what was allowed and where. It knows no transport: `api` decides the status code.
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
    # Comparing costs the product of the lengths, and what a client sends may be megabytes long.
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
    """Return a value as an error shows it, short whatever was sent."""
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
    """The body around the graph is wrong: not JSON, an unknown key, a wrong type."""


class BodyTooLargeError(ServeAppError):
    """The request body is larger than the configured limit."""


class ForeignPageError(ServeAppError):
    """A browser asks for a page of another site, or by a name that is not this server's."""


class DeviceMemoryError(ServeAppError):
    """Work does not fit the device's memory, even alone; says how much was asked for and how much there was."""

    @staticmethod
    def figures(out_of_memory: BaseException) -> str:
        """Return what torch says of an allocation that did not fit, without its advice on its own settings."""
        return str(out_of_memory).partition(" If reserved but unallocated")[0].partition("\n")[0]


class WeightsFreedError(ServeAppError):
    """Weights are used whose memory is free: the hold that kept them is closed. A fault of the server."""


class UnavailableError(ServeAppError):
    """The server cannot take a job now, and says when to ask again.

    retry_after_s: seconds until asking again is sensible.
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
    """quota: the key of the configuration. limit, remaining: what it allows, and what of that is left.

    reset_s: in how many seconds there will be more; where other things than time decide, when to ask again.
    """

    quota: str
    limit: float
    remaining: float
    reset_s: int

    @property
    def share(self) -> float:
        """How much of it is left, 0 to 1."""
        return self.remaining / self.limit if self.limit else 0.0

    @property
    def headers(self) -> dict[str, str]:
        """As what an answer says it."""
        values = {"Limit": _figure(self.limit), "Remaining": _figure(self.remaining), "Reset": str(self.reset_s)}
        return {"X-Quota": self.quota, **{f"X-RateLimit-{key}": value for key, value in values.items()}}


class QuotaError(UnavailableError):
    """A tenant has as much as its quota allows; the arguments as `QuotaLeft`'s."""

    def __init__(self, reason: str, retry_after_s: int, quota: str, limit: float, remaining: float) -> None:
        super().__init__(reason, retry_after_s)
        self.quota, self.limit, self.remaining = quota, limit, remaining

    @property
    def headers(self) -> dict[str, str]:
        """What an answer says beside the reason: which quota, what it allows, what is left, and until when."""
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
    """The job database does not answer, or refuses for reasons of its own; what was asked may be asked again."""


class DatabaseGoneError(DatabaseAwayError):
    """The database's file is no longer at its path; nothing is accepted, for it would be lost with the file."""


class DatabaseDamagedError(DatabaseAwayError):
    """The database's file cannot be read; it must be restored from a copy, or moved away to begin anew."""


class ChangeRefusedError(ServeAppError):
    """The database will never take what a job is to record, because of what is in it."""

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(reason)
        self.job_id = job_id

    def __reduce__(self) -> tuple[type[ChangeRefusedError], tuple[str, str]]:
        return (type(self), (self.job_id, str(self)))


class ClaimRefusedError(ChangeRefusedError):
    """A new job cannot have what it is to take hold of: see `changes.Claims`."""


class KeyReusedError(ClaimRefusedError):
    """The idempotency key of a submission or an upload is that of another one."""


class AssetMissingError(ClaimRefusedError):
    """An asset that a job is to use is not there."""

    def __init__(self, job_id: str, reason: str, asset_id: str) -> None:
        super().__init__(job_id, reason)
        self.asset_id = asset_id

    def __reduce__(self) -> tuple[type[AssetMissingError], tuple[str, str, str]]:  # type: ignore[override]
        return (AssetMissingError, (self.job_id, str(self), self.asset_id))


class ConcurrencyLimitError(UnavailableError):
    """As many requests of a kind are in hand as one process takes."""


class SlowBodyError(ServeAppError):
    """A request's body has not arrived in the time it has."""


class StoreError(UnavailableError):
    """The store of files does not answer, or refuses; says what was asked of it, where, and its reason."""


class OutgoingError(ServeAppError):
    """A message could not be sent to where a client wants it; says why."""


class StaleEpochError(ServeAppError):
    """A newer scheduler holds the lease: what an older one asks for must not happen."""


class StaleAttemptError(ServeAppError):
    """A task's attempt has been replaced: its answers no longer count."""


class JobMissingError(ServeAppError):
    """No job has this id."""


class JobUnfinishedError(ServeAppError):
    """A job that is to be deleted has not ended; it must be cancelled first."""


class FileMissingError(ServeAppError):
    """A file is not in its directory, or the name leaves the directory."""


class ForbiddenPathError(ServeAppError):
    """A name of a user's file leaves the user's folder."""


class UnauthenticatedError(ServeAppError):
    """A request has no credentials, or such as do not hold."""


class ForbiddenError(ServeAppError):
    """The credentials of a request hold, but not for what it asks."""


class UserMissingError(ServeAppError):
    """No user has this id."""


class ModelFileInUseError(ServeAppError):
    """A model file that is to be uploaded is there already, or jobs that have not ended name one that is to go."""


class ModelFileError(ServeAppError):
    """A model file is missing, unreadable, or of a layout that is not supported."""


class NodeError(ServeAppError):
    """A node was given something it cannot work with."""


class ComfyUIError(ServeAppError):
    """A ComfyUI cannot be started, reached or used, or has ended; says which and why, with the end of its log."""


class CancelledJobError(ServeAppError):
    """The job was cancelled while a node of it ran."""


class BackupError(ServeAppError):
    """A file is no whole backup of this release's, or must not be restored where it is to be."""


class ConfigError(ServeAppError):
    """The configuration is wrong; says the key, what was given and what is allowed."""


class WorkflowFileError(ServeAppError):
    """A workflow file given to the command line, or a change to it, cannot be used."""


class ServerRefusedError(ServeAppError):
    """The server refused what the command line asked; says its error and detail."""


class ServerUnreachableError(ServeAppError):
    """The server has not answered the command line for as long as it waits."""
