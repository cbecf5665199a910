"""Finding the answer in a response, forms of golds, and verdicts on malformed text."""

from __future__ import annotations

import json

import pytest
from response_cases import STATES_SOMETHING_ELSE, STATES_THE_GOLD

from openrlhf_ktae.verifier import CORRECT, UNKNOWN, WRONG, Reason, Verifier
from openrlhf_ktae.verifier.extract import extract_answer
from openrlhf_ktae.verifier.golds import gold_forms


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{6} no, \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, \{2\}\}}", r"\{1, \{2\}\}"),
        (r"\boxed {5}", "5"),
        ("\\boxed\n{5}", "5"),
        (r"\boxed 5", "5"),
        (r"\fbox{5}", "5"),
        (r"\\boxed{5}", "5"),
        ("\x08oxed{5}", "5"),
        ("\\boxed{\x0crac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{ \boxed{\fbox{5}} }", "5"),
        (r"\boxed{5 or \boxed{6}}", r"5 or \boxed{6}"),
        (r"\boxed{\boxed{5} or 6}", r"\boxed{5} or 6"),
        (r"\boxed{\frac{\boxed{1}}{2}}", r"\frac{\boxed{1}}{2}"),
        (r"\boxed{7} \boxed{5 or \boxed{6}}", r"5 or \boxed{6}"),
        ("\\boxed{5 \n no, \\boxed{6}", "6"),
        (r"\boxed{<answer>5</answer>}", "5"),
        (r"\boxed{<answer>5</answer> or 6}", "<answer>5</answer> or 6"),
        (r"\boxed{5}} and garbage {", "5"),
        ("<think>6</think><answer>5</answer>", "5"),
        (r"<answer>The answer is \boxed{5}</answer>", "5"),
        ("<answer>6</answer> wait <answer>5</answer>", "5"),
        ("The final answer is $5$. I hope it is correct.", "5"),
        ("The final answer is: 0.5.", "0.5"),
        ("Final answer is \\(\\frac{1}{2}\\).", r"\frac{1}{2}"),
        ("The final answer is **5**.", "5"),
        ("the final answer is\n\n5\n\nthanks", "5"),
        (r"The final answer is 6. \boxed{5}", "5"),
    ],
)
def test_answer_is_found(response, answer):
    assert extract_answer(response).answer == answer


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", "no boxed answer"),
        ("the answer is 5", "no boxed answer"),
        ("5", "no boxed answer"),
        ("boxed{5}", "no boxed answer"),
        (r"5, so \boxed{", "box never closed"),
        (r"\boxed{5", "box never closed"),
        (r"\boxed{5} and \boxed{5", "box never closed"),
        (r"\boxed{{5}", "box never closed"),
        (r"\boxed{5} and \boxed{}", "empty box"),
        (r"\boxed{5} and \boxed{ }", "empty box"),
        (r"\boxed{5} and \boxed", "malformed box"),
        (r"\boxed(5)", "malformed box"),
        ("<answer>5", "answer tag never closed"),
        ("<answer> </answer>", "empty answer tag"),
        ("the final answer is", "empty answer"),
    ],
)
def test_a_missing_answer_is_not_replaced_by_earlier_text(verifier, response, reason):
    verdict = verifier.verify("5", response)
    assert (verdict.status, verdict.reason, verdict.extracted) == (WRONG, reason, None)


def test_answer_format_limits_where_the_answer_may_be():
    both = r"\boxed{5} <answer>6</answer>"
    assert extract_answer(both, "box").answer == "5"
    assert extract_answer(both, "tags").answer == "6"
    assert extract_answer("<answer>6</answer>", "box").answer is None
    assert extract_answer(r"\boxed{5}", "tags").answer is None
    assert extract_answer("The final answer is 5", "box").answer is None


@pytest.mark.parametrize(
    ("gold", "forms"),
    [
        ("42", ("42",)),
        (42, ("42",)),
        (142.0, ("142",)),
        (0.5, ("0.5",)),
        (-7, ("-7",)),
        ("9.6\n", ("9.6",)),
        ("['9.6\\n']", ("9.6",)),
        ("['5', '6']", ("5", "6")),
        ('["x=1"]', ("x=1",)),
        (["5", 6], ("5", "6")),
        (("5",), ("5",)),
        ([["5"], "6"], ("5", "6")),
        ("$5$", ("5",)),
        (r"\(5\)", ("5",)),
        (r"$$\frac{1}{2}$$", (r"\frac{1}{2}",)),
        (r"\boxed{5}", ("5",)),
        ("so many #### 1,234", ("1,234",)),
        ("$x$ and $y$", ("$x$ and $y$",)),
        (None, ()),
        ("", ()),
        ("  \n", ()),
        ([], ()),
        (float("nan"), ()),
        (float("inf"), ()),
    ],
)
def test_golds_are_read_in_the_forms_of_data_sets(gold, forms):
    assert gold_forms(gold) == forms


def test_any_of_several_golds_is_enough(verifier):
    assert verifier.verify(["5", r"\frac{1}{2}"], r"\boxed{0.5}").status == CORRECT
    assert verifier.verify("['5', '0.5']", r"\boxed{\frac12}").status == CORRECT
    assert verifier.verify(["5", "6"], r"\boxed{7}").status == WRONG


@pytest.mark.parametrize("gold", [None, "", [], float("nan")])
def test_without_a_gold_the_verdict_is_unknown(verifier, gold):
    assert verifier.verify(gold, r"\boxed{5}").status == UNKNOWN


@pytest.mark.parametrize("gold", [r"\frac{1}{", r"\begin{foo} 1", "(3,", r"\sqrt{"])
def test_unreadable_gold_is_unknown_unless_the_text_is_the_same(verifier, gold):
    verdict = verifier.verify(gold, r"\boxed{77}")
    assert (verdict.status, verdict.reason) == (UNKNOWN, "gold unreadable")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("12", r"\frac{12}{}"),
        ("12", r"\frac{12}"),
        ("12", "12+"),
        ("12", "12/"),
        ("12", "12^"),
        ("12", "12="),
        ("12", "x="),
        ("12", "(12"),
        ("12", "12)"),
        ("12", ")12("),
        ("12", ","),
        ("12", "12 12"),
        ("12", r"\left(12"),
        ("12", r"12\right)"),
        ("0", r"\sqrt"),
        ("0", r"\sqrt{}"),
        ("0", r"\text{}"),
        ("0", "()"),
        ("0", "{}"),
        ("1", r"\frac{}{}"),
        ("(3,4)", "(3,"),
        ("(3,4)", "(3,4"),
        ("(3,4)", "3,4)"),
        ("(3,4)", "(3 4)"),
        ("[3,4)", "[3,4"),
        (r"\frac{1}{2}", r"\frac{1{2}}"),
        ("3", "3 +"),
        ("x^2", "x^"),
        ("5", "5???"),
    ],
)
def test_malformed_answer_is_wrong(verifier, gold, answer):
    assert verifier.verify(gold, f"\\boxed{{{answer}}}").status == WRONG


@pytest.mark.parametrize(("cases", "expected"), [(STATES_THE_GOLD, CORRECT), (STATES_SOMETHING_ELSE, WRONG)])
def test_whole_responses(verifier, cases, expected):
    verdicts = verifier.verify_many(cases)
    assert [(*case, v.reason) for case, v in zip(cases, verdicts, strict=True) if v.status != expected] == []


def test_a_verdict_holds_the_answer_read_and_the_time_taken(verifier):
    verdict = verifier.verify(["1", r"\frac{1}{2}"], r"so \boxed{0.50}")
    assert verdict.extracted == "0.50"
    assert verdict.gold == r"1 | \frac{1}{2}"
    assert verdict.reason == "same value"
    assert 0 < verdict.seconds < 5
    assert verdict.known


def test_text_around_the_box_changes_nothing(verifier):
    noise = "Then $x = 3$ or \\[7\\] and 5. " * 2000
    for around in (("", ""), (noise, ""), ("", noise), (noise, noise)):
        assert verifier.verify("5", rf"{around[0]}\boxed{{\frac{{10}}{{2}}}}{around[1]}").status == CORRECT


def test_options_in_the_constructor():
    with Verifier(workers=1, timeout_s=2.0, memory_mb=1024, answer_format="tags") as tags:
        assert tags.verify("5", "<answer>5</answer>").status == CORRECT
        assert tags.verify("5", r"\boxed{5}").status == WRONG
    with pytest.raises(ValueError, match=r"memory_mb 1: .*at least 512"):
        Verifier(memory_mb=1)
    with pytest.raises(TypeError, match="wokers"):
        Verifier(wokers=1)


@pytest.mark.parametrize(
    ("gold", "response", "reason"),
    [
        ("5", r"\boxed{5}", Reason.SAME_TEXT),  # decided in the calling process
        ("5", "", Reason.NO_BOX),  # decided by extraction
        (r"\sqrt{2}", r"\boxed{2^{1/2}}", Reason.SAME_VALUE),  # decided by a worker
        (r"\oint \oint", r"\boxed{1}", Reason.GOLD_UNREADABLE),
    ],
)
def test_reasons_are_enumeration_members_and_serialise_as_text(verifier, gold, response, reason):
    given = verifier.verify(gold, response).reason
    assert given is reason
    assert json.dumps(given) == f'"{reason.value}"'
