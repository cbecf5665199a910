"""Grade stored responses, check golds against themselves, and compare with stored rewards and another grader."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .config import VerifierConfig
from .golds import gold_forms
from .graders import verdict_of
from .pool import Job, WorkerPool
from .verdict import CORRECT, UNKNOWN, Reason, Verdict
from .verifier import Verifier

PROBE = r"\boxed{-98765432123456789/7}"  # matches no gold: an unknown verdict means that the gold cannot be read
OTHER_TIMEOUT_FACTOR = 4  # other graders are slower


@dataclass(frozen=True)
class Row:
    """One stored response. `reward` is None if none was stored; `response` is None if only the gold is checked."""

    line: int
    gold: Any
    response: str | None
    reward: float | None = None
    group: str = "all"


@dataclass(frozen=True)
class GoldFault:
    """A gold that does not verify against itself, or whose value cannot be read."""

    row: Row
    verdict: Verdict
    fails_itself: bool

    @property
    def reason(self) -> str:
        """A description of the fault."""
        if self.verdict.reason == Reason.NO_GOLD:
            return f"there is {self.verdict.reason}"
        what = f"against itself {self.verdict.status}" if self.fails_itself else "only its own text is correct"
        return f"{what}: {self.verdict.reason}"


@dataclass(frozen=True)
class Graded:
    """A row with our verdict, and the verdicts of the stored reward and of another grader, if any."""

    row: Row
    verdict: Verdict
    stored: Verdict | None
    second: Verdict | None

    def disagrees(self, other: Verdict | None) -> bool:
        """Whether the other verdict is known and differs from ours, which may be unknown."""
        return other is not None and other.known and other.status != self.verdict.status


@dataclass
class Audit:
    """All verdicts and faults of one file."""

    graded: list[Graded] = field(default_factory=list)
    gold_faults: list[GoldFault] = field(default_factory=list)
    golds: int = 0


def audit(rows: Sequence[Row], config: VerifierConfig, reward_threshold: float = 0.5, second: str = "") -> Audit:
    """Grade `rows`. A stored reward above `reward_threshold` counts as correct; `second` names another grader."""
    answered = [row for row in rows if row.response is not None]
    with Verifier(config) as verifier:
        verdicts = verifier.verify_many((row.gold, row.response or "") for row in answered)
        faults, golds = check_golds(rows, verifier)
    others = second_opinions(answered, config, second) if second else [None] * len(answered)
    stored = [None if row.reward is None else verdict_of(row.reward > reward_threshold) for row in answered]
    return Audit(list(map(Graded, answered, verdicts, stored, others)), faults, golds)


def check_golds(rows: Iterable[Row], verifier: Verifier) -> tuple[list[GoldFault], int]:
    """Return the faults of the distinct golds, and the number of distinct golds."""
    firsts = list({repr(row.gold): row for row in rows}.values())
    forms = [gold_forms(row.gold) for row in firsts]
    of_itself = verifier.verify_many(
        (row.gold, f"\\boxed{{{own[0] if own else ''}}}") for row, own in zip(firsts, forms, strict=True)
    )
    of_probe = verifier.verify_many((row.gold, PROBE) for row in firsts)
    faults = []
    for row, itself, probe in zip(firsts, of_itself, of_probe, strict=True):
        if itself.status != CORRECT:
            faults.append(GoldFault(row, itself, fails_itself=True))
        elif probe.status == UNKNOWN:
            faults.append(GoldFault(row, probe, fails_itself=False))
    return faults, len(firsts)


def second_opinions(rows: Sequence[Row], config: VerifierConfig, grader: str) -> list[Verdict]:
    """Return the verdicts of another grader, run in separate processes. Raises RuntimeError if it does not start."""
    pool = WorkerPool(config.workers, config.memory_mb, config.recycle_after, grader)
    try:
        pool.start()
        if not pool.wait_ready():
            raise RuntimeError(f"the grader {grader!r} does not start:\n{pool.start_failure}")
        limits = config.timeout_s * OTHER_TIMEOUT_FACTOR, config.cpu_s * OTHER_TIMEOUT_FACTOR
        jobs = [Job(list(gold_forms(row.gold)), row.response or "", *limits) for row in rows]
        return [future.result() for future in [pool.submit(job) for job in jobs]]
    finally:
        pool.close()
