"""Score stored responses from the judgements in their rows, or with this project's verifier if there is none."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from openrlhf_ktae.base.errors import BadInput
from openrlhf_ktae.evaluation.stored import SHOWN
from openrlhf_ktae.verifier import CORRECT, UNKNOWN, WRONG, Verifier, VerifierConfig

VERDICTS = {
    CORRECT: 1.0, "right": 1.0, "true": 1.0, "1": 1.0, WRONG: 0.0, "incorrect": 0.0, "false": 0.0, "0": 0.0,
    UNKNOWN: None,
}  # fmt: skip
VERDICT, SCORE = "verdict", "score"
FLAGS = ("accuracy", "correct")
REWARDS = ("published_reward", "reward")  # a shaped reward does not show correctness, so only 0 and 1 count
LARGEST_SCORE = 1e15  # larger values are not judgements, and their sums overflow
VERIFIER = "this project's verifier"


def judge(rows: Mapping[int, Mapping[str, Any]], source: str) -> tuple[dict[int, float | None], str]:
    """Return the raw score of each row (None if unknown), and a text that counts rows by source of judgement.

    The first of these is used: the row's `verdict`; its `score`; `accuracy` or `correct`, if 0 or 1; `published_reward`
    or `reward`, if 0 or 1 in all rows that have it; the verifier's verdict. A score above 0 means correct.

    Args:
        rows: row number in the file, from 1, -> row from `evaluation.stored.read`.
        source: name of the file, for messages.

    Raises:
        BadInput: a verdict or a score cannot be read.
    """
    shaped = {name for row in rows.values() for name in REWARDS if _has(row, name) and not _is_flag(row[name])}
    usable = [name for name in (*FLAGS, *REWARDS) if name not in shaped]
    found = {number: _recorded(row, usable, f"{source}: response {number}") for number, row in rows.items()}
    left = [number for number, one in found.items() if one is None]
    judged = {number: one for number, one in found.items() if one is not None}
    if left:
        with Verifier(VerifierConfig()) as verifier:
            verdicts = verifier.verify_many((rows[number]["gold"], rows[number]["response"]) for number in left)
        judged |= {number: (VERDICTS[one.status], VERIFIER) for number, one in zip(left, verdicts, strict=True)}
    counts = Counter(by for _, by in judged.values()).most_common()
    named = [(by if by == VERIFIER else f"{by} in the file", f"{count:,}") for by, count in counts]
    by_whom = ", ".join(f"{by} ({count})" if len(named) > 1 else by for by, count in named)
    return {number: score for number, (score, _) in judged.items()}, by_whom


def _has(row: Mapping[str, Any], name: str) -> bool:
    return row.get(name) is not None


def _is_flag(value: Any) -> bool:
    return isinstance(value, (int, float)) and value in (0, 1)


def _recorded(row: Mapping[str, Any], usable: Sequence[str], where: str) -> tuple[float | None, str] | None:
    if _has(row, VERDICT):
        return _verdict(row[VERDICT], where), VERDICT
    if _has(row, SCORE):
        return _score(row[SCORE], where), SCORE
    for name in usable:
        if _has(row, name) and _is_flag(row[name]):
            return float(row[name]), name
    return None


def _verdict(value: Any, where: str) -> float | None:
    word = str(int(value)) if _is_flag(value) else value.strip().lower() if isinstance(value, str) else None
    if word not in VERDICTS:
        raise BadInput(f"{where}: verdict is {str(value)[:SHOWN]!r}; give true, false, correct, wrong or unknown")
    return VERDICTS[word]


def _score(value: Any, where: str) -> float:
    if not isinstance(value, (int, float)) or not abs(value) <= LARGEST_SCORE:
        raise BadInput(f"{where}: score is {str(value)[:SHOWN]!r}; give a number up to {LARGEST_SCORE:g}, or null")
    return float(value)
