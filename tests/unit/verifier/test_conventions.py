"""Verdicts on boxed answers by convention: answers that state the gold, and answers that do not."""

from __future__ import annotations

import pytest
from different_cases import DIFFERENT
from equivalent_cases import EQUIVALENT

from openrlhf_ktae.verifier import CORRECT, WRONG
from openrlhf_ktae.verifier.golds import gold_forms


def mistakes(verifier, pairs, expected):
    verdicts = verifier.verify_many([(gold, f"Hence \\boxed{{{answer}}}.") for gold, answer in pairs])
    return [
        (gold, answer, verdict.status, verdict.reason)
        for (gold, answer), verdict in zip(pairs, verdicts, strict=True)
        if verdict.status != expected
    ]


@pytest.mark.parametrize("convention", EQUIVALENT)
def test_equal_value_is_correct(verifier, convention):
    assert mistakes(verifier, EQUIVALENT[convention], CORRECT) == []


@pytest.mark.parametrize("convention", DIFFERENT)
def test_another_value_is_wrong(verifier, convention):
    assert mistakes(verifier, DIFFERENT[convention], WRONG) == []


def test_every_gold_states_itself(verifier):
    golds = {gold for table in (EQUIVALENT, DIFFERENT) for pairs in table.values() for gold, _ in pairs}
    assert mistakes(verifier, [(gold, gold_forms(gold)[0]) for gold in golds], CORRECT) == []


def test_verdicts_do_not_depend_on_the_order_of_the_checks(verifier):
    pairs = [pair for table in (EQUIVALENT, DIFFERENT) for pairs in table.values() for pair in pairs]
    boxed = [(gold, f"\\boxed{{{answer} }}") for gold, answer in pairs]
    backwards = verifier.verify_many(boxed[::-1])[::-1]
    assert [v.status for v in verifier.verify_many(boxed)] == [v.status for v in backwards]
