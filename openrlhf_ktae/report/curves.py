"""Training curves as plotly figures and as text: one line per run, or a mean with its 95 % interval over seeds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.base.text import figure_cell
from openrlhf_ktae.compare.run_outcomes import BadRun, Run, arm_labels, arm_of
from openrlhf_ktae.figures.statistics import t_interval
from openrlhf_ktae.record.metrics import benchmarks

Floats = NDArray[np.float64]

# After Okabe and Ito, distinguishable with any kind of colour vision. Each has a contrast of at least 3 on the light
# and the dark page. Dashes and markers differ too: arm 9 has the colour of the first arm, but other dashes.
COLOURS = ("#2b8cd6", "#c97b00", "#00976f", "#c4679b", "#d55e00", "#8d6fd1", "#8a8f00", "#7b8794")
DASHES = {
    "solid": "", "dash": "8 5", "dot": "2 4", "dashdot": "8 4 2 4", "longdash": "14 5", "longdashdot": "14 4 2 4",
}  # fmt: skip
MARKS = ("circle", "square", "diamond", "cross", "x", "triangle-up")
STEP_CURVES = {
    "rollout/reward_mean": "training score",
    "rollout/response_length_mean": "response length (tokens)",
    "entropy_loss": "entropy",
    "kl": "KL to the reference",
    "mismatch/mean": "log-probability gap between trainer and sampler (mean)",
    "mismatch/p99": "log-probability gap between trainer and sampler (99th percentile)",
    "staleness/mean": "age of the rollouts' weights (steps)",
    "ktae/mixed_group_share": "share of mixed groups",
    "ktae/mean_abs_k": "mean |K|",
    "credit/mixed_group_share": "share of mixed groups (other estimators)",
    "credit/mean_abs_added": "mean |credit added to the base|",
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
HEIGHT = 320  # pixels of a figure, which has no legend of its own: the legend of the arms is above all figures
PLAIN_BELOW = 1e-6  # a spread below this share of the values is rounding error, too small to set the scale
CROWDED = 4  # with more arms, intervals hide each other, so the page shows them only on request


class NoPlotly(Refusal):
    """plotly is not installed."""


def plotly() -> Any:
    """Return plotly's graph objects. Raises NoPlotly if it is not installed; the message names the extra."""
    try:
        from plotly import graph_objects
    except ImportError:
        raise NoPlotly("curves need plotly, which is not installed: pip install '.[report]'") from None
    return graph_objects


@dataclass(frozen=True)
class Line:
    """One arm's line in a figure."""

    label: str
    place: int
    """Index of its colour and dashes."""
    seeds: int
    steps: Floats
    values: Floats
    lows: Floats
    highs: Floats
    """NaN if there is no interval."""

    @property
    def name(self) -> str:
        """The hover label."""
        return arm_name(self.label, self.seeds)


@dataclass(frozen=True)
class Curve:
    """A figure, and its content as text: first, last and mean value of each line."""

    title: str
    figure: Any
    rows: list[list[str]]
    note: str = ""

    head = ("", "steps", "first", "last", "mean")

    @property
    def spoken(self) -> str:
        """Alternative text for screen readers."""
        return f"{self.title} over steps: " + "; ".join(f"{row[0]} from {row[2]} to {row[3]}" for row in self.rows)


def arm_name(label: str, seeds: int) -> str:
    """Return the label of an arm, with the number of seeds if there are several."""
    return f"{label} ({seeds} seeds)" if seeds > 1 else label


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by arm: label -> runs, one per seed."""
    labels = arm_labels(arm_of(run.path) for run in runs)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(str(labels[arm_of(run.path)]), []).append(run)
    return groups


def refuse_words(runs: Iterable[Run]) -> None:
    """Check that all plotted values are numbers or null.

    Raises BadRun if a value is something else; the message says where.
    """
    for run in runs:
        for row in (*run.steps, *run.evaluations):
            for name, value in row.items():
                drawn = name in STEP_CURVES or name.startswith(("timing/", "eval_"))
                if drawn and value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                    raise BadRun(
                        f"{run.path}: {name} of step {row['step']:g} is {str(value)[:40]!r}, not a number; "
                        "the record is damaged"
                    )


def curves(runs: Sequence[Run]) -> list[Curve]:
    """Return every curve that any run recorded. Raises BadRun if a recorded value is not a number."""
    refuse_words(runs)
    groups = grouped(runs)
    drawn = [_evaluated("held-out accuracy", groups, "eval_accuracy")]
    names = sorted({name for run in runs for row in run.evaluations for name in benchmarks(row)})
    if len(names) > 1:
        drawn += [_evaluated(f"held-out accuracy: {name}", groups, f"eval_{name}_accuracy") for name in names]
    drawn += [_over_steps(title, groups, metric) for metric, title in STEP_CURVES.items()]
    if len(groups) == 1:
        drawn.append(_stacked_phases(next(iter(groups.values()))))
    else:
        drawn += [_over_steps(f"seconds: {title}", groups, metric) for metric, title in PHASES.items()]
    return [curve for curve in drawn if curve.rows]


def arm_styles(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return name, colour and SVG dashes of each arm, for the page's legend."""
    dashes = list(DASHES.values())
    return [
        {
            "label": label,
            "name": arm_name(label, len(group)),
            "colour": COLOURS[place % len(COLOURS)],
            "dash": dashes[place % len(dashes)],
        }
        for place, (label, group) in enumerate(grouped(runs).items())
    ]


def _over_steps(title: str, groups: dict[str, list[Run]], metric: str) -> Curve:
    lines = _lines(groups, lambda run: run.series(metric))
    # Skip lines that are all 0, such as a KL term that is off.
    return _curve(title, [line for line in lines if line.values.any()], "lines")


def _evaluated(title: str, groups: dict[str, list[Run]], metric: str) -> Curve:
    lines = _lines(groups, lambda run: run.held_out(metric))
    lines = [line if line.seeds > 1 else _over_problems(line, groups[line.label], metric) for line in lines]
    return _curve(title, lines, "lines+markers")


def _lines(groups: dict[str, list[Run]], series_of: Callable[[Run], tuple[Floats, Floats]]) -> list[Line]:
    """Return the line of each arm: the mean over its seeds at their common steps."""
    lines = []
    for place, (label, runs) in enumerate(groups.items()):
        series = [one for one in map(series_of, runs) if one[0].size]
        if not series:
            continue
        steps, table_SN = at_common_steps(series)
        ends = np.array([t_interval(column) for column in table_SN.T]).reshape(-1, 3)
        if steps.size:
            lines.append(Line(label, place, len(series), steps, *ends.T))
    return lines


def at_common_steps(series: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """Return the steps (N,) common to all S series, and their values (S, N) there."""
    maps = [dict(zip(steps.tolist(), values.tolist(), strict=True)) for steps, values in series]
    common = sorted(set.intersection(*map(set, maps)))
    return np.array(common), np.array([[one[step] for step in common] for one in maps]).reshape(len(series), -1)


def _over_problems(line: Line, runs: Sequence[Run], metric: str) -> Line:
    """Return the line of one run with the intervals recorded by its evaluations."""
    rows = {row["step"]: row for run in runs for row in run.evaluations}
    ends = [
        np.array([float("nan") if (v := rows[step].get(f"{metric}_{end}")) is None else v for step in line.steps])
        for end in ("low", "high")
    ]
    return Line(line.label, line.place, 1, line.steps, line.values, *ends)


def _curve(title: str, lines: Sequence[Line], mode: str) -> Curve:
    share = any(word in title for word in ("accuracy", "share"))
    figure = plotly().Figure()
    for line in lines:
        if line.seeds > 1:
            _add_band(figure, line)
        _add_line(figure, line, mode, share)
    rows = [[line.name, *words_of(line.steps, line.values, line.lows, line.highs, share)] for line in lines]
    if lines:
        low, high = axis_range(lines, share)
        figure.update_yaxes(range=[low, high], tickformat=".0%" if share and high - low > 0.04 else None)
    return Curve(title, _laid_out(figure), rows)


def axis_range(lines: Sequence[Line], share: bool) -> tuple[float, float]:
    """Return the range of the value axis.

    Lines fit completely. Intervals are clipped one line height above and below the lines, and at the bounds of a share.
    With two seeds they reach 13 standard errors from the mean, and lines would look flat. If the values are equal up to
    rounding, the axis spans a fifth of their size.
    """
    values = np.concatenate([line.values for line in lines])
    ends = np.concatenate([values, *(end for line in lines for end in (line.lows, line.highs))])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    size = max(abs(low), abs(high))
    if float(np.nanmax(ends) - np.nanmin(ends)) <= PLAIN_BELOW * size:
        middle = (low + high) / 2
        return (middle - 0.1 * size, middle + 0.1 * size) if size else (-1.0, 1.0)
    height = max(high - low, 0.1 * size)
    bottom, top = max(float(np.nanmin(ends)), low - height), min(float(np.nanmax(ends)), high + height)
    if share:
        bottom, top = max(bottom, min(low, 0.0)), min(top, max(high, 1.0))
    margin = 0.04 * (top - bottom)
    return bottom - margin, top + margin


def _add_band(figure: Any, line: Line) -> None:
    known = ~np.isnan(line.lows)
    if not known.any():
        return
    steps, lows, highs = line.steps[known], line.lows[known], line.highs[known]
    colour = COLOURS[line.place % len(COLOURS)]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    figure.add_scatter(
        x=[*steps, *steps[::-1]],
        y=[*highs, *lows[::-1]],
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.16)",
        line={"width": 0, "color": colour},
        hoverinfo="skip",
        legendgroup=line.label,
        name=f"{line.label}: 95 % interval",
        meta="interval",
    )


def _add_line(figure: Any, line: Line, mode: str, share: bool) -> None:
    more: dict[str, Any] = {}
    if line.seeds == 1 and not np.isnan(line.lows).all():
        arms = {"array": line.highs - line.values, "arrayminus": line.values - line.lows}
        more["error_y"] = {"type": "data", "thickness": 1.2, **{k: np.nan_to_num(v).tolist() for k, v in arms.items()}}
    style = {
        "line": {
            "color": COLOURS[line.place % len(COLOURS)],
            "dash": list(DASHES)[line.place % len(DASHES)],
            "width": 1.8,
        },
        "marker": {"symbol": MARKS[line.place % len(MARKS)], "size": 7},
    }
    figure.add_scatter(
        x=line.steps.tolist(),
        y=line.values.tolist(),
        mode=mode,
        name=line.name,
        legendgroup=line.label,
        hovertext=[shown(*figures, share) for figures in zip(line.values, line.lows, line.highs, strict=True)],
        hovertemplate="%{hovertext}",
        **style,
        **more,
    )


def words_of(steps: Floats, values: Floats, lows: Floats, highs: Floats, share: bool = False) -> list[str]:
    """Return steps, first, last and mean value of a line."""
    edges = [shown(values[i], lows[i], highs[i], share) for i in (0, -1)]
    nan = float("nan")
    return [f"{steps[0]:g} to {steps[-1]:g}", *edges, shown(float(values.mean()), nan, nan, share)]


def shown(value: float, low: float, high: float, share: bool = False) -> str:
    """Return a value with its interval, if it has one."""
    if share:
        return f"{figure_cell(value, low, high, scale=100)} %"
    return figure_cell(value, low, high, form=".4g")


def _stacked_phases(runs: Sequence[Run]) -> Curve:
    """Stack the phases of one arm, each the mean over its seeds."""
    figure = plotly().Figure()
    rows = []
    for number, (metric, title) in enumerate(PHASES.items()):
        series = [one for one in (run.series(metric) for run in runs) if one[0].size]
        steps, table_SN = at_common_steps(series) if series else (np.empty(0), np.empty((0, 0)))
        if not steps.size:
            continue
        means = table_SN.mean(axis=0)
        nothing = np.full(means.shape, np.nan)
        rows.append([title, *words_of(steps, means, nothing, nothing)])
        figure.add_scatter(
            x=steps.tolist(),
            y=means.tolist(),
            stackgroup="phases",
            name=title,
            mode="lines",
            line={"color": COLOURS[number], "width": 0.8},
            hovertemplate="%{y:.3g} s",
        )
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0})
    note = f"mean of {len(runs)} seeds" if len(runs) > 1 else ""
    return Curve("seconds per phase", _laid_out(figure, showlegend=True), rows, note)


def _laid_out(figure: Any, showlegend: bool = False) -> Any:
    return figure.update_layout(
        template="none",
        margin={"l": 56, "r": 14, "t": 30 if showlegend else 8, "b": 40},
        height=HEIGHT,
        hovermode="x unified",
        xaxis={"title": {"text": "step", "standoff": 6}, "rangemode": "tozero"},
        yaxis={"automargin": True},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=showlegend,
    )
