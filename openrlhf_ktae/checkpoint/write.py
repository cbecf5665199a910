"""Write a checkpoint: stage it, flush it to disk, rename it, and only then let `latest` name it."""

import itertools
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from openrlhf_ktae.checkpoint.files import digests, files_below, read_text, sync, sync_below, write_text
from openrlhf_ktae.checkpoint.folder import (
    DELETING,
    LATEST,
    MANIFEST,
    REPLACED,
    STAGING,
    SUPERSEDED,
    Checkpoint,
    Manifest,
    folders,
    is_superseded,
    listed,
    superseded_spans,
)

SEEN_SECONDS = 30.0  # for a network file system to show another node's files
POLL_SECONDS = 0.5
logger = logging.getLogger(__name__)


class FilesNotVisible(OSError):
    """The process that commits does not see files that ranks wrote; the message names their nodes."""


def staging(root: str | Path, tag: str) -> Path:
    """Return the staging folder of the checkpoint `tag`."""
    return Path(root) / f"{STAGING}{tag}"


def begin(root: str | Path, tag: str) -> Path:
    """Return an empty staging folder, after cleaning up leftovers of an earlier run."""
    recover(Path(root))
    folder = staging(root, tag)
    folder.mkdir(parents=True)
    return folder


def recover(root: Path) -> None:
    """Clean up after a run that died while writing or deleting: restore a replaced checkpoint, delete leftovers."""
    restore_replaced(root)
    for path in (*root.glob(f"{REPLACED}*"), *root.glob(f"{STAGING}*"), *root.glob(f"{DELETING}*")):
        delete_or_rename(path)


def restore_replaced(root: Path) -> None:
    """Restore a checkpoint whose replacement never finished."""
    for path in root.glob(f"{REPLACED}*"):
        name = root / path.name.removeprefix(REPLACED)
        if not os.path.lexists(name):
            with suppress(OSError):
                os.rename(path, name)


def commit(
    root: str | Path, tag: str, step: int, about: Mapping[str, Any], seen: Iterable[tuple[str, Mapping[str, int]]] = ()
) -> Checkpoint:
    """Turn the staged parts of `tag` into a checkpoint, and let `latest` name it.

    Args:
        root: the folder of all checkpoints (`--ckpt.path`).
        tag: name of the checkpoint.
        step: the last training step it includes.
        about: `config`, `data` and `versions` of the run.
        seen: for each rank its node, and path -> bytes of the staged files it sees.

    Raises:
        FilesNotVisible: ranks wrote files that this process does not see.

    A crash at any point leaves earlier checkpoints intact, and one of them in `latest`.
    """
    root = Path(root)
    folder, target = staging(root, tag), root / tag
    wait_until_visible(folder, seen)
    content = digests(files_below(folder))
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "digest": value}
        for path, value in content.items()
    }
    about = {**about, "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    manifest = Manifest(tag, step, next_sequence(root), files, about)
    write_text(folder / MANIFEST, manifest.to_json())
    sync_below(folder)
    aside = root / f"{REPLACED}{tag}"
    if os.path.lexists(target):  # the run went back to an earlier step and reached this one again
        os.rename(target, aside)
    os.rename(folder, target)
    sync(root)
    write_text(root / LATEST, tag)
    if os.path.lexists(aside):
        delete_or_rename(aside)
    return Checkpoint(target, manifest)


def wait_until_visible(folder: Path, seen: Iterable[tuple[str, Mapping[str, int]]]) -> None:
    """Wait until this process sees every file below `folder` that a rank sees, at its full size.

    The rank that wrote a file knows its size. Others may see an older, smaller size for a while, so the largest counts.
    Raises FilesNotVisible if files are still missing after `SEEN_SECONDS`; without a shared file system, every node has
    its own folder.
    """
    sizes: dict[str, int] = {}
    nodes: dict[str, set[str]] = {}
    for node, files in seen:
        for name, size in files.items():
            sizes[name] = max(size, sizes.get(name, 0))
            nodes.setdefault(name, set()).add(node)
    end = time.monotonic() + SEEN_SECONDS
    while missing := [name for name, size in sizes.items() if _size(folder / name) != size]:
        if time.monotonic() > end:
            of_nodes = ", ".join(sorted(set().union(*(nodes[name] for name in missing))))
            raise FilesNotVisible(
                f"the trainer does not see {len(missing)} of {len(sizes)} files that ranks on {of_nodes} see, "
                f"such as {missing[0]}; --ckpt.path {folder.parent} must be on a file system that all nodes share"
            )
        time.sleep(POLL_SECONDS)


def _size(path: Path) -> int:
    """Return the size of a file in bytes; -1 if it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def next_sequence(root: Path) -> int:
    """Return a sequence number above that of every checkpoint in `root`."""
    return 1 + max((one.manifest.sequence for one in listed(root)[0]), default=0)


def supersede_all(root: str | Path) -> None:
    """Mark all checkpoints in `root` as superseded, so that a restart of this run does not resume from them."""
    root = Path(root)
    if folders(root):
        write_text(root / SUPERSEDED, str(next_sequence(root)))


def supersede_after(root: str | Path, sequence: int) -> None:
    """Mark the checkpoints after number `sequence` as superseded; the run resumes from that number."""
    root = Path(root)
    end = next_sequence(root)
    left = [span for span in superseded_spans(root) if span[1] <= sequence]
    if end > sequence + 1:
        left.append((sequence, end))
    if left != superseded_spans(root):
        write_text(root / SUPERSEDED, "".join(f"{after} {before}\n" for after, before in left))


def abandon(root: str | Path, tag: str) -> None:
    """Delete the staging folder of `tag`."""
    folder = staging(root, tag)
    if folder.exists():
        delete_or_rename(folder)


def rotate(root: str | Path, keep: int, max_bytes: float) -> list[str]:
    """Delete the oldest checkpoints until at most `keep`, and at most `max_bytes`, remain; return their names.

    Never deletes the newest checkpoint, the newest best one, or the one in `latest`. Best checkpoints do not count for
    `keep`; older ones of this run are deleted. Superseded checkpoints are deleted first, but best ones stay. An export
    is deleted with its checkpoint. A checkpoint that cannot be deleted stays, under another name.
    """
    root = Path(root)
    found, left = listed(root)[0], superseded_spans(root)
    regular = sorted((one for one in found if not one.is_best), key=lambda one: is_superseded(one, left))
    best = [one for one in found if one.is_best and not is_superseded(one, left)]
    protected = {found[0].path, *(one.path for one in best[:1])} if found else set()
    named = read_latest(root)
    if named is not None:
        protected.add(named)
    going = [one for one in best[1:] if one.path not in protected]
    going += [one for one in regular[max(keep, 1) :] if one.path not in protected]
    staying = [one for one in found if one not in going]
    total = sum(one.manifest.bytes for one in staying)
    for one in reversed(staying):
        if total > max_bytes and one.path not in protected and not one.is_best:
            going.append(one)
            total -= one.manifest.bytes
    return [one.path.name for one in going if delete(one.path)]


def read_latest(root: Path) -> Path | None:
    """Return the checkpoint that `latest` names, if both exist."""
    try:
        name = read_text(root / LATEST).strip()
    except (OSError, UnicodeDecodeError):
        return None
    return next((path for path in folders(root) if path.name == name), None)


def delete(path: Path) -> bool:
    """Rename a checkpoint, then delete it, so that `recover` finds the leftovers of a crash.

    Returns False if it cannot be renamed; then nothing is deleted.
    """
    going = _deleting_name(path)
    try:
        os.rename(path, going)
    except OSError as error:
        logger.warning(f"{path} cannot be deleted: {error}")
        return False
    delete_or_rename(going)
    return True


def undeleted(root: Path) -> list[Path]:
    """Return checkpoints that should have been deleted but could not be."""
    return sorted(root.glob(f"{DELETING}*"))


def delete_or_rename(path: Path) -> None:
    """Delete a folder; if that fails, rename it out of the way."""
    try:
        remove(path)
    except OSError as error:
        logger.warning(f"{path} cannot be deleted: {error}")
        if not path.name.startswith(DELETING):
            with suppress(OSError):
                os.rename(path, _deleting_name(path))


def _deleting_name(path: Path) -> Path:
    name = f"{DELETING}{path.name.removeprefix(STAGING).removeprefix(REPLACED)}"
    names = (path.with_name(name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(one for one in names if not os.path.lexists(one))


def remove(path: Path) -> None:
    """Delete a folder, its manifest first, so that a leftover is never mistaken for a checkpoint. A link is unlinked.

    Raises OSError if part of it could not be deleted.
    """
    if path.is_symlink():
        path.unlink()
        return
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
