r"""With a readable gold, no response makes the verdict unknown."""

from __future__ import annotations

import random

import pytest

from openrlhf_ktae.verifier import UNKNOWN, Reason, Verifier

GOLDS = [
    "5", "-3/2", "0.25", "28.71", "4.5e33", r"\pi", "x^2+1", "(1,2)", "[1,3)", r"\{1,2\}", "x = 5", r"x \neq \pm 1",
    "52_8",
    r"\text{even}", "B", "ABD", r"12 \text{ cm}", r"8\%", "3:45", r"\frac{dx}{dt} = kx", "f(x) = 2x",
    r"1 \pm \sqrt{2}",
    r"\begin{pmatrix}1\\2\end{pmatrix}", r"(-\infty, 0) \cup \{1\}", r"3 \pmod 7", "a=1, b=2", r"\lfloor n/3 \rfloor",
    r"\begin{cases}x & x\ge 0\\0 & x<0\end{cases}", "x>1, x<5", "2:3:4", r"I(0)e^{-t}", "A, B", r"\infty",
    r"\emptyset",
]  # fmt: skip
ATOMS = [
    "x", "n", "i", "e", r"\pi", "0", "1", "10", "-3", "9999999999", "0.5", "1e300", r"\infty", r"\emptyset", "C",
    r"f(x)", "y'",
    r"\text{cm}", r"\text{or}", "2024", r"\pm 1", "52_8", "9_{2}", r"\mathbb{R}", r"\ldots", "|", r"\%", r"\hat i",
    "12:60",
]  # fmt: skip
SHAPES = [
    "{0}^{{{1}}}", r"\frac{{{0}}}{{{1}}}", r"\sqrt[{0}]{{{1}}}", r"\log_{{{0}}}{{{1}}}", "{0}!",
    r"\binom{{{0}}}{{{1}}}",
    "({0}, {1})", "[{0}, {1})", r"\{{{0}, {1}\}}", "{0} = {1}", r"{0} \le {1}", r"{0} \neq {1}", r"{0} \pm {1}",
    "{0} + {1}",
    "{0} {1}", r"{0} \cup {1}", r"\sin({0}{1})", "|{0}|{1}|", r"\lfloor {0} \rfloor", r"\sum_{{k={0}}}^{{{1}}} k",
    r"\text{{{0}}} {1}", "{0}:{1}", r"{0} \pmod {1}", "f({0}) = {1}", r"\begin{{pmatrix}}{0}&{1}\end{{pmatrix}}",
    r"\frac{{d{0}}}{{d{1}}}", r"\max({0}, {1})", "{0}_{{{1}}}", r"\overline{{{0}}}", "{0}'{1}", r"\gcd({0},{1})",
    "{0}%{1}",
    r"\arcsin({0})", r"\ln({0})", r"{0} \in {1}", r"\left({0}\right", "{0} < {1} < {0}",
    r"\begin{{cases}}{0}&{1}\end{{cases}}",
]  # fmt: skip
DEEP = [
    "10^{10^{10}}x", r"\rational{a}{b}", r"\rational{1}{0}",
    "|" * 40, "|x" * 30 + "|" * 30, r"\log_{" * 30 + "2" + "}" * 30,
    "(" * 200 + "x" + ")" * 200, "+".join(["x"] * 390), r"\sin(" * 60 + "x" + ")" * 60, r"\sqrt[2^{400000000}]{x}",
    "10^{-99999999}", r"\frac{1}{2^{300000000}}", r"\prod_{k=1}^{2000} \sin(k x)",
    ",".join(["9999!"] * 100), r"\neg 5",
    r"\mathrm{" * 40 + "x" + "}" * 40, "\x00", "\ud800", "٣",
    r"\frac" * 50, "^" * 50, "_" * 50, r"\begin{array}" * 20, "!" * 300,
]  # fmt: skip


def answers(count: int) -> list[str]:
    """Return random texts, nested up to four deep; the same in every run."""
    draw = random.Random(19)

    def build(depth: int) -> str:
        if depth == 0 or draw.random() < 0.2:
            return draw.choice(ATOMS)
        return draw.choice(SHAPES).format(build(depth - 1), build(depth - 1))

    return [build(draw.randrange(1, 5)) for _ in range(count)]


@pytest.fixture(scope="module")
def checked():
    """Judge all answers, with limits that the slow ones exceed."""
    with Verifier(workers=2, cpu_s=0.5) as verifier:
        cases = [(gold, answer) for gold in GOLDS for answer in DEEP[:: 1 if gold in ("5", "x^2+1") else 7]]
        cases += [(gold, answer) for at, gold in enumerate(GOLDS) for answer in answers(3400)[at :: len(GOLDS)]]
        return list(zip(cases, verifier.verify_many((g, rf"\boxed{{{a}}}") for g, a in cases), strict=True))


def test_no_answer_makes_the_verdict_unknown(checked):
    assert [(case, v.reason, v.detail) for case, v in checked if v.status == UNKNOWN] == []


def test_no_internal_errors(checked):
    assert [(case, v.detail) for case, v in checked if v.reason == Reason.INTERNAL_ERROR] == []
