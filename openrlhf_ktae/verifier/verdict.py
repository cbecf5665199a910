"""The three-valued result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Whether an answer states its gold."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNKNOWN = "unknown"
    """The gold cannot be read, or the machine failed. No text of a response leads here."""


CORRECT, WRONG, UNKNOWN = Status.CORRECT, Status.WRONG, Status.UNKNOWN

# What ends a check instead of a comparison. Where the gold has been read the answer is wrong by it.
CPU_LIMIT, MEMORY_LIMIT, DEPTH_LIMIT = "cpu time limit", "memory limit", "nested too deeply"
WALL_LIMIT, WORKER_DIED, INTERNAL_ERROR = "wall time limit", "worker died", "internal error"
FAILURES = frozenset({CPU_LIMIT, MEMORY_LIMIT, DEPTH_LIMIT, WALL_LIMIT, WORKER_DIED, INTERNAL_ERROR})


@dataclass(frozen=True)
class Verdict:
    """Status of one response against its gold answer, and how it came about."""

    status: Status
    reason: str
    """What settled it, in a few words: `same text`, `different number`, `cpu time limit`, ..."""
    extracted: str | None = None
    """The answer found in the response, as written; None where there is none."""
    gold: str | None = None
    """The gold answer as it was read."""
    seconds: float = 0.0
    """Wall time of the check, from the moment a worker gets it; waiting for a free worker is not counted."""
    detail: str = ""
    """A traceback or other text that helps to look into an unknown verdict."""

    @property
    def known(self) -> bool:
        """True for correct and wrong."""
        return self.status != UNKNOWN
