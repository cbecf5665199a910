"""Look into the prompt files of a run without loading them: columns and number of rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow")


class UnreadableDataset(ValueError):
    """The file is missing or is not what its suffix says."""


@dataclass(frozen=True)
class Table:
    """What a run needs to know of a prompt file before it starts."""

    rows: int
    columns: tuple[str, ...]


def is_local(name: str) -> bool:
    """Whether `name` is meant as a file or folder here rather than as a data set of the Hub."""
    return Path(name).suffix in TABLE_SUFFIXES or Path(name).exists() or name.startswith((".", "/", "~"))


def look(name: str) -> Table | None:
    """Return rows and columns of a local file; None for a folder, whose layout the host knows.

    Raises:
        UnreadableDataset: no such file, or its text is not of the form that its suffix names.
    """
    path = Path(name)
    if not path.exists():
        raise UnreadableDataset("no such file or folder")
    if path.is_dir():
        return None
    readers = {".json": _json, ".jsonl": _json, ".csv": _csv, ".parquet": _parquet, ".arrow": _arrow}
    if path.suffix not in readers:
        raise UnreadableDataset(f"the suffix is none of {', '.join(TABLE_SUFFIXES)}")
    state = path.stat()
    return _read(path, readers[path.suffix], state.st_mtime_ns, state.st_size)


@cache
def _read(path: Path, reader: Callable[[Path], Table], mtime_ns: int, size: int) -> Table:
    """Read a file once in a process, as long as it stays as it is: the refusals and the plan both ask."""
    try:
        return reader(path)
    except UnreadableDataset:
        raise
    except Exception as error:  # each format's library has its own errors; all mean the same here
        raise UnreadableDataset(f"not a {path.suffix} file ({' '.join(str(error).split())[:120]})") from None


def _json(path: Path) -> Table:
    with path.open(encoding="utf-8") as file:
        start = file.read(1)
        file.seek(0)
        if start == "[":
            rows = json.load(file)
        else:
            lines = [line for line in file if line.strip()]
            rows = [json.loads(line) for line in lines[:1]] + lines[1:]
    first = rows[0] if rows else {}
    if not isinstance(first, dict):
        raise UnreadableDataset("its rows are not JSON objects")
    return Table(len(rows), tuple(first))


def _csv(path: Path) -> Table:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        columns = next(reader, [])
        return Table(sum(1 for _ in reader), tuple(columns))


def _parquet(path: Path) -> Table:
    from pyarrow import parquet

    metadata = parquet.read_metadata(path)
    return Table(metadata.num_rows, tuple(metadata.schema.to_arrow_schema().names))


def _arrow(path: Path) -> Table:
    from pyarrow import ipc, memory_map

    with memory_map(str(path)) as source:
        table = ipc.open_stream(source).read_all()
    return Table(table.num_rows, tuple(table.column_names))
