"""Run pages: tables and training curves in one self-contained HTML file, which includes plotly's script."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openrlhf_ktae.base.text import figure_cell
from openrlhf_ktae.compare.run_outcomes import Run
from openrlhf_ktae.figures.statistics import t_interval
from openrlhf_ktae.report.curves import CROWDED, NoPlotly, arm_styles, curves, grouped, plotly
from openrlhf_ktae.report.files import ASSETS, link, page_json, write_page

WORD_COLUMNS = ("run", "arm", "against", "outcome")  # left-aligned; other columns contain numbers


@dataclass(frozen=True)
class Table:
    """One table of a page."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def write_run_page(
    runs: Sequence[Run], path: Path, title: str, tables: Sequence[Table] = (), links: Sequence[str] = ()
) -> Path:
    """Write the page of one or several runs, with `tables` above the curves.

    Raises:
        NoPlotly: plotly or jinja2 is not installed.
        BadRun: a recorded value is not a number.
        BadOption: the page cannot be written.
    """
    plotly()
    try:
        from jinja2 import Environment
    except ImportError:
        raise NoPlotly("pages need jinja2, which is not installed: pip install '.[report]'") from None
    from plotly.offline import get_plotlyjs

    drawn = curves(runs)
    arms = arm_styles(runs)
    several = any(len(group) > 1 for group in grouped(runs).values())
    template = Environment(autoescape=True).from_string((ASSETS / "runs.html").read_text(encoding="utf-8"))
    html = template.render(
        title=title,
        subtitle=f"{len(runs)} runs{', 95 % intervals over seeds' if several else ''}" if len(runs) > 1 else "",
        tables=[*tables, summary_table(runs)],
        links=[link(name) for name in links],
        words=WORD_COLUMNS,
        curves=drawn,
        arms=arms if len(arms) > 1 else [],
        several=several,
        crowded=several and len(arms) > CROWDED,
        data=page_json([json.loads(curve.figure.to_json()) for curve in drawn]),
        plotly=get_plotlyjs(),
    )
    return write_page(path, html)


def summary_table(runs: Sequence[Run]) -> Table:
    """Return a table of the first and last evaluation and the time of each run or arm."""
    edges = ["accuracy before %", "accuracy after %", "length before", "length after"]
    rows = []
    for label, group in grouped(runs).items():
        cells = [label, str(len(group)), str(max(run.steps[-1]["step"] for run in group))]
        for metric, scale in (("eval_accuracy", 100.0), ("eval_response_length_mean", 1.0)):
            cells += [_edge(group, metric, which, scale) for which in (0, -1)]
        seconds = [sum(row.get("timing/step_total") or 0.0 for row in run.steps) for run in group]
        rows.append([*cells, f"{sum(seconds) / len(seconds) / 60:.1f}"])
    over = "seeds if an arm has several, else over problems"
    return Table(
        "Runs",
        ["run", "seeds", "steps", *edges, "minutes"],
        rows,
        [f"[95 % interval over {over}]; minutes count only the steps."],
    )


def _edge(group: Sequence[Run], metric: str, which: int, scale: float) -> str:
    edges = [run.evaluations[which] for run in group if run.evaluations]
    rows = [row for row in edges if row.get(metric) is not None]
    if not rows:
        return "-"
    if len(rows) > 1:
        return figure_cell(*t_interval([row[metric] for row in rows]), scale=scale)
    return figure_cell(*(rows[0].get(f"{metric}{end}") for end in ("", "_low", "_high")), scale=scale)
