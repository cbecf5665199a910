"""Inspect the prompt files of a run before anything loads: columns, row count and unusable rows.

This finds errors on which the loader would fail later, in another process and with an unhelpful traceback: columns that
change their type, rows without a prompt, truncated files.
"""

import csv
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.base.text import short

TEXT_SUFFIXES = (".json", ".jsonl", ".csv")
TABLE_SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".arrow")
CHECKED_BYTES = 256 * 2**20  # in a larger text file, rows past this are counted but not parsed
UNPARSED = object()  # stands for such a row


class UnreadableDataset(ValueError):
    """A data set cannot be read; the message gives the reason."""


@dataclass(frozen=True)
class Table:
    """Properties of a prompt file that are checked before a run starts."""

    rows: int
    columns: tuple[str, ...]
    gaps: Mapping[str, str] = field(default_factory=dict)
    """Column -> description of its first row, or the number of its rows, without a usable value."""
    mixed: Mapping[str, str] = field(default_factory=dict)
    """Column -> description of the first row whose type differs from that of earlier rows."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Column -> type of its values."""


def is_local(name: str) -> bool:
    """Return whether `name` refers to a local file or folder rather than a data set on the Hub."""
    return Path(name).suffix in (*TABLE_SUFFIXES, ".py") or os.path.exists(name) or name.startswith((".", "/", "~"))


def look(name: str) -> Table | None:
    """Return the properties of a local file; None for a folder (`prompt_folders` inspects those).

    Raises UnreadableDataset if it is missing, an empty folder or a loading script, or does not match its suffix.
    """
    path = Path(name)
    if path.suffix == ".py" or os.path.isfile(path / f"{path.name}.py"):
        raise UnreadableDataset("is a loading script; data set code is never run; save its rows as .jsonl")
    if not os.path.exists(path):
        raise UnreadableDataset("no such file or folder")
    if path.is_dir():
        if not any(one.is_file() for one in path.rglob("*")):
            raise UnreadableDataset("is an empty folder; give a file with prompts")
        return None
    readers = {".json": _json, ".jsonl": _json, ".csv": _csv, ".parquet": _parquet, ".arrow": _arrow}
    if path.suffix not in readers:
        raise UnreadableDataset(f"unknown suffix; use one of {', '.join(TABLE_SUFFIXES)}")
    state = path.stat()
    return _read(path, readers[path.suffix], state.st_mtime_ns, state.st_size)


@cache
def _read(path: Path, reader: Callable[[Path], Table], mtime_ns: int, size: int) -> Table:
    """Read an unchanged file only once per process, because the checks and the memory plan both need it."""
    try:
        return reader(path)
    except UnreadableDataset:
        raise
    except Exception as error:  # each format's library raises its own error types
        raise UnreadableDataset(f"not a {path.suffix} file ({short(error)})") from None


def _json(path: Path) -> Table:
    return _table(_json_rows(path))


def _json_rows(path: Path, most: float = CHECKED_BYTES) -> Iterator[tuple[int, Any]]:
    """Yield number and content of each row, or `UNPARSED` past the first `most` characters."""
    with path.open(encoding="utf-8") as file:
        start = file.read(1)
        file.seek(0)
        if start == "\ufeff":
            raise UnreadableDataset("begins with a byte order mark; save it as UTF-8 without one")
        if start == "[":
            yield from ((i, _object(i, row)) for i, row in enumerate(parse_json(file.read(), exact=True), 1))
            return
        read = 0
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            read += len(line)
            try:
                row = parse_json(line, exact=True) if read <= most else UNPARSED
            except ValueError as error:
                raise UnreadableDataset(f"line {number} is not JSON ({short(error)}); repair or remove it") from None
            yield number, row if row is UNPARSED else _object(number, row)


def _object(number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UnreadableDataset(f"row {number} is not a JSON object; write one with a prompt and its right answer")
    return row


def _table(rows: Iterable[tuple[int, Any]]) -> Table:
    """Summarise `rows` (number in the file, content)."""
    kinds: dict[str, str] = {}
    gaps: dict[str, str] = {}
    mixed: dict[str, str] = {}
    count = first = 0
    for number, row in rows:
        count += 1
        if row is UNPARSED:
            continue
        if not first:
            first = number
        for name in [*kinds, *(name for name in row if name not in kinds)]:
            kind = _kind(row.get(name))
            if kind in ("nothing", "an empty text"):
                gaps.setdefault(name, f"row {number} has {kind}")
            if name not in kinds and number > first:
                gaps.setdefault(name, f"row {first} has nothing")
            known = kinds.get(name, "nothing")
            if known == "nothing":
                kinds[name] = kind
            elif kind != "nothing" and known.replace("an empty", "a") != kind.replace("an empty", "a"):
                mixed.setdefault(name, f"row {number} has {kind} where earlier rows have {known}")
    return Table(count, tuple(kinds), gaps, mixed, kinds)


def _kind(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "nothing"  # NaN is how pandas writes an empty cell
    if isinstance(value, str):
        return "a text" if value.strip() else "an empty text"
    names = ((bool, "true or false"), ((int, float), "a number"), (list, "a list"), (dict, "an object"))
    return next(name for types, name in names if isinstance(value, types))


def _csv(path: Path) -> Table:
    columns: list[str] = []
    table = _table(_csv_rows(path, columns))
    return Table(table.rows, tuple(columns), table.gaps, {}, table.kinds)


def _csv_rows(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield number and cells of each row; the names in the first line go to `columns`."""
    csv.field_size_limit(CHECKED_BYTES)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        columns += next(reader, [])
        if len(set(columns)) != len(columns):
            raise UnreadableDataset("two columns have the same name; rename one")
        for number, cells in enumerate(reader, 2):
            if not cells:
                continue
            if len(cells) != len(columns):
                raise UnreadableDataset(f"row {number} has {len(cells)} cells but the header has {len(columns)}")
            yield number, dict(zip(columns, cells, strict=True))


def text_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .json, .jsonl or .csv file without type inference.

    A date stays text, an integer keeps all its digits, and every cell of a .csv file is text. Raises
    UnreadableDataset if the content does not match the suffix.
    """
    rows = _csv_rows(path, []) if path.suffix == ".csv" else _json_rows(path, math.inf)
    try:
        yield from (row for _, row in rows)
    except UnreadableDataset:
        raise
    except (csv.Error, ValueError) as error:
        raise UnreadableDataset(f"not a {path.suffix} file ({short(error)})") from None


def _parquet(path: Path) -> Table:
    from pyarrow import parquet

    return _arrow_table(parquet.read_table(path))


def _arrow(path: Path) -> Table:
    from pyarrow import ipc, memory_map

    with memory_map(str(path)) as source:
        return _arrow_table(ipc.open_stream(source).read_all())


def _arrow_table(table: Any) -> Table:
    """Summarise an Arrow table, whose columns cannot mix types."""
    import pyarrow as pa

    gaps, kinds = {}, {}
    for name in table.column_names:
        column = table.column(name)
        if empty := column.null_count + _not_finite(pa, column):
            gaps[name] = f"{empty} rows have nothing"
        elif (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) and (
            empty := sum(not (value.as_py() or "").strip() for value in column)
        ):
            gaps[name] = f"{empty} rows have an empty text"
        kinds[name] = _arrow_kind(pa, column.type)
    return Table(table.num_rows, tuple(table.column_names), gaps, {}, kinds)


def _not_finite(pa: Any, column: Any) -> int:
    from pyarrow import compute

    return (
        compute.sum(compute.invert(compute.is_finite(column))).as_py() or 0 if pa.types.is_floating(column.type) else 0
    )


def _arrow_kind(pa: Any, kind: Any) -> str:
    types = pa.types
    if types.is_string(kind) or types.is_large_string(kind):
        return "a text"
    if types.is_integer(kind) or types.is_floating(kind):
        return "a number"
    if types.is_boolean(kind):
        return "true or false"
    return "a list" if types.is_list(kind) or types.is_large_list(kind) else str(kind)
