"""Whether two runs are equal: compares records row by row, without timings, and models weight by weight."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from openrlhf_ktae.record.metrics import read_record

TIMINGS, TIMING_ENDS = "timing/", ("time", "seconds")
COMPARED = ("step", "eval")


def figures(directory: str | Path) -> Iterator[dict[str, Any]]:
    """Yield steps and evaluations of a run without their timings."""
    for row in read_record(directory):
        if row["kind"] in COMPARED:
            yield {k: value for k, value in row.items() if not k.startswith(TIMINGS) and not k.endswith(TIMING_ENDS)}


def first_difference(one: str | Path, other: str | Path) -> str | None:
    """Return the first difference between the records of two runs, with both values; None if they are equal."""
    for left, right in zip_longest(figures(one), figures(other)):
        if left is None or right is None:
            row, missing = (left or right), (one if left is None else other)
            return f"{_name(row)}: is not in {missing}"
        if _name(left) != _name(right):
            return f"{_name(left)} in {one}, {_name(right)} in {other}"
        for figure in sorted(left.keys() | right.keys()):
            a, b = left.get(figure), right.get(figure)
            if a != b:
                return f"{_name(left)}: {figure} is {a!r} in {one}, {b!r} in {other}"
    return None


def _name(row: Mapping[str, Any]) -> str:
    return f"step {row['step']}" if row["kind"] == "step" else f"evaluation {row['when']} step {row['step']}"


def first_different_weight(one: str | Path, other: str | Path) -> str | None:
    """Return the first tensor that differs between two models, with the largest difference; None if they are equal."""
    import torch
    from safetensors.torch import load_file

    files = [sorted(path.name for path in Path(folder).glob("*.safetensors")) for folder in (one, other)]
    if files[0] != files[1] or not files[0]:
        return f"{one} has {', '.join(files[0]) or 'no weights'}; {other} has {', '.join(files[1]) or 'no weights'}"
    for file in files[0]:
        left, right = load_file(Path(one) / file), load_file(Path(other) / file)
        for name in sorted(left.keys() | right.keys()):
            if name not in left or name not in right:
                return f"{name} is missing in one of {one}, {other}"
            if not torch.equal(left[name], right[name]):
                gap = (left[name].double() - right[name].double()).abs().max()
                return f"{name} differs by up to {float(gap):.3g} between {one} and {other}"
    return None
