"""Prompt files in a folder, and columns of Hub data sets in the local cache."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from openrlhf_ktae.data import hub
from openrlhf_ktae.data.prompt_files import CHECKED_BYTES, TABLE_SUFFIXES, Table, UnreadableDataset, look

PACKED = (".gz", ".zip", ".zst", ".xz", ".bz2", ".lz4", ".txt", ".tar", ".7z")  # only `datasets` reads these
# Metadata files of `datasets` and the Hub.
NOTES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
UNCOUNTED = sys.maxsize
MANY_FILES = 200


def look_into(folder: Path, split: str) -> list[tuple[str, Table]]:
    """Return name and properties of each prompt file; empty if the folder has only packed files.

    Raises UnreadableDataset if there is no file with rows, or one cannot be read.
    """
    files = data_files(folder)
    if not files:
        if any(path.suffix in PACKED for path in folder.rglob("*")):
            return []
        raise UnreadableDataset(f"has no file with rows ({', '.join(TABLE_SUFFIXES)}); give a folder that has one")
    found: list[tuple[str, Table]] = []
    read = 0
    for path in of_split(folder, files, split):
        read += path.stat().st_size
        table = look(str(path)) if read <= CHECKED_BYTES or not found else None
        if table is None:  # too large to check; assume that the rest is like the first
            found.append((str(path), Table(UNCOUNTED, found[0][1].columns, kinds=found[0][1].kinds)))
            break
        found.append((str(path), table))
    return found


def data_files(folder: Path) -> list[Path]:
    """Return the files that `datasets` would read: those of the most common type, without metadata and hidden files."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in TABLE_SUFFIXES and path.name not in NOTES and path.is_file()
        if not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    ]
    kinds = Counter(_kind(path) for path in files)
    return [path for path in files if _kind(path) == kinds.most_common(1)[0][0]]


def _kind(path: Path) -> str:
    return path.suffix.replace(".jsonl", ".json")


def of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """Return the files whose path contains the split's name; all of `files` if none does."""
    return [path for path in files if split in str(path.relative_to(folder)).lower()] or files


def cached_columns(name: str) -> set[str]:
    """Return all columns of a Hub data set in the local cache; empty if they are unknown."""
    columns: set[str] = set()
    for folder in hub.cached_folders(name, "dataset"):
        files = data_files(folder) if folder.is_dir() else []
        for path in files[:MANY_FILES]:
            try:
                columns.update(_heads(path))
            except Exception:  # damaged: let the host's loader download it again
                return set()
        if len(files) > MANY_FILES:
            return set()
    return columns


def _heads(path: Path) -> Iterator[str]:
    """Yield the columns of one file, reading only its header."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        yield from parquet.read_schema(path).names
    elif path.suffix == ".arrow":
        from pyarrow import ipc, memory_map

        with memory_map(str(path)) as source:
            yield from ipc.open_stream(source).schema.names
    else:
        with path.open(encoding="utf-8") as file:
            yield from json.loads(file.readline())
