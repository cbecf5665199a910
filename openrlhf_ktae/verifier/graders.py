"""The graders that a worker process can run: our own judge, or another one to compare it with.

A grader takes the accepted golds and a text and returns a verdict. Our judge gets the extracted answer. The others
extract it themselves, so they get whole responses. All run under the same kinds of limits.
"""

import runpy
from collections.abc import Callable, Sequence

from openrlhf_ktae.base.host import package_folder

from .verdict import CORRECT, WRONG, Reason, Verdict

OWN, HOST, MATH_VERIFY = "own", "host", "math-verify"
Grader = Callable[[Sequence[str], str], Verdict]
GoldReader = Callable[[Sequence[str]], Verdict]


def load_grader(name: str) -> tuple[Grader, GoldReader | None]:
    """Return the grader of that name with its libraries loaded; for our judge also the check whether golds can be read.

    Raises ImportError if a library is not installed.
    """
    return {OWN: _own, HOST: _host, MATH_VERIFY: _math_verify}[name]()


def _own() -> tuple[Grader, GoldReader | None]:
    from .judging.judge import judge, read_golds

    judge([r"\frac{1}{2}"], r"x+\sqrt{2}")  # so that lazy imports are done before limits apply
    return judge, read_golds


def _host() -> tuple[Grader, GoldReader | None]:
    """OpenRLHF's `math_utils`, run from its file because importing the package would load torch and more."""
    folder = package_folder("openrlhf")
    if folder is None:
        raise ImportError("openrlhf is not installed")
    module = runpy.run_path(str(folder / "utils" / "math_utils.py"))

    def grade(golds: Sequence[str], response: str) -> Verdict:
        answer = module["extract_boxed_answer"](response)
        return verdict_of(any(module["grade_answer"](answer, gold) for gold in golds))

    return grade, None


def _math_verify() -> tuple[Grader, GoldReader | None]:
    """math-verify as it is usually called, with the gold in a box and the whole response."""
    import math_verify

    math_verify.verify(math_verify.parse(r"\boxed{\frac{1}{2}}"), math_verify.parse(r"\boxed{0.5}"))

    def grade(golds: Sequence[str], response: str) -> Verdict:
        given = math_verify.parse(response, parsing_timeout=None)
        read = [math_verify.parse(f"\\boxed{{{gold}}}", parsing_timeout=None) for gold in golds]
        return verdict_of(any(math_verify.verify(gold, given, timeout_seconds=None) for gold in read))

    return grade, None


def verdict_of(accepted: bool) -> Verdict:
    """Return the verdict of a grader that returns only yes or no."""
    return Verdict(CORRECT, Reason.ACCEPTED) if accepted else Verdict(WRONG, Reason.REJECTED)
