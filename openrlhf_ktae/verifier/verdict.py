"""The three-valued result of one check."""

from __future__ import annotations

from dataclasses import dataclass

CORRECT = "correct"
WRONG = "wrong"
UNKNOWN = "unknown"

# Reasons of an unknown verdict that a second attempt may turn into a verdict.
RETRYABLE = frozenset({"wall time limit", "cpu time limit", "memory limit", "worker died", "internal error"})


@dataclass(frozen=True)
class Verdict:
    """Status of one response against its gold answer, and how it came about."""

    status: str
    """`correct`, `wrong` or `unknown`."""
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
