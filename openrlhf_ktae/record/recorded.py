"""Read and validate the recorded rollouts that `rollouts` wrote."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.base.text import short
from openrlhf_ktae.record.rollouts import ADDED, COLUMNS, DIRECTORY, METADATA_KEY, NEEDED, arrow_type, schema_of

MAYBE_NULL = ("label", "score", "reward", *ADDED)
DELETE = "delete the file, or give only the other steps"


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


ABOUT: dict[str, Callable[[Any], bool]] = {  # checks of the metadata that computations use
    "step": _is_id,
    "special_ids": lambda value: isinstance(value, list) and all(map(_is_id, value)),
    "ktae": lambda value: value is None or isinstance(value, dict),
    "credit": lambda value: value is None or isinstance(value, dict),
}


class BadRecord(Refusal):
    """Recorded rollouts are missing or invalid; the message names the file and the way out."""


@dataclass(frozen=True)
class RecordedGroup:
    """The rollouts of one prompt in one step."""

    step: int
    group: int
    rows: list[dict[str, Any]]
    about: dict[str, Any]

    @property
    def prompt(self) -> str:
        """The prompt that all rollouts of the group answer."""
        return self.rows[0]["prompt"]


def find(paths: Iterable[str | Path]) -> list[Path]:
    """Return the parquet files of run directories, folders and files, in step order, without duplicates.

    Raises BadRecord if a path does not exist or contains no recorded step.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            found.append(path)
            continue
        if not path.is_dir():
            raise BadRecord(f"{path}: no such file or folder")
        files = sorted(path.glob("*.parquet")) or sorted((path / DIRECTORY).glob("*.parquet"))
        if not files:
            raise BadRecord(f"{path}: has no recorded rollouts; train with --ktae.record_rollouts N (every N steps)")
        found += files
    return list({path.resolve(): path for path in found}.values())  # duplicates would narrow confidence intervals


def read_groups(paths: Iterable[Path]) -> Iterator[RecordedGroup]:
    """Yield the groups of recorded steps, one file in memory at a time.

    Raises:
        BadRecord: a file is truncated, not a record, lacks a column, or used a different tokenizer from the first file.
    """
    tokenizer = first = None
    for path in paths:
        rows, about = _read(path)
        if tokenizer is None:
            tokenizer, first = about.get("tokenizer"), path
        elif about.get("tokenizer") != tokenizer:
            raise BadRecord(f"{path}: was recorded with a different tokenizer from {first}; give them one at a time")
        groups: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault(row["group"], []).append(row)
        for group, members in groups.items():
            yield RecordedGroup(about.get("step", members[0]["step"]), group, members, about)


def number_of_rollouts(path: Path) -> int:
    """Return the number of rows of a parquet file, from its metadata."""
    from pyarrow import parquet

    return parquet.read_metadata(path).num_rows


def _read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise BadRecord(f"{path}: not a complete parquet file ({short(error)}); delete it or record it again") from None
    for name in ADDED:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), arrow_type(pa, COLUMNS[name])))
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise BadRecord(f"{path}: has no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    about = None
    with suppress(KeyError, ValueError):
        about = parse_json((table.schema.metadata or {})[METADATA_KEY])
    if not isinstance(about, dict):
        raise BadRecord(f"{path}: has no metadata openrlhf_ktae; it was not written by --ktae.record_rollouts")
    for name, fits in ABOUT.items():
        if name in about and not fits(about[name]):
            raise BadRecord(f"{path}: metadata: {name} is {short(about[name])}; {DELETE}")
    try:
        more = [name for name in NEEDED if name in table.column_names]
        table = table.select([*COLUMNS, *more]).cast(schema_of(pa, more))
        rows = table.to_pylist()
    except (ArrowException, ValueError) as error:
        raise BadRecord(f"{path}: a column has the wrong type ({short(error)})") from None
    if not rows:
        raise BadRecord(f"{path}: contains no rollouts")
    for name, kind in {**COLUMNS, **{name: NEEDED[name] for name in more}}.items():
        wrong = _wrong_values(table[name], name, kind)
        if wrong:
            raise BadRecord(f"{path}: {name} holds {wrong}; {DELETE}")
    for row in rows:
        lists = [name for name, kind in COLUMNS.items() if kind.startswith("list") and row[name] is not None]
        lengths = {name: len(row[name]) for name in (*lists, *more)}
        del lengths["prompt_ids"]
        if len(set(lengths.values())) > 1:
            raise BadRecord(f"{path}: group {row['group']}, rollout {row['rollout']}: lengths differ ({lengths})")
    return rows, about


def _wrong_values(column: Any, name: str, kind: str) -> str:
    """Describe a value that the recorder never writes into this column; empty if there is none."""
    from pyarrow import compute

    flat = compute.list_flatten(column) if kind.startswith("list") else column
    if name not in MAYBE_NULL and (column.null_count or flat.null_count):
        return "a null"
    if name in ("score", "values"):  # NaN is an unknown verdict, or a place without a value
        return "an infinite number" if compute.any(compute.is_inf(flat)).as_py() else ""
    if kind == "list<float>" and not compute.all(compute.is_finite(flat), min_count=0).as_py():
        return "a number that is not finite"
    if kind == "list<int32>" and compute.any(compute.less(flat, 0)).as_py():
        return "an id below 0"
    return ""
