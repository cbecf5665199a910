"""KTAE with the cost profile of its published code: float32 tensors, a loop over ids, a vocabulary-sized table.

Written for comparing speed, from a description of the published algorithm (weights 1/1/1, tail sums over tables, 1e-5
in the denominators) and of its cost. `benchmarks/ktae_speed.py` checks that its values equal those of the variant
`reference`. With `PlainNumbers` instead of `Tensors` the same loops compute in Python floats, which is as cheap as
Python allows.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch

EPSILON = 1e-5
K1, B = 2.0, 0.5
TIE_TOLERANCE = 1e-4
"""Relative; in float32 equally probable tables differ by less, others by more."""


class Arithmetic(Protocol):
    """How numbers are stored and computed."""

    def number(self, value: Any) -> Any:
        """Convert an entry of a table."""

    def exp(self, x: Any) -> Any:
        """Exponential."""

    def log2(self, x: Any) -> Any:
        """Binary logarithm."""

    def arcsine(self, x: Any) -> Any:
        """Arcsine of the square root."""

    def sigmoid(self, x: Any) -> Any:
        """Logistic function."""

    def log_factorial(self, n: Any) -> Any:
        """Logarithm of n!."""


class Tensors:
    """Keeps entries as zero-dimensional tensors, as indexing returns them."""

    number = staticmethod(lambda value: value)
    exp, log2, sigmoid = staticmethod(torch.exp), staticmethod(torch.log2), staticmethod(torch.sigmoid)
    arcsine = staticmethod(lambda x: torch.asin(torch.sqrt(x)))
    log_factorial = staticmethod(lambda n: torch.lgamma(n + 1))


class PlainNumbers:
    """Converts entries to Python floats."""

    number = staticmethod(float)
    exp, log2 = staticmethod(math.exp), staticmethod(math.log2)
    sigmoid = staticmethod(lambda x: 1 / (1 + math.exp(-x)) if x > 0 else 1 - 1 / (1 + math.exp(x)))
    arcsine = staticmethod(lambda x: math.asin(math.sqrt(x)))
    log_factorial = staticmethod(lambda n: math.lgamma(n + 1))


def published_values(
    ids_GT: torch.Tensor, mask_GT: torch.Tensor, correct_G: torch.Tensor, vocabulary: int, using: type[Arithmetic]
) -> torch.Tensor:
    """K of every position of one group with both labels: float32 (G, T), 0 outside the mask."""
    m = using()
    presence_2V, uses_2V = torch.zeros(2, vocabulary), torch.zeros(2, vocabulary)
    for ids_T, mask_T, correct in zip(ids_GT, mask_GT, correct_G.long().tolist(), strict=True):
        counts_V = torch.bincount(ids_T[mask_T], minlength=vocabulary)
        uses_2V[correct] += counts_V
        presence_2V[correct] += counts_V > 0
    right, wrong = (m.number(size.float()) for size in (correct_G.sum(), (~correct_G).sum()))
    tokens_wrong, tokens_right = (m.number(uses_V.sum()) for uses_V in uses_2V)
    value_V = torch.zeros(vocabulary)
    for o in presence_2V.sum(dim=0).nonzero().flatten().tolist():
        a, b = m.number(presence_2V[1, o]), m.number(presence_2V[0, o])
        p = fisher(a, b, right, wrong, m)
        association = m.exp(-2 * p) if p != 1.0 else 0.0
        gain = information_gain(a, b, right, wrong, m)
        tf_right = bm25(m.number(uses_2V[1, o]), tokens_right, tokens_wrong)
        tf_wrong = bm25(m.number(uses_2V[0, o]), tokens_wrong, tokens_right)
        direction = m.arcsine(a / right) - m.arcsine(b / wrong)
        direction = direction + tf_right / (tf_wrong + EPSILON) - tf_wrong / (tf_right + EPSILON)
        value_V[o] = 2 * (m.sigmoid((association + gain) * direction / 2) - 0.5)
    return value_V[ids_GT] * mask_GT


def fisher(a: Any, b: Any, right: Any, wrong: Any, m: Arithmetic) -> Any:
    """Two-sided p: the sum, one by one, over the tables with these margins that are no more probable."""
    present = int(a + b)
    observed = probability(a, b, right, wrong, m)
    tail = 0.0 * observed
    for x in range(max(0, present - int(wrong)), min(int(right), present) + 1):
        p = probability(a - a + x, a - a + present - x, right, wrong, m)
        if p <= observed * (1 + TIE_TOLERANCE):
            tail = tail + p
    return tail if tail < 1 - TIE_TOLERANCE else tail / tail


def probability(a: Any, b: Any, right: Any, wrong: Any, m: Arithmetic) -> Any:
    """Hypergeometric probability of one table."""
    f, total = m.log_factorial, right + wrong
    margins = f(right) + f(wrong) + f(a + b) + f(total - a - b)
    return m.exp(margins - f(a) - f(b) - f(right - a) - f(wrong - b) - f(total))


def information_gain(a: Any, b: Any, right: Any, wrong: Any, m: Arithmetic) -> Any:
    """H(label) - H(label | presence) in bits."""
    c, d, total = right - a, wrong - b, right + wrong
    given = (a + b) / total * entropy(a, b, m) + (c + d) / total * entropy(c, d, m)
    return entropy(right, wrong, m) - given


def entropy(yes: Any, no: Any, m: Arithmetic) -> Any:
    """Entropy in bits of a label held by `yes` rollouts and not by `no`."""
    bits = 0.0
    for count in (yes, no):
        if count > 0:
            share = count / (yes + no)
            bits = bits - share * m.log2(share)
    return bits


def bm25(uses: Any, tokens: Any, other_tokens: Any) -> Any:
    """Saturated share of one side's tokens."""
    tf = uses / tokens
    norm = K1 * (1 - B + B * tokens / ((tokens + other_tokens) / 2))
    return (K1 + 1) * tf / (norm + tf)
