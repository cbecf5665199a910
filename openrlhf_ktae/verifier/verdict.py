"""The three-valued result of one check."""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Whether an answer is equal to its gold."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNKNOWN = "unknown"
    """The gold cannot be read, or the machine or a reward function failed. An unreadable answer is wrong instead."""


CORRECT, WRONG, UNKNOWN = Status.CORRECT, Status.WRONG, Status.UNKNOWN


class Reason(StrEnum):
    """The cause of a verdict. Free text goes into `Verdict.detail`."""

    # The answer was compared.
    SAME_TEXT = "same text"
    SAME_NUMBER = "same number"
    SAME_VALUE = "same value"
    SAME_CHOICE = "same choice"
    DIFFERENT_TEXT = "different text"
    DIFFERENT_NUMBER = "different number"
    DIFFERENT_VALUE = "different value"
    DIFFERENT_CHOICE = "different choice"

    # The response has an answer, no answer, or one that cannot be compared.
    ANSWER_FOUND = "answer found"
    NO_BOX = "no boxed answer"
    OPEN_BOX = "box never closed"
    EMPTY_BOX = "empty box"
    MALFORMED_BOX = "malformed box"
    NO_TAG = "no answer tag"
    OPEN_TAG = "answer tag never closed"
    EMPTY_TAG = "empty answer tag"
    EMPTY_ANSWER = "empty answer"
    OPEN_THINKING = "thinking never ended"
    ANSWER_TOO_LONG = "answer too long"
    ANSWER_UNREADABLE = "answer unreadable"

    # Whether the gold can be read, and if not, why.
    GOLD_READ = "gold read"
    NO_GOLD = "no gold"
    GOLD_IS_PROSE = "gold is prose"
    GOLD_UNREADABLE = "gold unreadable"

    # A limit or an error ended the check. If the gold had been read, the answer counts as wrong.
    CPU_LIMIT = "cpu time limit"
    MEMORY_LIMIT = "memory limit"
    DEPTH_LIMIT = "nested too deeply"
    WALL_LIMIT = "wall time limit"
    WORKER_DIED = "worker died"
    INTERNAL_ERROR = "internal error"

    # No worker could do the check.
    CLOSED = "verifier closed"
    NO_WORKER = "no worker could start"

    # Another grader, or a user's reward function, decided.
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    REWARD_FUNC = "reward_func"
    REWARD_FUNC_FAILED = "reward_func failed"


FAILURES = frozenset(
    {
        Reason.CPU_LIMIT,
        Reason.MEMORY_LIMIT,
        Reason.DEPTH_LIMIT,
        Reason.WALL_LIMIT,
        Reason.WORKER_DIED,
        Reason.INTERNAL_ERROR,
    }
)


@dataclass(frozen=True)
class Verdict:
    """Status of one response against its gold answer, and the reason."""

    status: Status
    reason: Reason
    extracted: str | None = None
    """The answer found in the response, as written; None if there is none."""
    gold: str | None = None
    """The accepted answers that were read from the gold, separated by `|`."""
    seconds: float = 0.0
    """Wall time of the check in seconds, without the wait for a free worker."""
    detail: str = ""
    """A traceback, a signal or other text that helps to diagnose a failure."""

    @property
    def known(self) -> bool:
        """True for correct and wrong."""
        return self.status != UNKNOWN
