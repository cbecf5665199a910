"""Table and figure of where token credit trains better than GRPO, from the cells of `credit_training.py`.

    python benchmarks/credit_map.py docs/credit_map.json --image docs/images/credit_map.svg

Differences from GRPO on the same seeds, in points, with 95 % t-intervals; p from paired t-tests, with Holm's correction
over all arms and cells of the table. A star marks p below 0.05.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

from openrlhf_ktae.figures.statistics import holm, t_interval

OUTCOMES = {"over steps": "Mean accuracy over the steps", "final": "Accuracy at the end, held-out"}
CONTROL = "oracle x probability"
COLOURS = ("#000000", "#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#e69f00", "#999999")
SURE = 0.05
CENTRE = {"steps": 6, "filler": 0.5, "ways": 4, "accuracy": 0.3, "group": 16, "updates": 1}


def knobs(cell: dict[str, Any]) -> dict[str, float]:
    """Return the knobs in which the cell differs from `CENTRE`."""
    is_ = cell["knobs"] | {"group": cell["group"], "updates": cell["updates"]}
    return {name: is_[name] for name in CENTRE if is_[name] != CENTRE[name]}


def label(cell: dict[str, Any]) -> str:
    """Return the `knobs` of a cell in words, and the learning rate if all arms share one."""
    texts = {
        "steps": "{} steps",
        "filler": "{:.0%} filler",
        "ways": "ways to be wrong: {}",
        "accuracy": "start accuracy {:.0%}",
        "group": "groups of {}",
        "updates": "{} updates a batch",
    }
    found = [texts[name].format(value).replace("%", " %") for name, value in knobs(cell).items()]
    rates = set(cell["rate"].values())
    return ", ".join(found or ["centre"]) + (
        f", all at {rates.pop():.1e}".replace("e-0", "e-").replace(".0e", "e") if len(rates) == 1 else ""
    )


def place(cell: dict[str, Any]) -> list[tuple[int, float]]:
    """Return the sort key of a cell: the centre first, then knob by knob."""
    return [(list(CENTRE).index(name), value) for name, value in knobs(cell).items()]


def differences(cells: list[dict[str, Any]], outcome: str) -> dict[tuple[int, str], tuple[float, float, float, float]]:
    """Return the mean difference from GRPO, its interval and corrected p for each (cell, arm)."""
    found = {}
    for at, cell in enumerate(cells):
        for arm, values in cell[outcome].items():
            if arm != "GRPO":
                away_S = np.subtract(values, cell[outcome]["GRPO"])
                found[at, arm] = *t_interval(away_S), float(ttest_1samp(away_S, 0).pvalue)
    corrected = holm([one[3] for one in found.values()])
    return {key: (*one[:3], p) for (key, one), p in zip(found.items(), corrected, strict=True)}


def pooled(cells: list[dict[str, Any]], outcome: str) -> dict[str, tuple[float, float, float]]:
    """Return each arm's mean difference over cells, with a t-interval over seeds (of each seed's mean over cells)."""
    seeds = min(cell["seeds"] for cell in cells)
    return {
        arm: t_interval(np.mean([np.subtract(c[outcome][arm], c[outcome]["GRPO"])[:seeds] for c in cells], axis=0))
        for arm in cells[0][outcome]
        if arm != "GRPO" and all(arm in cell[outcome] for cell in cells)
    }


def signed(mean: float, low: float, high: float) -> str:
    """Return a difference with its interval."""
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def arms_of(cells: list[dict[str, Any]]) -> list[str]:
    """Return the names of all arms but GRPO, in order."""
    return [name for name in dict.fromkeys(name for cell in cells for name in cell["final"]) if name != "GRPO"]


def table(cells: list[dict[str, Any]], outcome: str) -> str:
    """Return a Markdown table with a row per cell and a column per arm."""
    found, arms = differences(cells, outcome), arms_of(cells)
    lines = [f"| cell | GRPO | {' | '.join(f'`{arm}`' for arm in arms)} |", f"|---|{'---:|' * (len(arms) + 1)}"]
    for at, cell in enumerate(cells):
        texts = [f"{np.mean(cell[outcome]['GRPO']):.1f}"]
        for arm in arms:
            one = found.get((at, arm))
            texts.append(signed(*one[:3]) + ("*" if one[3] < SURE else "") if one else "-")
        lines.append(f"| {label(cell)} | {' | '.join(texts)} |")
    return "\n".join(lines)


def row_of_marks(
    name: str,
    y0: float,
    step: int,
    left: int,
    x: Callable[[float], float],
    intervals: Sequence[Any],
    colours: Sequence[str],
) -> list[str]:
    """Return the SVG of one row: its name left of `left`, and stacked marks, one per (mean, low, high) or None."""
    out = [f'<text x="{left - 8}" y="{y0 + step / 2 - 4}" text-anchor="end">{name}</text>']
    for i, interval in enumerate(intervals):
        if interval:
            mean, low, high = interval
            y = y0 + 7 * i
            out.append(
                f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}" stroke="{colours[i % 8]}"/>'
                f'<circle cx="{x(mean):.1f}" cy="{y}" r="3" fill="{colours[i % 8]}"/>'
            )
    return out


def figure(cells: list[dict[str, Any]], outcome: str) -> str:
    """Return an SVG with a row per cell and a mark with its interval per arm."""
    found, arms = differences(cells, outcome), arms_of(cells)
    ends = [end for one in found.values() for end in one[1:3]]
    least, most = 5 * np.floor(min(ends) / 5), 5 * np.ceil(max(ends) / 5)
    left, wide, step, top = 230, 560, 16 + 7 * len(arms), 44 + 16 * -(-len(arms) // 3)
    height = top + step * len(cells) + 40

    def x(value: float) -> float:
        return float(left + wide * (value - least) / (most - least))

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 20}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{left + wide + 20}" height="{height}" fill="white"/>',
        f'<text x="10" y="18" font-weight="bold">{OUTCOMES[outcome]}: difference to GRPO, points, 95 %</text>',
    ]
    for i, arm in enumerate(arms):
        across, down = 10 + 260 * (i % 3), 36 + 16 * (i // 3)
        out.append(
            f'<circle cx="{across + 4}" cy="{down}" r="4" fill="{COLOURS[i % 8]}"/>'
            f'<text x="{across + 14}" y="{down + 4}">{arm}</text>'
        )
    for tick in np.arange(least, most + 1, 5):
        out.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height - 30}" '
            f'stroke="{"#000" if tick == 0 else "#ddd"}"/>'
            f'<text x="{x(tick):.1f}" y="{height - 14}" text-anchor="middle">{f"{tick:+g}" if tick else 0}</text>'
        )
    for at, cell in enumerate(cells):
        intervals = [found.get((at, arm), ())[:3] for arm in arms]
        out += row_of_marks(label(cell), top + step * at + 10, step, left, x, intervals, COLOURS)
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    """Print tables; write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--arms", nargs="+", help="arms besides GRPO (default: all)")
    args = parser.parse_args()
    cells = sorted(json.loads(args.cells.read_text()), key=place)
    for cell, outcome in product(cells if args.arms else [], OUTCOMES):
        cell[outcome] = {arm: cell[outcome][arm] for arm in ["GRPO", *args.arms] if arm in cell[outcome]}
    for outcome, title in OUTCOMES.items():
        print(f"**{title}**\n\n{table(cells, outcome)}\n")
        better = [cell for cell in cells if CONTROL in cell[outcome] and pooled([cell], outcome)[CONTROL][1] > 0]
        if better:
            print(f"Mean over the {len(better)} cells where the control's interval is above 0:\n")
            print("\n".join(f"- `{arm}` {signed(*one)}" for arm, one in pooled(better, outcome).items()), "\n")
    if args.image:
        args.image.write_text(figure(cells, "over steps"))


if __name__ == "__main__":
    main()
