"""Which estimators agree with true credit? Frozen rollouts of chains, whose true state is known.

    python examples/chains/make_model.py --steps 6 --filler 0.5 --output runs/chains/6-50-30
    python benchmarks/credit_agreement.py runs/chains/* --output runs/credit_agreement

A token's true credit is the change of V(prompt, state) that it causes. The state is the number of hours given and
whether all is right; V is the mean score in that state of the prompt's rollouts: the group's and `--pool` others.
`mc_value` gets values from `--continuations` continuations after every token, or only after every hour (steps). All
groups are mixed, since GRPO learns only from such groups.

- pooled: Spearman correlation of advantage and true credit over all tokens
- within: the same within each rollout, averaged; 0 for an estimator with equal credit for all tokens of a rollout
- sign: share of equal signs among tokens whose true credit is above 0.01 in size
- cosine: of the two vectors over all tokens

Intervals (95 %) come from groups drawn with replacement.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chain_rollouts import ORACLE, Member, advantages
from credit_map import row_of_marks
from numpy.typing import NDArray
from scipy.stats import rankdata

from openrlhf_ktae.credit import CreditBatch, estimators, load_estimator
from openrlhf_ktae.figures.statistics import interval
from openrlhf_ktae.ktae import KTAEConfig

sys.path.append(str(ORACLE.parent))
from make_task import Problem, draw_problem, on_track, read_problem, words_of

FIGURES = ("pooled", "within", "sign", "cosine")
SMALLEST = 0.01
RESAMPLES = 200
AT_ONCE = 512
"""Sequences sampled together; with more, keys and values no longer fit into the processor's cache."""
Floats = NDArray[np.float64]


def correlation(x: Floats, y: Floats) -> float:
    """Return Pearson's correlation; 0 if either input is constant."""
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 1e-12 else 0.0


def agreement(credit_A: Floats, control_A: Floats, within_B: Floats) -> tuple[float, float, float, float]:
    """Return `FIGURES` of one estimator against the control; `within_B` is the result of `within`."""
    matters = np.abs(control_A) > SMALLEST
    sign = float((np.sign(credit_A) == np.sign(control_A))[matters].mean()) if matters.any() else float("nan")
    length = np.linalg.norm(credit_A) * np.linalg.norm(control_A)
    known = within_B[~np.isnan(within_B)]
    return (
        correlation(rankdata(credit_A), rankdata(control_A)),
        float(known.mean()) if known.size else float("nan"),
        sign,
        float(credit_A @ control_A / length) if length > 0 else 0.0,
    )


def within(credit_A: Floats, control_A: Floats, row_A: NDArray[np.int64]) -> Floats:
    """Return the rank correlation of each rollout (B,); NaN where the control is constant. A row's tokens adjoin."""
    starts = np.flatnonzero(np.diff(row_A)) + 1
    rows = zip(np.split(credit_A, starts), np.split(control_A, starts), strict=True)
    return np.array([correlation(rankdata(x), rankdata(y)) if np.ptp(y) > 1e-9 else float("nan") for x, y in rows])


def with_intervals(
    credit_A: Floats, control_A: Floats, row_A: NDArray[np.int64], group_A: NDArray[np.int64]
) -> dict[str, Any]:
    """Return `FIGURES` with their intervals."""
    rng = np.random.default_rng(0)
    within_B = within(credit_A, control_A, row_A)
    group_B = group_A[np.diff(row_A, prepend=-1) != 0]
    groups = [(np.flatnonzero(group_A == group), np.flatnonzero(group_B == group)) for group in np.unique(group_A)]
    found = []
    for _ in range(RESAMPLES):
        drawn = [groups[i] for i in rng.integers(0, len(groups), len(groups))]
        at, rows = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        found.append(agreement(credit_A[at], control_A[at], within_B[rows]))
    figures = agreement(credit_A, control_A, within_B)
    return {
        name: [value, *interval(resampled)]
        for name, value, resampled in zip(FIGURES, figures, np.array(found).T, strict=True)
    }


def true_credit(batch: CreditBatch, pool: list[tuple[list[int], float]], group: int, prompt: int) -> Floats:
    """Return the change of V(prompt, state) at each action token; `pool` holds ids and scores of other rollouts.

    The pool consists of equal parts, one per group in order.
    """
    each, change_A = len(pool) // (len(batch.scores_B) // group), np.zeros(len(batch.at_A))
    ids_N = batch.token_ids_N.numpy()
    for q in range(len(batch.scores_B) // group):
        mine = [pool[i] for i in range(q * each, (q + 1) * each)]
        rows = range(q * group, (q + 1) * group)
        own = [(ids_N[batch.edges_B[b] : batch.edges_B[b + 1]].tolist(), float(batch.scores_B[b])) for b in rows]
        problem = read_problem(words_of(own[0][0][: prompt - 1]))
        assert problem is not None
        seen: dict[Any, list[float]] = {}
        for ids, score in [*mine, *own]:
            for state in {(0, True), *on_track(words_of(ids[prompt - 1 :]), problem)}:
                seen.setdefault(state, []).append(score)
        value = {state: float(np.mean(scores)) for state, scores in seen.items()}
        for b, (ids, _) in zip(rows, own, strict=True):
            first, length = batch.first_B[b], batch.lengths_B[b]
            states = [(0, True), *on_track(words_of(ids[prompt - 1 : prompt - 1 + length]), problem)]
            change_A[first : first + length] = np.diff([value[state] for state in states])
    return change_A


def sampled_values(
    member: Member, batch: CreditBatch, ids_BT: torch.Tensor, problems: list[Problem], continuations: int
) -> torch.Tensor:
    """Return the mean score of continuations after each action token (N,), NaN elsewhere and after the last one."""
    values = torch.full(batch.mask_N.shape, torch.nan).view(len(ids_BT), -1)
    each, prompt = len(ids_BT) // len(problems), int(batch.at_A[0]) + 1
    for length in range(1, int(batch.lengths_B.max())):
        rows = np.flatnonzero(batch.lengths_B > length)
        starts = ids_BT[rows, : prompt + length].repeat_interleave(continuations, 0)
        made = rollouts(member, starts, seed=10**6 * length, spent=length)
        asked = [problems[b // each] for b in rows for _ in range(continuations)]
        values[rows, prompt + length - 2] = member.scores(made, asked).view(len(rows), continuations).mean(1)
    return values.flatten()


def rollouts(member: Member, starts_BT: torch.Tensor, seed: int, spent: int = 0) -> torch.Tensor:
    """Return `starts_BT` continued by the model; they already contain `spent` tokens of the response."""
    weights, most = member.weights(), member.most - spent
    parts = starts_BT.split(AT_ONCE)
    made = [
        member.forward.sample(weights, p[None], member.pad, member.end, most, seed + i) for i, p in enumerate(parts)
    ]
    return joined([one[0] for one in made], member.pad)


def joined(parts: list[torch.Tensor], pad: int) -> torch.Tensor:
    """Return the rows of tables of different widths in one table, padded on the right."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=pad) for part in parts])


def measured(member: Member, group: int, groups: int, pool: int, continuations: int) -> dict[str, Any]:
    """Return the figures of all estimators on `groups` mixed groups of one member."""
    rng, weights = random.Random(1), member.weights()
    problems, parts, tries = [], [], 0
    while len(problems) < groups and tries < 40:
        tries += 1
        drawn = [draw_problem(member.knobs.steps, rng) for _ in range(64)]
        start = member.prompts(drawn, group)
        ids = rollouts(member, start, seed=1000 * tries)
        scores = member.scores(ids, drawn).view(-1, group)
        for q in range(len(drawn)):
            if 0 < scores[q].sum() < group and len(problems) < groups:
                problems.append(drawn[q])
                parts.append(ids[q * group : (q + 1) * group])
    prompt = start.shape[1]
    ids_BT = joined(parts, member.pad)
    scores_B = member.scores(ids_BT, problems)
    with torch.no_grad():
        log_probs = torch.cat(
            [member.forward.log_probs(weights, part[None], member.pad)[0] for part in ids_BT.split(64)]
        )
    batch = member.credit_batch(ids_BT, log_probs, scores_B, group, prompt)
    more = rollouts(member, member.prompts(problems, pool), seed=99)
    pool_scores = member.scores(more, problems).tolist()
    control_A = true_credit(batch, list(zip(more[:, 1:].tolist(), pool_scores, strict=True)), group, prompt)

    credits: dict[str, Floats] = {}
    if continuations:
        values_N = sampled_values(member, batch, ids_BT, problems, continuations)
        batch = replace(batch, values_N=values_N)
        credits["mc_value, tokens"] = advantages(batch, estimators()["mc_value"](batch).added_N)
        hours = [word.isdigit() for word in words_of(batch.token_ids_N.tolist())]
        steps = replace(batch, values_N=torch.where(torch.tensor(hours), values_N, torch.nan))
        credits["mc_value, steps"] = advantages(steps, estimators()["mc_value"](steps).added_N)
    credits |= {"oracle": advantages(batch, load_estimator(ORACLE)(batch).added_N), **credits_of(batch)}
    rows = batch.row_A
    return {
        "member": member.name,
        "accuracy": member.measured,
        "group": group,
        "groups": len(problems),
        "continuations": continuations,
        **compared(credits, control_A, rows, batch.group_B[rows]),
    }


def compared(
    credits: dict[str, Floats], control_A: Floats, row_A: NDArray[np.int64], group_A: NDArray[np.int64]
) -> dict[str, Any]:
    """Return the figures of each estimator's `credits` with intervals, and how many of the tokens matter."""
    return {
        "tokens": len(control_A),
        "that matter": float((np.abs(control_A) > SMALLEST).mean()),
        "estimators": {
            name: with_intervals(credit_A.astype(float), control_A, row_A, group_A)
            for name, credit_A in credits.items()
        },
    }


def credits_of(batch: CreditBatch) -> dict[str, Floats]:
    """Return the advantages (A,) of GRPO and of every estimator except `mc_value`; KTAE's in two variants."""
    credits = {"GRPO": advantages(batch, torch.zeros(len(batch.mask_N)))}
    for name, one in estimators().items():
        if name == "ktae":
            for variant in ("paper", "calibrated"):
                credits[f"ktae {variant}"] = advantages(batch, one(batch, KTAEConfig(variant=variant)).added_N)
        elif name != "mc_value":
            credits[name] = advantages(batch, one(batch).added_N)
    return credits


def table(results: list[dict[str, Any]], figure: str) -> str:
    """Return a Markdown table with a row per estimator and a column per member."""
    names = list(dict.fromkeys(name for result in results for name in result["estimators"]))
    heads = [f"{result['member']}, G {result['group']}" for result in results]
    lines = [f"| estimator | {' | '.join(heads)} |", f"|---|{'---:|' * len(results)}"]
    for name in names:
        cells = [
            "{:.2f} [{:.2f}, {:.2f}]".format(*result["estimators"][name][figure])
            if name in result["estimators"]
            else "-"
            for result in results
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(results: list[dict[str, Any]], of: str) -> str:
    """Return an SVG with a row per estimator and a mark with its interval per member."""
    names = list(dict.fromkeys(name for result in results for name in result["estimators"]))
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
    left, wide, step, top = 130, 520, 14 + 7 * len(results), 20 + 16 * len(results)
    height = top + step * len(names) + 40

    def x(value: float) -> float:
        return left + wide * (value + 0.3) / 1.3

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="680" height="{height}" fill="white"/>',
    ]
    for i, result in enumerate(results):
        out.append(
            f'<circle cx="{left}" cy="{16 + 16 * i}" r="4" fill="{colours[i % 8]}"/>'
            f'<text x="{left + 10}" y="{20 + 16 * i}">{result["member"]}, groups of {result["group"]}</text>'
        )
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        out.append(
            f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{top}" y2="{height - 30}" stroke="#ddd"/>'
            f'<text x="{x(tick)}" y="{height - 14}" text-anchor="middle">{tick:g}</text>'
        )
    for row, name in enumerate(names):
        intervals = [result["estimators"].get(name, {}).get(of) for result in results]
        out += row_of_marks(name, top + step * row + 10, step, left, x, intervals, colours)
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    """Measure each member at each group size; print tables, write results and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("members", nargs="+", type=Path)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of results.json, tables.md and agreement.svg"
    )
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[8])
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--pool", type=int, default=256)
    parser.add_argument("--continuations", type=int, default=32, help="0 leaves out mc_value")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = [(folder, size) for folder in args.members for size in args.group_sizes]
    write_results(
        (measured(Member(folder), size, args.groups, args.pool, args.continuations) for folder, size in cells),
        args.output,
    )


def write_results(results: Iterable[dict[str, Any]], output: Path) -> None:
    """Write results.json after each result; then print a table for each figure, write tables.md and agreement.svg."""
    output.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    for result in results:
        done.append(result)
        (output / "results.json").write_text(json.dumps(done, indent=1) + "\n")
        print(result["member"], result["group"], flush=True)
    text = "\n\n".join(f"**{name}**\n\n{table(done, name)}" for name in FIGURES)
    (output / "tables.md").write_text(text + "\n")
    (output / "agreement.svg").write_text(figure(done, "cosine"))
    print(text)


if __name__ == "__main__":
    main()
