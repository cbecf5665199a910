"""Symbolic comparison by math-verify. Runs in worker processes only."""

from __future__ import annotations

import logging

from math_verify import LatexExtractionConfig, parse, verify

_LATEX = [LatexExtractionConfig(boxed_match_priority=0)]


def warm_up() -> None:
    """Do one small check, so that the grammar and sympy's lazy imports are loaded before limits apply."""
    logging.disable(logging.CRITICAL)
    judge("\\frac{1}{2}", "x+\\sqrt{2}")


def judge(gold: str, answer: str) -> tuple[str, str]:
    """Status and reason for one answer against one gold, both plain LaTeX without dollars."""
    gold_read = _read(gold)
    if not gold_read:
        return "unknown", "gold unreadable"
    answer_read = _read(answer)
    if not answer_read:
        return "wrong", "answer unreadable"
    same = verify(gold_read, answer_read, timeout_seconds=None, raise_on_error=True)
    return ("correct", "symbolically equal") if same else ("wrong", "not equal")


def _read(text: str) -> list:
    return parse(f"\\boxed{{{text}}}", _LATEX, parsing_timeout=None, raise_on_error=True)
