"""Writing a checkpoint: into a staging folder, onto the disk, renamed, and only then named by `latest`."""

from __future__ import annotations

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
    ANEW,
    ASIDE,
    GOING,
    LATEST,
    MANIFEST,
    STAGING,
    Checkpoint,
    Manifest,
    folders,
    is_left,
    left_behind,
    listed,
)

SEEN_SECONDS = 30.0  # for a network file system to show what another node wrote
POLL_SECONDS = 0.5
logger = logging.getLogger(__name__)


class Unseen(OSError):
    """What ranks wrote is not there for the process that commits; the message says whose it is."""


def staging(root: str | Path, tag: str) -> Path:
    """Return the folder into which the parts of the checkpoint `tag` are written."""
    return Path(root) / f"{STAGING}{tag}"


def begin(root: str | Path, tag: str) -> Path:
    """Return an empty staging folder; what an earlier run left behind is put right first."""
    recover(Path(root))
    folder = staging(root, tag)
    folder.mkdir(parents=True)
    return folder


def recover(root: Path) -> None:
    """Put right what a run left that died while it wrote or deleted: a replaced checkpoint comes back, pieces go."""
    put_back(root)
    for path in (*root.glob(f"{ASIDE}*"), *root.glob(f"{STAGING}*"), *root.glob(f"{GOING}*")):
        put_away(path)


def put_back(root: Path) -> None:
    """Give a checkpoint its name again that was set aside for another of the same step, which did not get so far."""
    for path in root.glob(f"{ASIDE}*"):
        name = root / path.name.removeprefix(ASIDE)
        if not os.path.lexists(name):
            with suppress(OSError):
                os.rename(path, name)


def commit(
    root: str | Path,
    tag: str,
    step: int,
    about: Mapping[str, Any],
    seen: Iterable[tuple[str, Mapping[str, int]]] = (),
) -> Checkpoint:
    """Make the staged parts of `tag` a checkpoint, and let `latest` name it.

    Args:
        root: the folder of all checkpoints (`--ckpt.path`).
        tag: its name.
        step: the last step that it contains.
        about: `config`, `data` and `versions` of the run.
        seen: of each rank its node, and path -> bytes of the files that it sees among the staged parts.

    Raises:
        Unseen: ranks have written files that this process does not see.

    A process that dies here, at any moment, leaves the checkpoints before it whole, and `latest` at one of them.
    """
    root = Path(root)
    folder, target = staging(root, tag), root / tag
    require_seen(folder, seen)
    content = digests(files_below(folder))
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "digest": value}
        for path, value in content.items()
    }
    about = {**about, "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    manifest = Manifest(tag, step, next_sequence(root), files, about)
    write_text(folder / MANIFEST, manifest.to_json())
    sync_below(folder)
    aside = root / f"{ASIDE}{tag}"
    if os.path.lexists(target):  # the run went back to an earlier step and has come here again
        os.rename(target, aside)
    os.rename(folder, target)
    sync(root)
    write_text(root / LATEST, tag)
    if os.path.lexists(aside):
        put_away(aside)
    return Checkpoint(target, manifest)


def require_seen(folder: Path, seen: Iterable[tuple[str, Mapping[str, int]]]) -> None:
    """Return when every file that a rank sees below `folder` is there with its size for this process, too.

    Who wrote a file knows its size; others may know an older, smaller one for a while. The largest counts.

    Raises:
        Unseen: after some time some are not; nodes that share no file system each have their own folder.
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
            raise Unseen(
                f"{len(missing)} of {len(sizes)} files are missing for the trainer, which ranks on {of_nodes} see, "
                f"such as {missing[0]}; --ckpt.path {folder.parent} must be on a file system that all nodes share"
            )
        time.sleep(POLL_SECONDS)


def _size(path: Path) -> int:
    """Return the bytes of a file, -1 where it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def next_sequence(root: Path) -> int:
    """Return a number above that of every checkpoint there."""
    return 1 + max((one.manifest.sequence for one in listed(root)[0]), default=0)


def start_anew(root: str | Path) -> None:
    """Note that the checkpoints there are of an earlier run, which this one, when it dies, must not go on from."""
    root = Path(root)
    if folders(root):
        write_text(root / ANEW, str(next_sequence(root)))


def go_on_from(root: str | Path, sequence: int) -> None:
    """Note that a run goes on from the checkpoint with that number: what was written after it counts no more."""
    root = Path(root)
    end = next_sequence(root)
    left = [span for span in left_behind(root) if span[1] <= sequence]
    if end > sequence + 1:
        left.append((sequence, end))
    if left != left_behind(root):
        write_text(root / ANEW, "".join(f"{after} {before}\n" for after, before in left))


def abandon(root: str | Path, tag: str) -> None:
    """Remove what was staged for `tag`."""
    folder = staging(root, tag)
    if folder.exists():
        put_away(folder)


def rotate(root: str | Path, keep: int, max_bytes: float) -> list[str]:
    """Delete the oldest checkpoints until at most `keep`, and `max_bytes`, are there; return their names.

    Never the newest, never the best, never the one that `latest` names. Those of the best evaluation do not count
    towards `keep`; of several, the newest is the best. Those that a run left behind for another go first, but for
    their best. Exports below a checkpoint go with it. One that cannot be deleted gives up its name and stays.
    """
    root = Path(root)
    found, left = listed(root)[0], left_behind(root)
    regular = sorted((one for one in found if not one.is_best), key=lambda one: is_left(one, left))
    best = [one for one in found if one.is_best and not is_left(one, left)]
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
    """Return the checkpoint that `latest` names, if both are there."""
    try:
        name = read_text(root / LATEST).strip()
    except (OSError, UnicodeDecodeError):
        return None
    return next((path for path in folders(root) if path.name == name), None)


def delete(path: Path) -> bool:
    """Delete a checkpoint; it gives up its name first, so that `recover` knows what is left of it if this dies.

    Returns whether it did: nothing is done to one that cannot be renamed.
    """
    going = _going(path)
    try:
        os.rename(path, going)
    except OSError as error:
        logger.warning(f"{path} cannot be deleted: {error}")
        return False
    put_away(going)
    return True


def undeleted(root: Path) -> list[Path]:
    """Return what should be gone and could not be deleted."""
    return sorted(root.glob(f"{GOING}*"))


def put_away(path: Path) -> None:
    """Delete a folder, or, where that fails, leave it under a name that is in nobody's way."""
    try:
        remove(path)
    except OSError as error:
        logger.warning(f"{path} cannot be deleted: {error}")
        if not path.name.startswith(GOING):
            with suppress(OSError):
                os.rename(path, _going(path))


def _going(path: Path) -> Path:
    name = f"{GOING}{path.name.removeprefix(STAGING).removeprefix(ASIDE)}"
    names = (path.with_name(name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(one for one in names if not os.path.lexists(one))


def remove(path: Path) -> None:
    """Delete a folder; its manifest first, so that half a folder is never taken for a checkpoint. Of a link, the link.

    Raises:
        OSError: something of it is still there.
    """
    if path.is_symlink():
        path.unlink()
        return
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
