"""Experiences stored by columns: one tensor per field, with a view for each rollout.

Shapes: `B` rollouts, `T` positions of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from ctypes import memmove, memset
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.ktae.compiled import compiled
from openrlhf_ktae.trainer.ppo_utils.ragged import Memory
from openrlhf_ktae.trainer.ppo_utils.received import FIELDS, LISTS, NAMES, TABLES

TOGETHER_BYTES = 64 * 1024
"""Tensors of at most this mean size are sent as one; copying larger ones costs more than sending them separately."""
NARROW = {"sequences": torch.int32, "attention_mask": torch.int8, "action_mask": torch.int8}
"""Tables that the host keeps in 64 bits -> the narrower dtype that they have in micro-batches here and when sent."""
DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float32}
"""Type of a number -> dtype of its tensor."""


class Experiences(list[Any]):
    """A list of experiences that is pickled by columns, with its attributes. Slices are `Experiences` too."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return Experiences(found) if isinstance(index, slice) else found

    def __copy__(self) -> Experiences:
        made = type(self)(self)  # the same experiences; `__reduce__` would rebuild each
        vars(made).update(vars(self))
        return made

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return from_columns, (to_columns(self), type(self), vars(self))


class Tables(list[torch.Tensor]):
    """The tables of one field, `name`, of experiences. Slices are `Tables` too. They are sent in narrow dtypes."""

    def __init__(self, tables: Iterable[torch.Tensor], name: str) -> None:
        super().__init__(tables)
        self.name = name

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return Tables(found, self.name) if isinstance(index, slice) else found

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return unpacked, (narrowed(list(self), self.name),)


def to_columns(experiences: Sequence[Experience]) -> dict[str, Any]:
    """Return the columns from which `from_columns` rebuilds the experiences."""
    columns: dict[str, Any] = {name: narrowed([getattr(e, name) for e in experiences], name) for name in NAMES}
    columns["info"] = even_columns([e.info for e in experiences], packed)
    return columns


def from_columns(columns: dict[str, Any], kind: type[Experiences], attributes: dict[str, Any]) -> Experiences:
    """Rebuild a list of type `kind` from packed columns. Its tensors are writable."""
    columns = {name: unpacked(column) for name, column in columns.items() if name != "info"} | {
        "info": rows_of(columns["info"], unpacked)
    }
    names, rows = tuple(columns), zip(*columns.values(), strict=True)
    made = kind(Experience(**dict(zip(names, row, strict=True))) for row in rows)
    vars(made).update(attributes)
    return made


def even_columns(rows: Sequence[dict[str, Any]], make: Callable[..., Any]) -> Any:
    """Apply `make` to the list of values of each key. Rows with different keys are returned as they are."""
    if not rows or any(row.keys() != rows[0].keys() for row in rows) or not rows[0]:
        return list(rows)
    return {key: make([row[key] for row in rows]) for key in rows[0]}


def rows_of(columns: Any, make: Callable[..., Any]) -> list[dict[str, Any]]:
    """Invert `even_columns`; `make` inverts the function it was given."""
    if isinstance(columns, list):
        return columns
    rows = zip(*(make(column) for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


class Together:
    """Tensors of one dtype, flattened and concatenated, with their shapes."""

    def __init__(self, whole_N: torch.Tensor, shapes: list[tuple[int, ...]]) -> None:
        self.whole_N, self.shapes = whole_N, shapes


class Narrow:
    """A packed column in a narrow dtype; it gets `dtype` back when it is unpacked."""

    def __init__(self, column: Any, dtype: torch.dtype) -> None:
        self.column, self.dtype = column, dtype


def narrowed(values: list[Any], name: str) -> Any:
    """Return `packed` values; tables of `NARROW` in its dtypes, 6 instead of 24 bytes per token. Ranks get int64."""
    if name not in NARROW or not of_one_kind(values) or values[0].dtype not in (torch.int64, NARROW[name]):
        return packed(values)
    return Narrow(packed([value.to(NARROW[name]) for value in values]), torch.int64)


def packed(values: list[Any]) -> Any:
    """Concatenate small tensors of one dtype; return anything else unchanged."""
    if not of_one_kind(values) or sum(value.nbytes for value in values) > TOGETHER_BYTES * len(values):
        return values
    return Together(flat(values), [tuple(value.shape) for value in values])


def flat(values: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate all numbers of tensors."""
    return torch.cat(values if {*map(torch.Tensor.dim, values)} == {1} else [value.reshape(-1) for value in values])


def of_one_kind(values: list[Any]) -> bool:
    """Return whether all values are plain CPU tensors of one dtype."""
    return (
        set(map(type, values)) == {torch.Tensor}
        and len({(v.dtype, v.is_cpu) for v in values}) == 1
        and values[0].is_cpu
    )


def unpacked(column: Any) -> list[Any]:
    """Invert `packed` and `narrowed`."""
    if isinstance(column, Narrow):
        return [value.to(column.dtype) for value in unpacked(column.column)]
    if not isinstance(column, Together):
        return column
    shapes = column.shapes
    parts = column.whole_N.split([math.prod(shape) for shape in shapes])
    if all(len(shape) == 1 for shape in shapes):
        return list(parts)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def micro_batches(parts: Sequence[Sequence[Experience]], padding: int, memory: Memory) -> list[Experience]:
    """Merge the rollouts of each part into one experience, as the host's `concat_experiences` does.

    Tables of fields that were never read have the dtypes in `NARROW`. The host makes 25 tensors for each part, which
    takes 0.5 s for 1,024 prompts of 16 rollouts.
    """
    order, sizes = [rollout for part in parts for rollout in part], [len(part) for part in parts]
    received = all("group" in vars(rollout) for rollout in order)
    unread = set(FIELDS).difference(*map(vars, order)) if received else set()
    groups = Groups(order) if unread else None

    def column(name: str) -> Any:
        pad = padding if name == "sequences" else 0
        made = unread_column(groups, sizes, name, memory, pad) if groups and name in unread else None
        if made is not None:
            return made
        values = [getattr(rollout, name) for rollout in order]
        if name != "info":
            return joined(values, sizes, memory, pad)
        info = even_columns(values, lambda of_key: joined(of_key, sizes, memory))
        return joined(info, sizes, memory) if isinstance(info, list) else rows_of(info, lambda column: column)

    columns = {name: column(name) for name in NAMES}
    rows = zip(*columns.values(), strict=True)
    return [Experience(**dict(zip(columns, row, strict=True))) for row in rows]


class Groups:
    """The groups of received rollouts; `rows_of_group` has the places of each group's rollouts in the batch."""

    def __init__(self, order: Sequence[Any]) -> None:
        found = {id(rollout.group): rollout.group for rollout in order}
        self.groups = list(found.values())
        sizes = [len(group.kept) for group in self.groups]
        starts = dict(zip(found, accumulate(sizes, initial=0), strict=False))
        self.index = [starts[id(rollout.group)] + rollout.place for rollout in order]
        self._straight = self.index == list(range(sum(sizes)))
        rows_B = np.argsort(self.index, kind="stable")
        self.rows_of_group = np.split(rows_B, np.searchsorted(np.array(self.index)[rows_B], np.cumsum(sizes)[:-1]))

    def values(self, of_group: Callable[[Any], Iterable[Any]]) -> list[Any]:
        """Return the value of each rollout in the order of the batch; `of_group` returns the values of a group."""
        values = list(chain.from_iterable(map(of_group, self.groups)))
        return values if self._straight else [values[i] for i in self.index]

    def column(self, name: str) -> list[Any]:
        """Return a field of all rollouts as plain values."""
        return self.values(lambda group: group.column(name))


def unread_column(groups: Groups, sizes: list[int], name: str, memory: Memory, padding: int) -> Any:
    """Return the micro-batches' column of a field that was never read, `name`; None if `joined` must make it."""
    if name in TABLES:
        return unread_tables(groups, sizes, name, memory, padding)
    values = groups.column(name)
    if name in LISTS:
        return list(runs(values, sizes))
    if name != "info":
        return numbers(values, sizes)
    figures = even_columns(values, lambda of_key: numbers(of_key, sizes))
    if isinstance(figures, list) or any(column is None for column in figures.values()):
        return None
    return rows_of(figures, lambda column: column)


def numbers(values: list[Any], sizes: list[int]) -> list[Any] | None:
    """Return a tensor for each run of `sizes` numbers; Nones if all are None; None for mixed or other types."""
    if all(value is None for value in values):
        return [None] * len(sizes)
    if len(set(map(type, values))) > 1 or type(values[0]) not in DTYPES:
        return None
    whole_B = torch.from_numpy(np.array(values))  # `torch.tensor` of a list takes three times as long
    return list(whole_B.to(DTYPES[type(values[0])]).split(sizes))


def unread_tables(
    groups: Groups, sizes: list[int], name: str, memory: Memory, padding: int
) -> list[torch.Tensor] | None:
    """Return the micro-batches' tables, copied straight from the groups' arrays; None if `joined` must make them."""
    widths = groups.values(lambda group: group.widths[name])
    if min(widths, default=0) <= 0:
        return None
    longest = [max(run) for run in runs(widths, sizes)]
    areas = [size * width for size, width in zip(sizes, longest, strict=True)]
    whole_N = memory.empty(sum(areas), NARROW.get(name, torch.float32))
    out_N, widths_B, table_B = whole_N.numpy(), np.array(widths), np.repeat(longest, sizes)
    places_B = np.cumsum(table_B) - table_B
    if name in ("attention_mask", "action_mask"):
        spans = groups.column(name)
        starts_S, ends_S = np.array([pair for one in spans for pair in one], np.int64).reshape(-1, 2).T
        before_S = np.repeat(places_B, [len(one) for one in spans])
        whole_N.zero_()
        set_ones(out_N, starts_S + before_S, ends_S + before_S)
    else:
        starts_B = np.array(groups.values(lambda group: group.starts[name][:-1]))
        for group, rows in zip(groups.groups, groups.rows_of_group, strict=True):
            copy_rows(group.arrays[name], rows, starts_B, widths_B, places_B, table_B, padding, out_N)
    return [part.view(size, -1) for part, size in zip(whole_N.split(areas), sizes, strict=True)]


@compiled
def set_ones(out_N: Any, starts_S: Any, ends_S: Any) -> None:
    """Set `out_N` to 1 from each start to its end."""
    for s in range(starts_S.size):
        out_N[starts_S[s] : ends_S[s]] = 1


@compiled
def copy_rows(
    source_N: Any, rows: Any, starts_B: Any, widths_B: Any, places_B: Any, table_B: Any, padding: int, out_N: Any
) -> None:
    """Copy `rows` from an array into tables, and pad each row on the right."""
    for b in rows:
        start, place, width = starts_B[b], places_B[b], widths_B[b]
        for t in range(width):
            out_N[place + t] = source_N[start + t]
        for t in range(width, table_B[b]):
            out_N[place + t] = padding


def joined(values: list[Any], sizes: list[int], memory: Memory, padding: int = 0) -> list[Any]:
    """Merge runs of consecutive values, of the lengths `sizes`, as the host's `_merge_item` does."""
    if of_one_kind(values):
        if {*map(torch.Tensor.dim, values)} == {*map(torch.Tensor.numel, values)} == {1}:
            return list(torch.cat(values).split(sizes))
        if values[0].dtype != torch.bfloat16 and all(v.dim() == 2 and len(v) == 1 and v.numel() for v in values):
            return tables(values, sizes, memory, padding)
    elif all(v is None for v in values):
        return [None] * len(sizes)
    elif all(type(v) is list for v in values):
        return [list(chain.from_iterable(run)) for run in runs(values, sizes)]
    return [Experience._merge_item(list(run), padding) for run in runs(values, sizes)]


def tables(rows_B: list[torch.Tensor], sizes: list[int], memory: Memory, padding: int) -> list[torch.Tensor]:
    """Stack rows (1, T) into tables of `sizes` rows, each padded on the right to its longest row."""
    widths = [row.size(1) for row in rows_B]
    longest = [max(run) for run in runs(widths, sizes)]
    areas = [size * width for size, width in zip(sizes, longest, strict=True)]
    whole_N = memory.empty(sum(areas), rows_B[0].dtype)
    made = [part.view(size, -1) for part, size in zip(whole_N.split(areas), sizes, strict=True)]
    item, place = rows_B[0].element_size(), whole_N.data_ptr()
    if padding:
        whole_N.fill_(padding)
    for width, row, table_width in zip(widths, rows_B, np.repeat(longest, sizes).tolist(), strict=True):
        row = row.contiguous()
        memmove(place, row.data_ptr(), width * item)
        if width < table_width and not padding:
            memset(place + width * item, 0, (table_width - width) * item)
        place += table_width * item
    return made


def runs(values: Iterable[Any], sizes: Sequence[int]) -> Iterable[list[Any]]:
    """Split values into consecutive lists of the given sizes."""
    source = iter(values)
    for size in sizes:
        yield [next(source) for _ in range(size)]
