"""Golds edited so that their value stays or changes, so the verdict is known without a label.

`benchmarks/verifier_accuracy.py` does the same with the golds of five benchmarks.
"""

from __future__ import annotations

import pytest
from different_cases import DIFFERENT
from edits import CHANGING, KEEPING, edited
from equivalent_cases import EQUIVALENT
from marks import SLOW

from openrlhf_ktae.verifier import CORRECT, WRONG
from openrlhf_ktae.verifier.golds import gold_forms

ODD = {r"\le 3"}  # states no value
GOLDS = sorted({str(gold) for table in (EQUIVALENT, DIFFERENT) for pairs in table.values() for gold, _ in pairs} - ODD)


@SLOW
@pytest.mark.parametrize(("edits", "expected", "allowed"), [(CHANGING, WRONG, 1 / 2000), (KEEPING, CORRECT, 1 / 500)])
def test_edited_golds(verifier, edits, expected, allowed):
    cases, mistakes = judged(verifier, GOLDS, edits, expected)
    assert len(cases) > 5000
    assert len(mistakes) <= allowed * len(cases), mistakes


def judged(verifier, golds, edits, expected):
    """Return (gold, edit, answer) for all edits of the golds' forms, and the cases with an unexpected verdict."""
    forms = [(gold, form) for gold in golds for form in gold_forms(gold)]
    cases = [(gold, name, new) for gold, form in forms for name, new in edited(form, edits)]
    cases = [case for case in cases if expected == CORRECT or case[2] not in gold_forms(case[0])]
    verdicts = verifier.verify_many((gold, rf"\boxed{{{new}}}") for gold, _, new in cases)
    return cases, [
        (*case, verdict.status) for case, verdict in zip(cases, verdicts, strict=True) if verdict.status != expected
    ]


def test_every_edit_applies_to_some_gold():
    for edits in (CHANGING, KEEPING):
        assert {name for gold in GOLDS for name, _ in edited(gold_forms(gold)[0], edits)} == set(edits)
