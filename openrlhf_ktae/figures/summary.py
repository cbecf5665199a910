"""Summarise a stream of graded rows into metrics with 95 % intervals.

Legend: `I` problems, `M` metrics. Keeps a few numbers per response, never its text.
"""

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_ktae.base.text import figure_cell, table_lines
from openrlhf_ktae.figures.statistics import SEED, SHARE, interval, majority_at_k, pass_at_every_k, resampled_means
from openrlhf_ktae.verifier import CORRECT, UNKNOWN
from openrlhf_ktae.verifier.quick import squeeze
from openrlhf_ktae.verifier.reading.clean import clean

Table = NDArray[np.float64]

LENGTH = "response_length_mean"
METRICS_AT_ONCE = 256  # 4 MB of resamples: bounds memory for any samples x resamples
RIGHT_ANSWER, NO_ANSWER = 0, -1
RATES = {"truncated_rate": "truncated", "format_rate": "format", "answered_rate": "answered", "unknown_rate": "unknown"}
NOT_KNOWN = -1
SHOWN = ("model", "template", "sampling", "sources", "limit", "long_prompts", "responses", "tokenizer")


class Tally:
    """Statistics of one benchmark, about 40 bytes per response."""

    def __init__(self) -> None:
        self.items: dict[str, int] = {}
        self.item, self.answer = array("q"), array("q")
        self.tokens, self.characters = array("d"), array("d")
        self.flags = {name: array("b") for name in ("correct", *RATES.values())}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one graded row."""
        self.item.append(self.items.setdefault(row["id"], len(self.items)))
        self.answer.append(answer_class(row))
        self.tokens.append(float("nan") if row.get("tokens") is None else row["tokens"])
        self.characters.append(row["characters"])
        flags = {
            "correct": row["verdict"] == CORRECT,
            "unknown": row["verdict"] == UNKNOWN,
            "answered": row["extracted"] is not None,
            "format": row["format"],
            "truncated": row.get("truncated"),
        }
        for name, value in flags.items():
            self.flags[name].append(NOT_KNOWN if value is None else int(value))

    @property
    def in_tokens(self) -> bool:
        """Whether every response has a length in tokens."""
        return not np.isnan(np.asarray(self.tokens)).any()

    @property
    def samples(self) -> int:
        """The smallest number of samples of any problem."""
        return int(np.bincount(self.item).min())

    def table(self, in_tokens: bool) -> tuple[list[str], Table]:
        """Return metric names, and their values for each problem (I, M)."""
        sorted_items = np.argsort(np.array(list(self.items)))  # the order of rows must not change an interval
        rank = np.empty_like(sorted_items)
        rank[sorted_items] = np.arange(len(sorted_items))
        ranked = rank[np.asarray(self.item)]
        order = np.argsort(ranked, kind="stable")
        ends = np.cumsum(np.bincount(ranked))[:-1]
        names, columns = ["accuracy", LENGTH], [self._means(order, ends, self.flags["correct"])]
        columns.append(self._means(order, ends, self.tokens if in_tokens else self.characters))
        for name, flag in RATES.items():
            values = np.asarray(self.flags[flag], dtype=np.float64)
            names.append(name)
            columns.append(self._means(order, ends, np.where(values == NOT_KNOWN, np.nan, values)))
        correct = [part.astype(bool) for part in np.split(np.asarray(self.flags["correct"])[order], ends)]
        answers = np.split(np.asarray(self.answer)[order], ends)
        names += [f"pass@{k}" for k in range(1, self.samples + 1)]
        columns += list(np.stack([pass_at_every_k(c.size, int(c.sum()), self.samples) for c in correct], axis=1))
        voters = [(a.tolist(), c.tolist()) for a, c in zip(answers, correct, strict=True)]
        for k in votes(self.samples):
            names.append(f"maj@{k}")
            columns.append(np.array([majority_at_k(a, c, k) for a, c in voters]))
        return names, np.stack(columns, axis=1)

    @staticmethod
    def _means(order: NDArray[np.int64], ends: NDArray[np.int64], values: Any) -> Table:
        ordered = np.asarray(values, dtype=np.float64)[order]
        starts = np.concatenate([[0], ends])
        return np.add.reduceat(ordered, starts) / np.diff(np.append(starts, ordered.size))


def votes(samples: int) -> list[int]:
    """Return the k of maj@k: 1, powers of two, and all samples."""
    return sorted({samples, *(2**i for i in range(samples.bit_length()))})


def ends_of(tables: Sequence[tuple[int, Table]], names: Sequence[str]) -> Table:
    """Return 95 % interval ends (M, 2) of the mean over `tables` (seed, (I, M)), each resampled separately.

    NaN for a metric without values. Equal shares get the interval of `unseen_means`.
    """
    ends = np.full((len(names), 2), np.nan)
    for start in range(0, len(names), METRICS_AT_ONCE):
        some = names[start : start + METRICS_AT_ONCE]
        block = slice(start, start + len(some))
        bounds = [None if name == LENGTH else SHARE for name in some]
        drawn = [resampled_means(values_IM[:, block], seed, bounds) for seed, values_IM in tables]
        for metric, means_R in enumerate(np.mean(drawn, axis=0).T, start=start):
            if not np.isnan(means_R).all():
                ends[metric] = interval(means_R)
    return ends


def answer_class(row: Mapping[str, Any]) -> int:
    """Return equal numbers for equal answers; all right ones count as equal, wrong ones if their normalised text is."""
    if row["verdict"] == CORRECT:
        return RIGHT_ANSWER
    if row["extracted"] is None:
        return NO_ANSWER
    digest = hashlib.blake2b(squeeze(clean(row["extracted"])).encode("utf-8", "replace"), digest_size=7).digest()
    return 1 + int.from_bytes(digest)


def summarize(rows: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary: `about`, then `benchmarks`, `macro` and `pooled`.

    `accuracy` is the mean over each problem's samples; `n` counts responses. Intervals are 95 % percentiles over
    resampled problems; for `macro`, problems are drawn within each benchmark. An unknown verdict counts as not correct,
    and `unknown_rate` reports it. Raises ValueError without rows.
    """
    tallies: dict[str, Tally] = {}
    for row in rows:
        tallies.setdefault(row["benchmark"], Tally()).add(row)
    if not tallies:
        raise ValueError("no graded responses to summarize")
    in_tokens = all(tally.in_tokens for tally in tallies.values())
    tables = {name: tally.table(in_tokens) for name, tally in tallies.items()}
    in_all = set[str].intersection(*({*names} for names, _ in tables.values()))
    common = [name for name in next(iter(tables.values()))[0] if name in in_all]
    benchmarks, picked = {}, []
    for number, (name, (names, values_IM)) in enumerate(sorted(tables.items())):
        ends = ends_of([(SEED + number, values_IM)], names)
        benchmarks[name] = _figures(tallies[name], names, values_IM.mean(axis=0), ends)
        picked.append((SEED + number, values_IM[:, [name in in_all for name in names]]))
    macro = np.mean([values_IM.mean(axis=0) for _, values_IM in picked], axis=0)
    pooled_IM = np.concatenate([values_IM for _, values_IM in picked])
    everything = list(tallies.values())
    return {
        **about,
        "length_unit": "tokens" if in_tokens else "characters",
        "benchmarks": benchmarks,
        "macro": _figures(everything, common, macro, ends_of(picked, common)),
        "pooled": _figures(everything, common, pooled_IM.mean(axis=0), ends_of([(SEED, pooled_IM)], common)),
    }


def _figures(tally: Tally | list[Tally], names: list[str], values_M: Table, ends_M2: Table) -> dict[str, Any]:
    """Return one group's metrics in the format of the summary file."""
    tallies = tally if isinstance(tally, list) else [tally]
    figures: dict[str, Any] = {"pass_at_k": {}, "maj_at_k": {}}
    for column, name in enumerate(names):
        known = not np.isnan(values_M[column])
        value = float(values_M[column]) if known else None
        ends = ends_M2[column].tolist() if known else None
        kind, _, k = name.partition("@")
        if k:
            figures[f"{kind}_at_k"][k] = {"value": value, "ci95": ends}
        elif name == "accuracy":
            figures |= {"accuracy": value, "ci95": ends}
        else:
            figures |= {name: value, f"{name.removesuffix('_mean')}_ci95": ends}
    counts = {
        "n": sum(len(one.item) for one in tallies),
        "problems": sum(len(one.items) for one in tallies),
        "samples": min(one.samples for one in tallies),
    }
    first = {name: figures.pop(name) for name in ("accuracy", "ci95")}
    return {**first, **counts, **figures}


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the summary as a Markdown table."""
    groups = {**summary["benchmarks"], "macro mean": summary["macro"], "pooled": summary["pooled"]}
    most = max(group["samples"] for group in groups.values())
    head = ["benchmark", "problems", "n", "accuracy %", *([f"pass@{most} %", f"maj@{most} %"] if most > 1 else [])]
    head += [f"length ({summary['length_unit']})", "truncated %", "format %", "unknown %"]
    rows = []
    for name, group in groups.items():
        cells = [
            name,
            str(group["problems"]),
            str(group["n"]),
            figure_cell(group["accuracy"], *group["ci95"] or (), scale=100),
        ]
        if most > 1:
            found = [group[kind].get(str(most), {}) for kind in ("pass_at_k", "maj_at_k")]
            cells += [figure_cell(one.get("value"), *one.get("ci95") or (), scale=100) for one in found]
        cells.append(figure_cell(group["response_length_mean"], *group["response_length_ci95"] or ()))
        cells += [figure_cell(group[name], scale=100) for name in ("truncated_rate", "format_rate", "unknown_rate")]
        rows.append(cells)
    grader = summary["grader"]
    lines = [*table_lines(head, rows), "", "[95 % interval over problems]", ""]
    lines += [f"- {name}: {summary[name]}" for name in SHOWN if summary.get(name) is not None]
    lines.append(f"- grader: {grader['name']} {grader['version']}, hash {grader['hash']}")
    return "\n".join(lines) + "\n"
