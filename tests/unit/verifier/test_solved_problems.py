"""The verifier on labelled worked responses, and on golds of all kinds.

`benchmarks/verifier_accuracy.py` checks the same rules on published responses and on the golds of five benchmarks.
"""

from __future__ import annotations

import pytest
from solved_problems import GOLDS, SOLVED

from openrlhf_ktae.verifier import CORRECT, UNKNOWN
from openrlhf_ktae.verifier.golds import gold_forms


@pytest.fixture(scope="module")
def judged(verifier):
    verdicts = verifier.verify_many((solved.gold, solved.response) for solved in SOLVED)
    return list(zip(SOLVED, verdicts, strict=True))


def test_every_verdict_matches_the_label(judged):
    assert {solved.right for solved in SOLVED} == {True, False}
    assert [(s.response, v.status, v.reason) for s, v in judged if (v.status == CORRECT) != s.right] == []


def test_no_verdict_is_unknown(judged):
    assert [solved.response for solved, verdict in judged if verdict.status == UNKNOWN] == []


def test_every_disagreement_with_the_stored_reward_is_explained(judged):
    disagreeing = [
        solved.response for solved, verdict in judged if (verdict.status == CORRECT) != (solved.reward > 0.5)
    ]
    assert disagreeing == [solved.response for solved in SOLVED if solved.why]
    assert disagreeing


def test_verdicts_are_fast(judged, verifier):
    assert all(verdict.seconds < verifier.config.timeout_s + 1 for _, verdict in judged)


@pytest.mark.parametrize("kind", GOLDS)
def test_golds_verify_against_themselves(verifier, kind):
    verdicts = verifier.verify_many((gold, f"\\boxed{{{gold_forms(gold)[0]}}}") for gold in GOLDS[kind])
    assert [(g, v.reason) for g, v in zip(GOLDS[kind], verdicts, strict=True) if v.status != CORRECT] == []
