"""Arms over seeds: outcomes with intervals, and paired tests of each arm against the one it extends.

An arm is compared with the arm whose name is its prefix (`grpo_ktae_paper` with `grpo`), else with the baseline.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.text import figure_cell, short, table_lines
from openrlhf_ktae.compare.run_outcomes import OUTCOMES, BadRun, Run, common_budget, outcomes
from openrlhf_ktae.figures.statistics import holm, sign_flip_test, t_interval

PERCENT = ("final_accuracy", "accuracy_at_tokens", "auc_accuracy", "auc_reward", "auc_reward_tokens")
Arms = Mapping[str, Mapping[int, Run]]
Outcomes = dict[str, dict[int, dict[str, float]]]
"""Outcomes by arm and seed."""


def rival(arm: str, arms: Sequence[str], baseline: str) -> str | None:
    """Return the arm to compare `arm` with; None for a baseline that extends no other arm."""
    begins = [other for other in arms if other != arm and arm.startswith(f"{other}_")]
    if begins:
        return max(begins, key=len)
    return None if arm == baseline else baseline


def compare_arms(
    arms: Arms,
    baseline: str,
    threshold: float,
    more_pairs: Sequence[tuple[str, str]] = (),
    earlier: Outcomes | None = None,
) -> dict[str, Any]:
    """Return `arms` (outcomes with 95 % t-intervals over seeds) and `tests` (differences on the same seeds).

    Each test flips the signs of the paired differences (exact up to 14 seeds). `p_holm` corrects, per outcome, for the
    number of pairs, including `more_pairs`. Runs are compared at the steps and tokens that all of them reached.
    Outcomes in `earlier`, at the steps and tokens of their own comparison, count as further seeds of these arms.
    """
    budget = common_budget([run for runs in arms.values() for run in runs.values()])
    found: Outcomes = {}
    for arm, runs in arms.items():
        new = {seed: outcomes(run, threshold, budget) for seed, run in runs.items()}
        found[arm] = dict(sorted({**(earlier or {}).get(arm, {}), **new}.items()))
    pairs = [(arm, other) for arm in arms if (other := rival(arm, list(arms), baseline)) is not None]
    pairs += [pair for pair in more_pairs if pair not in pairs]
    tests = []
    for outcome in OUTCOMES:
        of_outcome = [_test(outcome, arm, other, found) for arm, other in pairs]
        for test, p in zip(of_outcome, holm([test["p"] for test in of_outcome]), strict=True):
            tests.append({**test, "p_holm": p})
    return {
        "baseline": baseline,
        "threshold": threshold,
        "steps": budget.steps,
        "tokens": budget.tokens,
        "arms": {arm: _figures(of_arm) for arm, of_arm in found.items()},
        "tests": tests,
        "runs": {arm: {str(seed): values for seed, values in of_arm.items()} for arm, of_arm in found.items()},
    }


def read_outcomes(path: Path) -> Outcomes:
    """Return the outcomes that a `comparison.json` stores for each arm and seed.

    Raises BadRun if the file is not a comparison.
    """
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return {
            arm: {
                int(seed): {name: float("nan" if values[name] is None else values[name]) for name in OUTCOMES}
                for seed, values in of_arm.items()
            }
            for arm, of_arm in runs.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRun(f"{path}: not a comparison.json of this command ({short(error)})") from None


def _figures(of_arm: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"seeds": sorted(of_arm)}
    for outcome in OUTCOMES:
        mean, low, high = t_interval([values[outcome] for values in of_arm.values()])
        figures[outcome] = {"mean": mean, "ci95": [low, high]}
    return figures


def _test(outcome: str, arm: str, other: str, found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[str, Any]:
    seeds = sorted(set(found[arm]) & set(found[other]))
    differences = [found[arm][seed][outcome] - found[other][seed][outcome] for seed in seeds]
    mean, low, high = t_interval(differences)
    p = sign_flip_test(differences)
    known = sum(not math.isnan(difference) for difference in differences)
    return {"outcome": outcome, "arm": arm, "against": other, "seeds": known, "difference": mean} | {
        "ci95": [low, high],
        "p": p,
    }


def arm_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of all arms."""
    head = ["arm", "seeds", *OUTCOMES.values()]
    rows = []
    for arm, figures in result["arms"].items():
        cells = [_cell(outcome, figures[outcome]["mean"], figures[outcome]["ci95"]) for outcome in OUTCOMES]
        rows.append([arm, str(len(figures["seeds"])), *cells])
    return head, rows


def test_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of tests."""
    head = ["outcome", "arm", "against", "seeds", "difference [95 %]", "p", "p (Holm)"]
    rows = []
    for test in result["tests"]:
        if math.isnan(test["difference"]):
            continue
        difference = _cell(test["outcome"], test["difference"], test["ci95"], signed=True)
        cells = [OUTCOMES[test["outcome"]], test["arm"], test["against"], str(test["seeds"]), difference]
        rows.append([*cells, f"{test['p']:.3g}", f"{test['p_holm']:.3g}"])
    return head, rows


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return notes that explain the tables."""
    return [
        "Accuracies and rewards in percent; [95 % t-interval over seeds]. Tests: sign flips of paired differences on "
        "the same seeds, two-sided, Holm-corrected over the pairs of each outcome.",
        f"Threshold: mean training reward of 5 steps of {result['threshold']:g}; a run that never reaches it counts "
        f"the steps plus one. Equal steps: {result['steps']:.0f}; equal tokens: the {result['tokens']:.0f} response "
        "tokens that every run generated.",
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """Return both tables as Markdown."""
    lines: list[str] = []
    for head, rows in (arm_table(result), test_table(result)):
        lines += [*table_lines(head, rows), ""]
    return "\n".join([*lines, *notes(result)]) + "\n"


def _cell(outcome: str, mean: float, ends: Sequence[float], signed: bool = False) -> str:
    scale = 100 if outcome in PERCENT else 1
    return figure_cell(mean, *ends, scale=scale, form="+.1f" if signed else ".1f")
