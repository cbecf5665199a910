"""The verifier on published responses, on the golds of five benchmarks and on labelled cases, where they lie beside."""

from __future__ import annotations

import collections
import gzip
import json
import re
from pathlib import Path

import pytest

from openrlhf_ktae.verifier import CORRECT, UNKNOWN, WRONG, Verifier
from openrlhf_ktae.verifier.golds import gold_forms

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / ".." / "shared" / "data"
ROLLOUTS = DATA / "rollouts" / "published_7b_half.jsonl.gz"
CASES = DATA / "verifier" / "cases_quarter.jsonl.gz"
BENCHMARKS = ("aime24", "amc", "math500", "minerva", "olympiadbench")


def rows(path: Path) -> list[dict]:
    if not path.exists():
        pytest.skip(f"{path.name} is absent: it lies beside the checkout under shared/data/{path.parent.name}")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def published(verifier):
    responses = rows(ROLLOUTS)
    return list(zip(responses, verifier.verify_many((r["gold"], r["response"]) for r in responses), strict=True))


def test_accuracy_is_that_of_the_published_rewards(published):
    """Minerva apart: there the published grader rejects many right formulas."""
    ours, theirs = collections.defaultdict(list), collections.defaultdict(list)
    for row, verdict in published:
        ours[row["benchmark"]].append(verdict.status == CORRECT)
        theirs[row["benchmark"]].append(row["published_reward"] > 0.5)
    for name in set(BENCHMARKS) - {"minerva"}:
        share, published_share = (sum(x[name]) / len(x[name]) for x in (ours, theirs))
        assert abs(share - published_share) <= 0.015, name


def test_hardly_any_verdict_is_unknown(published):
    assert sum(verdict.status == UNKNOWN for _, verdict in published) <= 0.005 * len(published)


def test_every_disagreement_is_listed_in_the_documentation(published):
    found = {
        index
        for index, (row, verdict) in enumerate(published)
        if (verdict.status == CORRECT) != (row["published_reward"] > 0.5)
    }
    table = (ROOT / "docs" / "verifier_measured.md").read_text()
    listed = {int(row) for row in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert found == listed


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_golds_verify_against_themselves(verifier, benchmark):
    golds = [row["answer"] for row in rows(DATA / "eval_suite" / f"{benchmark}.jsonl")]
    verdicts = verifier.verify_many((gold, f"\\boxed{{{gold_forms(gold)[0]}}}") for gold in golds)
    assert sum(verdict.status == CORRECT for verdict in verdicts) >= 0.99 * len(golds)


def test_labelled_cases(verifier):
    cases = rows(CASES)
    verdicts = verifier.verify_many((case["gold"], case["response"]) for case in cases)
    expected = {1.0: CORRECT, 0.0: WRONG}
    judged = [(case, v) for case, v in zip(cases, verdicts, strict=True) if case["expect"] is not None]
    mistakes = [(case["id"], v.status, v.reason) for case, v in judged if v.status != expected[case["expect"]]]
    assert len(mistakes) <= 0.02 * len(judged), mistakes
    assert all(verdict.seconds < Verifier().config.timeout_s + 1 for verdict in verdicts)
