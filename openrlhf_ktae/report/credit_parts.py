"""Split a group into parts that fit: between rollouts, or within a rollout that is too long by itself."""

from collections.abc import Iterator
from typing import Any

from openrlhf_ktae.record.recorded import BadRecord
from openrlhf_ktae.report.files import page_json, size_of

Data = dict[str, Any]


def parts(data: Data, room: int) -> Iterator[str]:
    """Yield the JSON of a group (see `credit_data.group_data`), in parts of at most `room` bytes.

    A part has the texts and figures of its own tokens only. Raises BadRecord if a single token does not fit.
    """
    text = page_json(data)
    if size_of(text) <= room:
        yield text
        return
    rollouts = data["rollouts"]
    if len(rollouts) > 1:
        middle = len(rollouts) // 2
        halves = [_of_rollouts(data, slice(None, middle)), _of_rollouts(data, slice(middle, None))]
    elif len(rollouts[0]["refs"]) > 1:
        middle = len(rollouts[0]["refs"]) // 2
        halves = [{**data, "rollouts": [one]} for one in _cut(rollouts[0], middle)]
    else:
        raise BadRecord(
            f"step {data['step']}, group {data['group']}: the problem and one token of rollout "
            f"{rollouts[0]['number']} do not fit on a page; shorten them"
        )
    for half in halves:
        yield from parts(_without_unused({**half, "cut": True}), room)


def _of_rollouts(data: Data, rows: slice) -> Data:
    variants = {
        name: {**one, "means": one["means"][rows], "shifts": one["shifts"][rows] if one["shifts"] else None}
        for name, one in data["variants"].items()
    }
    return {**data, "rollouts": data["rollouts"][rows], "variants": variants}


def _cut(rollout: Data, middle: int) -> list[Data]:
    """Split a rollout into two at token `middle`."""
    ends = [(0, middle), (middle, len(rollout["refs"]))]
    return [
        {
            **rollout,
            "start": rollout["start"] + first,
            "refs": rollout["refs"][first:end],
            "credit": {name: values[first:end] for name, values in rollout["credit"].items()},
            "texts": {place - first: text for place, text in rollout["texts"].items() if first <= place < end},
            "skipped": [place - first for place in rollout["skipped"] if first <= place < end],
        }
        for first, end in ends
    ]


def _without_unused(data: Data) -> Data:
    used = sorted({ref for rollout in data["rollouts"] for ref in rollout["refs"]})
    place = {ref: i for i, ref in enumerate(used)}

    def kept(values: list[Any]) -> list[Any]:
        return [values[ref] for ref in used]

    return {
        **data,
        **{name: kept(data[name]) for name in ("ids", "texts", "counts")},
        "rollouts": [{**one, "refs": [place[ref] for ref in one["refs"]]} for one in data["rollouts"]],
        "variants": {name: {**one, "measures": kept(one["measures"])} for name, one in data["variants"].items()},
    }
