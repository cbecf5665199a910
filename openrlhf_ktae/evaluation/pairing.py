"""Compare two evaluations of the same problems: is one better than the other?"""

from pathlib import Path
from typing import Any

import numpy as np

from openrlhf_ktae.base.errors import BadInput
from openrlhf_ktae.base.text import figure_cell, table_lines
from openrlhf_ktae.evaluation.results import RESPONSES, grader_hash, read_rows
from openrlhf_ktae.evaluation.stored import Problems
from openrlhf_ktae.figures.statistics import holm, mcnemar, paired_bootstrap
from openrlhf_ktae.verifier import CORRECT

POOLED = "pooled"
Key = tuple[str, str]
Scores = dict[Key, list[float]]


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Return, for each benchmark and pooled, second minus first over the problems that both have.

    Intervals come from a paired bootstrap over problems. The test is the exact McNemar test if both have one sample per
    problem, else sign flips of the differences between problem means. p-values of the benchmarks are also given with
    Holm correction. Raises BadInput if a folder has no results, there are no common problems, or two problems have the
    same id.
    """
    problems = Problems()
    sides = [problem_scores(folder, problems) for folder in (first, second)]
    shared = [key for key in sides[0] if key in sides[1]]
    if not shared:
        raise BadInput(f"--compare {first} {second}: no problems in common (same benchmark and id)")
    groups: dict[str, list[Key]] = {}
    for key in shared:
        groups.setdefault(key[0], []).append(key)
    benchmarks = {name: _compared(keys, sides) for name, keys in groups.items()}
    for figures, p in zip(benchmarks.values(), holm([one["p"] for one in benchmarks.values()]), strict=True):
        figures["p_holm"] = p
    only = [len(side) - len(shared) for side in sides]
    return {
        "first": str(first),
        "second": str(second),
        "only_in_first": only[0],
        "only_in_second": only[1],
        "graders": [grader_hash(folder) for folder in (first, second)],
        "benchmarks": benchmarks,
        POOLED: _compared(shared, sides),
    }


def problem_scores(folder: Path, problems: Problems) -> Scores:
    """Return (benchmark, id) -> whether each sample is correct, from a result folder or its `responses.jsonl`.

    Raises BadInput if there are no results, or the problem or gold of an id differs from `problems`.
    """
    path = folder / RESPONSES if folder.is_dir() else folder
    scores: Scores = {}
    for row in read_rows(path):
        key = row["benchmark"], row["id"]
        if other := problems.add(key, row):
            raise BadInput(
                f"--compare {folder}: benchmark {key[0]!r}, id {key[1]!r}: its {other} differs from before; problems "
                "are paired by benchmark and id: give results of the same problems"
            )
        scores.setdefault(key, []).append(float(row["verdict"] == CORRECT))
    if not scores:
        raise BadInput(f"--compare {folder}: has no results ({RESPONSES}); give a folder written by --output")
    return scores


def _compared(keys: list[Key], sides: list[Scores]) -> dict[str, Any]:
    first, second = (np.array([np.mean(side[key]) for key in keys]) for side in sides)
    mean, low, high, p = paired_bootstrap(first, second)
    figures = {
        "problems": len(keys),
        "first": float(first.mean()),
        "second": float(second.mean()),
        "difference": mean,
        "ci95": [low, high],
        "p": p,
        "test": "sign flips",
    }
    if all(len(side[key]) == 1 for side in sides for key in keys):
        only_first, only_second, p = mcnemar(first, second)
        figures |= {"only_first_right": only_first, "only_second_right": only_second}
        figures |= {"p": p, "test": "McNemar, exact"}
    return figures


def markdown(comparison: dict[str, Any]) -> str:
    """Return the comparison as a Markdown table."""
    head = "benchmark,problems,first %,second %,difference [95 %],p,p (Holm),test".split(",")
    rows = []
    for name, one in {**comparison["benchmarks"], POOLED: comparison[POOLED]}.items():
        shares = [figure_cell(one[side], scale=100) for side in ("first", "second")]
        difference = figure_cell(one["difference"], *one["ci95"], scale=100, form="+.1f")
        ps = [figure_cell(one.get(p), form=".3g") for p in ("p", "p_holm")]
        rows.append([name, str(one["problems"]), *shares, difference, *ps, one["test"]])
    lines = [*table_lines(head, rows), "", f"- first: {comparison['first']}", f"- second: {comparison['second']}"]
    left_out = comparison["only_in_first"], comparison["only_in_second"]
    if any(left_out):
        lines.append(f"- left out: {left_out[0]} problems only in the first, {left_out[1]} only in the second")
    graders = comparison["graders"]
    if graders[0] != graders[1]:
        lines.append(
            f"- WARNING: judged by different graders (hash {graders[0]} and {graders[1]}): a difference may come from "
            "them; regrade both with --responses DIR/responses.jsonl"
        )
    return "\n".join(lines) + "\n"
