"""Atomic file writes, and digests to detect damage."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = 2**20
READ_IN_FULL = 64 * BLOCK  # of larger files 64 evenly spaced blocks are read: checkpoints can have 100s of GB
DIGEST_BYTES = 16
THREADS = 8
MOST_TEXT = 64 * BLOCK  # a manifest names every file of a checkpoint


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, sorted by path."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path


def digest(path: Path) -> str:
    """Return a digest of a file's size and content; above 64 MiB, of 64 evenly spaced blocks."""
    size = path.stat().st_size
    total = hashlib.blake2b(str(size).encode(), digest_size=DIGEST_BYTES)
    with path.open("rb") as file:
        for start in _starts(size):
            file.seek(start)
            total.update(file.read(BLOCK))
    return total.hexdigest()


def _starts(size: int) -> Iterable[int]:
    if size <= READ_IN_FULL:
        return range(0, size, BLOCK)
    blocks = READ_IN_FULL // BLOCK
    return [i * (size - BLOCK) // (blocks - 1) for i in range(blocks)]


def digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the digest of each file, computed in threads: hashing releases the GIL."""
    paths = list(paths)
    with ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(paths, threads.map(digest, paths), strict=True))


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_below(folder: Path) -> None:
    """Flush everything below a folder to disk, the folder last."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """Read a small text file; never blocks on a pipe or device.

    Raises:
        OSError: it is missing, unreadable, not a regular file, or larger than `most` bytes.
        UnicodeDecodeError: it is not UTF-8.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(f"{path.name} is not a regular file")
        if state.st_size > most:
            raise OSError(f"{path.name} has {state.st_size} bytes, more than {most}")
        return file.read().decode("utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically (`write_bytes`)."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file atomically: readers see either the old content or the new."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync(path.parent)
