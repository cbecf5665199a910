"""Grade stored responses, check golds against themselves, and compare with a stored reward or another grader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .config import VerifierConfig
from .golds import gold_forms
from .pool import Job, WorkerPool
from .verdict import CORRECT, UNKNOWN, Verdict
from .verifier import Verifier

PROBE = r"\boxed{-98765432123456789/7}"  # an answer that no gold has: unknown means that the gold cannot be read
OTHER_TIMEOUT_FACTOR = 4  # other graders are slower; their limits are looser


@dataclass(frozen=True)
class Row:
    """One stored response. `reward` is None where none was stored, `response` where only the gold is of interest."""

    line: int
    gold: Any
    response: str | None
    reward: float | None = None
    group: str = "all"


@dataclass(frozen=True)
class GoldFault:
    """A gold that does not verify against itself, or whose value cannot be read."""

    row: Row
    reason: str
    fails_itself: bool


@dataclass(frozen=True)
class Graded:
    """A row with our verdict and what the others said: True, False, or None for no verdict."""

    row: Row
    verdict: Verdict
    stored: bool | None
    second: bool | None
    second_reason: str = ""

    @property
    def accepted(self) -> bool:
        """Our verdict is correct."""
        return self.verdict.status == CORRECT

    def disagrees(self, with_second: bool) -> bool:
        """We say something else than the stored reward (or than the second grader), unknown included."""
        other = self.second if with_second else self.stored
        return other is not None and (self.verdict.status == UNKNOWN or other != self.accepted)


@dataclass
class Audit:
    """All verdicts and faults of one file."""

    graded: list[Graded] = field(default_factory=list)
    gold_faults: list[GoldFault] = field(default_factory=list)
    golds: int = 0

    def share(self, holds: Callable[[Graded], bool]) -> float:
        """Share of the rows for which `holds`; 0 without rows."""
        return sum(map(holds, self.graded)) / len(self.graded) if self.graded else 0.0

    @property
    def unknown_share(self) -> float:
        """Share of responses without a verdict."""
        return self.share(lambda g: g.verdict.status == UNKNOWN)

    @property
    def disagreement_share(self) -> float:
        """Share of responses on which the stored reward or the second grader disagrees."""
        return self.share(lambda g: g.disagrees(False) or g.disagrees(True))

    @property
    def gold_failure_share(self) -> float:
        """Share of distinct golds that do not verify against themselves."""
        return sum(fault.fails_itself for fault in self.gold_faults) / self.golds if self.golds else 0.0


def audit(rows: Sequence[Row], config: VerifierConfig, reward_threshold: float = 0.5, second: str = "") -> Audit:
    """Grade `rows`. A stored reward above `reward_threshold` counts as correct; `second` names another grader."""
    answered = [row for row in rows if row.response is not None]
    with Verifier(config) as verifier:
        verdicts = verifier.verify_many((row.gold, row.response or "") for row in answered)
        faults, golds = check_golds(rows, verifier)
    others = second_opinions(answered, config, second) if second else [(None, "")] * len(answered)
    graded = [
        Graded(row, verdict, None if row.reward is None else row.reward > reward_threshold, accepted, reason)
        for row, verdict, (accepted, reason) in zip(answered, verdicts, others, strict=True)
    ]
    return Audit(graded, faults, golds)


def check_golds(rows: Iterable[Row], verifier: Verifier) -> tuple[list[GoldFault], int]:
    """Faults among the distinct golds, and how many of them there are."""
    firsts = list({repr(row.gold): row for row in rows}.values())
    forms = [gold_forms(row.gold) for row in firsts]
    of_itself = verifier.verify_many(
        (row.gold, f"\\boxed{{{own[0] if own else ''}}}") for row, own in zip(firsts, forms, strict=True)
    )
    of_probe = verifier.verify_many((row.gold, PROBE) for row in firsts)
    faults = []
    for row, own, itself, probe in zip(firsts, forms, of_itself, of_probe, strict=True):
        if not own:
            faults.append(GoldFault(row, "there is no gold", fails_itself=True))
        elif itself.status != CORRECT:
            faults.append(GoldFault(row, f"against itself {itself.status}: {itself.reason}", fails_itself=True))
        elif probe.status == UNKNOWN:
            faults.append(GoldFault(row, f"only its own text is correct: {probe.reason}", fails_itself=False))
    return faults, len(firsts)


def second_opinions(rows: Sequence[Row], config: VerifierConfig, grader: str) -> list[tuple[bool | None, str]]:
    """What another grader accepts, in processes of its own; None with the reason where it gives no verdict."""
    pool = WorkerPool(config.workers, config.memory_mb, config.recycle_after, grader)
    try:
        pool.start()
        if not pool.wait_ready():
            raise RuntimeError(f"the grader {grader!r} does not start:\n{pool.start_failure}")
        jobs = [Job(list(gold_forms(row.gold)), row.response or "", *_looser(config)) for row in rows]
        verdicts = [future.result() for future in [pool.submit(job) for job in jobs]]
    finally:
        pool.close()
    return [(None if v.status == UNKNOWN else v.status == CORRECT, v.reason) for v in verdicts]


def _looser(config: VerifierConfig) -> tuple[float, float]:
    return config.timeout_s * OTHER_TIMEOUT_FACTOR, config.cpu_s * OTHER_TIMEOUT_FACTOR
