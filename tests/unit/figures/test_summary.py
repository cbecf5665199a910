"""Figures of handmade graded rows: groups, intervals, and the cost of many samples."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from marks import SLOW

from openrlhf_ktae.figures.statistics import SEED, interval, resampled_means
from openrlhf_ktae.figures.summary import markdown, summarize

GRADER = {"grader": {"name": "g", "version": "1", "hash": "abc"}}


def row(identity, right, benchmark="a", answer="1", **more):
    verdict = "correct" if right else "wrong"
    graded = {"benchmark": benchmark, "id": identity, "verdict": verdict, "extracted": answer, "format": True}
    return {**graded, "characters": 5, "tokens": None, "truncated": None, **more}


def test_a_benchmark_without_a_right_answer_has_an_interval():
    summary = summarize([row(str(i), False) for i in range(30)], {})
    low, high = summary["benchmarks"]["a"]["ci95"]
    assert (low, high) == (0, pytest.approx(0.1157, abs=1e-3))
    assert summary["macro"]["ci95"] == [low, high]


def test_the_macro_mean_resamples_each_benchmark_separately():
    """With a shared seed two equal benchmarks would vary together, and the interval would be sqrt(2) wider."""
    rows = [row(str(i), i % 2, name) for name in "ab" for i in range(100)]
    summary = summarize(rows, {})
    values = np.array([[i % 2] for i in sorted(map(str, range(100))) for i in [int(i)]], dtype=float)
    drawn = [resampled_means(values, SEED + number)[:, 0] for number in range(2)]
    assert summary["macro"]["ci95"] == list(interval(np.mean(drawn, axis=0)))
    widths = [np.ptp(summary["benchmarks"]["a"]["ci95"]), np.ptp(summary["macro"]["ci95"])]
    assert widths[0] / widths[1] == pytest.approx(2**0.5, abs=0.12)


def cost(samples):
    rows = (row("1", i % 3 == 0, answer=str(i % 7)) for i in range(samples))
    start = time.process_time()
    summary = summarize(rows, {})
    seconds = time.process_time() - start
    assert list(summary["pooled"]["pass_at_k"])[-1] == str(samples)
    return seconds


@SLOW
def test_many_samples_of_one_problem_cost_in_proportion():
    """Binomial coefficients of thousands of digits for each k of pass@k once made this twelve times slower."""
    cost(100)
    few, many = cost(500), cost(4000)
    assert many < 16 * few, "8 times as many samples"
    tracemalloc.start()
    cost(4000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6, "2,000 resamples of 4,000 metrics alone are 64 MB"


def test_the_table_lists_the_settings():
    about = {
        "model": "some/model",
        "template": "r1",
        "sampling": {"temperature": 0.7},
        "sources": {"a": "a.jsonl"},
        "limit": 5,
        "responses": "in.jsonl",
        "tokenizer": "some/tokenizer",
    }
    lines = markdown(summarize([row("1", True)], {**about, **GRADER})).splitlines()
    for name, value in about.items():
        assert f"- {name}: {value}" in lines
    assert "- grader: g 1, hash abc" in lines
