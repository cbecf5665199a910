"""Training curves as plotly figures: one line a run, or a mean with its 95 % interval over seeds of an arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from openrlhf_ktae.evaluation.run_outcomes import Run, arm_labels
from openrlhf_ktae.evaluation.statistics import t_interval
from openrlhf_ktae.run.record import benchmarks

# After Okabe and Ito: people with any kind of colour vision tell them apart, on light and on dark; dashes differ too.
COLOURS = ("#2b8cd6", "#e08a00", "#00a078", "#cc79a7", "#d55e00", "#8d6fd1", "#8a8f00", "#7b8794")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKS = ("circle", "square", "diamond", "cross", "x", "triangle-up")
STEP_CURVES = {
    "rollout/reward_mean": "training score",
    "rollout/response_length_mean": "response length (tokens)",
    "entropy_loss": "entropy",
    "kl": "KL to the reference",
    "ktae/mixed_group_share": "share of mixed groups",
    "ktae/mean_abs_k": "mean |K|",
    "dynamic_filtering_pass_rate": "pass rate of filtering (%)",
    "verifier_correct": "pass rate (share of right rollouts)",
    "ktae/advantage_mass_share": "share of advantage from K",
    "actor_grad_norm": "gradient norm",
}
PHASES = {
    "timing/generation": "generation",
    "timing/make_experience": "experience",
    "timing/ppo_train": "update",
    "timing/broadcast": "weights",
}


class NoPlotly(ImportError):
    """plotly is not installed."""


def plotly() -> Any:
    """Return plotly's graph objects.

    Raises:
        NoPlotly: it is not installed; the message names the extra.
    """
    try:
        from plotly import graph_objects
    except ImportError:
        raise NoPlotly("curves are drawn by plotly, which is not installed: pip install '.[report]'") from None
    return graph_objects


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the label of each arm -> its runs, which are seeds."""
    labels = arm_labels(run.arm for run in runs)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(str(labels[run.arm]), []).append(run)
    return groups


def figures(runs: Sequence[Run]) -> list[tuple[str, Any]]:
    """Return (title, figure) of every curve that some run recorded."""
    groups = grouped(runs)
    drawn = [("held-out accuracy", _held_out(groups, "eval_accuracy"))]
    names = sorted({name for run in runs for row in run.evaluations for name in benchmarks(row)})
    if len(names) > 1:
        drawn += [(f"held-out accuracy: {name}", _held_out(groups, f"eval_{name}_accuracy")) for name in names]
    drawn += [(title, _over_steps(groups, metric)) for metric, title in STEP_CURVES.items()]
    drawn += [(f"seconds per phase: {label}", _phases(group[0])) for label, group in groups.items()]
    return [(title, figure) for title, figure in drawn if figure.data]


def _over_steps(groups: dict[str, list[Run]], metric: str) -> Any:
    figure = plotly().Figure()
    for number, (label, runs) in enumerate(groups.items()):
        series = [run.series(metric) for run in runs]
        series = [one for one in series if one[0].size]
        if not series or not any(values.any() for _, values in series):
            continue  # never recorded, or 0 throughout: a KL term that is off
        if len(series) == 1:
            _line(figure, *series[0], label, number)
        else:
            _band(figure, series, label, number)
    return _laid_out(figure)


def _held_out(groups: dict[str, list[Run]], metric: str) -> Any:
    figure = plotly().Figure()
    for number, (label, runs) in enumerate(groups.items()):
        series = [run.held_out(metric) for run in runs]
        if len(series) > 1:
            _band(figure, [one for one in series if one[0].size], label, number, "lines+markers")
            continue
        rows = [row for row in runs[0].evaluations if row.get(metric) is not None]
        if rows:
            _with_errors(figure, rows, metric, label, number)
    return _laid_out(figure)


def _with_errors(figure: Any, rows: list[dict[str, Any]], metric: str, label: str, number: int) -> None:
    values = [row[metric] for row in rows]
    ends = [(row.get(f"{metric}_low", v), row.get(f"{metric}_high", v)) for row, v in zip(rows, values, strict=True)]
    errors = {
        "type": "data",
        "array": [high - v for (_, high), v in zip(ends, values, strict=True)],
        "arrayminus": [v - low for (low, _), v in zip(ends, values, strict=True)],
        "thickness": 1.2,
    }
    figure.add_scatter(
        x=[row["step"] for row in rows], y=values, error_y=errors, mode="lines+markers", name=label, **_style(number)
    )


def _line(figure: Any, x: Any, y: Any, label: str, number: int) -> None:
    figure.add_scatter(x=x.tolist(), y=y.tolist(), mode="lines", name=label, **_style(number))


def _band(figure: Any, series: Sequence[tuple[Any, Any]], label: str, number: int, mode: str = "lines") -> None:
    """Draw the mean over runs with its interval, at the steps that all of them have."""
    if not series:
        return
    steps = sorted(set.intersection(*(set(x.tolist()) for x, _ in series)))
    table = np.array([[dict(zip(x.tolist(), y.tolist(), strict=True))[step] for step in steps] for x, y in series])
    ends = [t_interval(column) for column in table.T]
    colour = COLOURS[number % len(COLOURS)]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_scatter(
        x=[*steps, *steps[::-1]],
        y=[*(high for _, _, high in ends), *(low for _, low, _ in ends[::-1])],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.18)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=label,
        name=f"{label}: 95 % interval",
    )
    means = [mean for mean, _, _ in ends]
    name = f"{label} ({len(series)} seeds)"
    figure.add_scatter(x=steps, y=means, mode=mode, name=name, legendgroup=label, **_style(number))


def _style(number: int) -> dict[str, Any]:
    line = {"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number % len(DASHES)], "width": 2}
    return {"line": line, "marker": {"symbol": MARKS[number % len(MARKS)], "size": 7}}


def _phases(run: Run) -> Any:
    figure = plotly().Figure()
    for number, (metric, title) in enumerate(PHASES.items()):
        x, y = run.series(metric)
        if x.size:
            colour = {"color": COLOURS[number], "width": 0.5}
            figure.add_scatter(x=x.tolist(), y=y.tolist(), stackgroup="phases", name=title, line=colour, mode="lines")
    return _laid_out(figure)


def _laid_out(figure: Any) -> Any:
    return figure.update_layout(
        template="none",
        margin={"l": 52, "r": 12, "t": 8, "b": 64},
        height=310,
        hovermode="x unified",
        legend={"orientation": "h", "y": -0.26, "x": 0},
        xaxis={"title": {"text": "step", "standoff": 4}, "rangemode": "tozero"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=True,
    )
