"""One checkpoint on the disk: its manifest, and whether it is whole."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openrlhf_ktae.checkpoint.files import digests, files_below

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer.pt"
RANDOM = "random"
LATEST = "latest"
ANEW = "anew"  # number of the first checkpoint of the run that began anew here
ACTOR = "_actor"
BEST = "best_"
NAME = re.compile(rf"({BEST})?global_step\d+")
STAGING = ".writing-"
ASIDE = ".replaced-"
GOING = ".deleting-"
VERSION = 1


class NotWhole(ValueError):
    """A checkpoint is unfinished or damaged; the message says what is missing or wrong."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is and what it must hold."""

    tag: str
    step: int
    sequence: int
    """Checkpoints of a folder are numbered as they are written: clocks and steps may go back."""
    files: dict[str, dict[str, Any]]
    """Path below the checkpoint -> `bytes` and `digest`."""
    about: dict[str, Any] = field(default_factory=dict)
    """`config`, `data`, `versions` of the run, and `written`, the time."""

    @property
    def bytes(self) -> int:
        """Size of the checkpoint."""
        return sum(entry["bytes"] for entry in self.files.values())

    def to_json(self) -> str:
        """Return the text of `manifest.json`."""
        return json.dumps({"version": VERSION, **vars(self)}, indent=1, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with its manifest; of one that plain OpenRLHF wrote, the manifest has no files."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """The last step that it contains."""
        return self.manifest.step

    @property
    def is_best(self) -> bool:
        """Whether it was written because its evaluation was the best so far."""
        return self.path.name.startswith(BEST)

    @property
    def verified(self) -> bool:
        """Whether there is a manifest to verify it by."""
        return bool(self.manifest.files)


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the checkpoint at `path`.

    Raises:
        NotWhole: there is none, or it is not one.
    """
    try:
        tree = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if tree["version"] != VERSION:
            raise NotWhole(f"{MANIFEST} has version {tree['version']}, this release reads {VERSION}")
        files = {str(name): dict(entry) for name, entry in dict(tree["files"]).items()}
        for entry in files.values():
            entry["bytes"] + 0, entry["digest"] + ""
        manifest = Manifest(str(tree["tag"]), int(tree["step"]), int(tree["sequence"]), files, dict(tree["about"]))
    except FileNotFoundError:
        raise NotWhole(f"has no {MANIFEST}: it was not finished") from None
    except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        if isinstance(error, NotWhole):
            raise
        raise NotWhole(
            f"{MANIFEST} cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
        ) from None
    if not files:
        raise NotWhole(f"{MANIFEST} names no file")
    return manifest


def verify(path: Path) -> Checkpoint:
    """Return the checkpoint at `path` after looking at each of its files.

    Raises:
        NotWhole: a file is missing, has another size or another content.
    """
    manifest = read_manifest(path)
    present = {str(file.relative_to(path)): file for file in files_below(path)}
    for name, entry in manifest.files.items():
        if name not in present:
            raise NotWhole(f"{name} is missing")
        size = present[name].stat().st_size
        if size != entry["bytes"]:
            raise NotWhole(f"{name} has {size} bytes instead of {entry['bytes']}")
    found = digests(present[name] for name in manifest.files)
    for name, entry in manifest.files.items():
        if found[present[name]] != entry["digest"]:
            raise NotWhole(f"{name} has other content than was written")
    return Checkpoint(path, manifest)


def folders(root: Path) -> list[Path]:
    """Return the folders below `--ckpt.path` that have the name of a finished checkpoint."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and NAME.fullmatch(path.name))


def listed(root: Path) -> tuple[list[Checkpoint], dict[str, str]]:
    """Return checkpoints, the one written last first, and the reason for each folder that has no good manifest.

    Files are not looked at: see `verify`.
    """
    found, bad = [], {}
    for path in folders(root):
        try:
            found.append(Checkpoint(path, read_manifest(path)))
        except NotWhole as reason:
            bad[path.name] = str(reason)
    found.sort(key=lambda one: (one.manifest.sequence, one.path.name), reverse=True)
    return found, bad


def first_of_run(root: Path) -> int:
    """Return the number from which on checkpoints belong to the run that began last; 0 where only one ever did."""
    try:
        return int((root / ANEW).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def unfinished(root: Path) -> list[str]:
    """Return the names of checkpoints that were being written when a run ended."""
    if not root.is_dir():
        return []
    return sorted(path.name.removeprefix(STAGING) for path in root.glob(f"{STAGING}*"))
