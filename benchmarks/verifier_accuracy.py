"""Accuracy of the verifier on published responses, on the golds of five benchmarks and on labelled cases.

    python benchmarks/verifier_accuracy.py DATA_FOLDER

The folder has `rollouts/published_7b_half.jsonl.gz` (benchmark, gold, response, published_reward),
`eval_suite/NAME.jsonl` (answer) and `verifier/cases_quarter.jsonl.gz` (id, gold, response, expect: 1, 0 or null for any
verdict). Prints the table of docs/verifier_measured.md, checks its promises and exits with 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit" / "verifier"))
from edits import CHANGING, KEEPING, edited

from openrlhf_ktae.verifier import CORRECT, UNKNOWN, WRONG, Verdict, Verifier
from openrlhf_ktae.verifier.golds import gold_forms

MEASURED = Path(__file__).resolve().parents[1] / "docs" / "verifier_measured.md"
BENCHMARKS = ("aime24", "amc", "math500", "minerva", "olympiadbench")
POINTS = collections.defaultdict(lambda: (-1.5, 1.5), minerva=(0.0, 14.0))
"""Allowed points of our accuracy minus the published one; on Minerva that grader rejects many right formulas."""
Judged = list[tuple[dict[str, Any], Verdict]]


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON lines file."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


def judged(verifier: Verifier, given: list[dict[str, Any]]) -> Judged:
    """Return each row with its verdict."""
    return list(zip(given, verifier.verify_many((row["gold"], row["response"]) for row in given), strict=True))


def accuracies_agree(published: Judged) -> bool:
    """Print both accuracies of each benchmark; return whether they are as close as promised."""
    ours, theirs = collections.defaultdict(list), collections.defaultdict(list)
    for row, verdict in published:
        ours[row["benchmark"]].append(verdict.status == CORRECT)
        theirs[row["benchmark"]].append(row["published_reward"] > 0.5)
    near = True
    for name in BENCHMARKS:
        here, there = (100 * sum(x[name]) / len(x[name]) for x in (ours, theirs))
        low, high = POINTS[name]
        near &= low <= here - there <= high
        print(f"{name:<14} {len(ours[name]):>4} responses  published {there:.1f} %  here {here:.1f} %")
    return near


def disagreements(published: Judged) -> set[int]:
    """Return the indices of rows whose verdict differs from the published reward."""
    return {o for o, (row, v) in enumerate(published) if (v.status == CORRECT) != (row["published_reward"] > 0.5)}


def share_of_golds(verifier: Verifier, path: Path) -> float:
    """Return the share of a benchmark's golds that verify against themselves."""
    golds = [row["answer"] for row in rows(path)]
    verdicts = verifier.verify_many((gold, f"\\boxed{{{gold_forms(gold)[0]}}}") for gold in golds)
    return sum(verdict.status == CORRECT for verdict in verdicts) / len(golds)


def share_of_mistakes(verifier: Verifier, golds: list[Any], edits: Any, expected: str) -> float:
    """Return the share of edited golds, in all their forms, with an unexpected verdict."""
    forms = [(gold, form) for gold in golds for form in gold_forms(gold)]
    cases = [(gold, new) for gold, form in forms for _, new in edited(form, edits)]
    cases = [case for case in cases if expected == CORRECT or case[1] not in gold_forms(case[0])]
    verdicts = verifier.verify_many((gold, rf"\boxed{{{new}}}") for gold, new in cases)
    return sum(verdict.status != expected for verdict in verdicts) / len(cases)


def main() -> int:
    """Measure, print, and check the promises."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with Verifier(workers=2) as verifier:
        published = judged(verifier, rows(folder / "rollouts" / "published_7b_half.jsonl.gz"))
        cases = judged(verifier, rows(folder / "verifier" / "cases_quarter.jsonl.gz"))
        golds = {name: share_of_golds(verifier, folder / "eval_suite" / f"{name}.jsonl") for name in BENCHMARKS}
        answers = [row["answer"] for name in BENCHMARKS for row in rows(folder / "eval_suite" / f"{name}.jsonl")]
        changed = share_of_mistakes(verifier, answers, CHANGING, WRONG)
        kept = share_of_mistakes(verifier, answers, KEEPING, CORRECT)
        limit = verifier.config.timeout_s + 1
    expected = {1.0: CORRECT, 0.0: WRONG}
    labelled = [(case, verdict) for case, verdict in cases if case["expect"] is not None]
    mistakes = [(case["id"], v.status, v.reason) for case, v in labelled if v.status != expected[case["expect"]]]
    listed = {int(row) for row in re.findall(r"^\| (\d+) \|", MEASURED.read_text(), re.MULTILINE)}
    unknown = sum(verdict.status == UNKNOWN for _, verdict in published)
    promises = {
        "accuracy is that of the published rewards": accuracies_agree(published),
        f"hardly any verdict is unknown: {unknown}": unknown <= 0.005 * len(published),
        f"every disagreement is listed in {MEASURED.name}": disagreements(published) == listed,
        f"golds verify against themselves: {golds}": min(golds.values()) >= 0.99,
        f"labelled cases are judged as labelled: {mistakes}": len(mistakes) <= 0.02 * len(labelled),
        f"changed golds are wrong, all but 1 in 2,000: {changed:.5f}": changed <= 1 / 2000,
        f"golds written another way are right, all but 1 in 500: {kept:.5f}": kept <= 1 / 500,
        "every verdict comes in time": all(verdict.seconds < limit for _, verdict in cases),
    }
    for promise, holds in promises.items():
        print(f"{'holds  ' if holds else 'BROKEN '} {promise}")
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
