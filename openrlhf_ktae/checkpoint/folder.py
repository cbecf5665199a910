"""A checkpoint on disk: its manifest, and verification that it is complete."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.base.text import short
from openrlhf_ktae.checkpoint.files import digests, files_below, read_text

MANIFEST = "manifest.json"
TRAINER_STATE = "trainer.pt"
RANDOM = "random"
LATEST = "latest"
SUPERSEDED = "anew"  # file of superseded sequence numbers (`superseded_spans`)
ACTOR = "_actor"
ROLES = ("actor", "critic")  # models that are trained
BEST = "best_"
NAME = re.compile(rf"({BEST})?global_step\d+")
STAGING = ".writing-"
REPLACED = ".replaced-"
DELETING = ".deleting-"
VERSION = 1
MOST_NESTED = 32  # options are nested three deep
LARGEST = 10**15  # for a step, a sequence number, or a file size in bytes


class IncompleteCheckpoint(ValueError):
    """A checkpoint is unfinished or damaged; the message says what is missing or wrong."""


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's identity and the files it must contain."""

    tag: str
    step: int
    sequence: int
    """Order in which the checkpoints of a folder were written; clocks and steps may go backwards."""
    files: dict[str, dict[str, Any]]
    """Path below the checkpoint -> `bytes` and `digest`."""
    about: dict[str, Any] = field(default_factory=dict)
    """`config`, `data` and `versions` of the run, and `written`, the time it was written."""

    @property
    def bytes(self) -> int:
        """Size of the checkpoint, in bytes."""
        return sum(entry["bytes"] for entry in self.files.values())

    def to_json(self) -> str:
        """Return the text of `manifest.json`."""
        return json.dumps({"version": VERSION, **vars(self)}, indent=1, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with its manifest; the manifest of a plain OpenRLHF checkpoint lists no files."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """The last training step it includes."""
        return self.manifest.step

    @property
    def is_best(self) -> bool:
        """Whether it was written for the best evaluation so far."""
        return self.path.name.startswith(BEST)


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the checkpoint at `path`. Raises IncompleteCheckpoint if it is missing or invalid."""
    try:
        tree = _mapping(parse_json(read_text(path / MANIFEST)), "the manifest")
        if tree["version"] != VERSION:
            raise ValueError(f"version {str(tree['version'])[:20]}; this release reads version {VERSION}")
        files = {name: _mapping(entry, "files") for name, entry in _mapping(tree["files"], "files").items()}
        for entry in files.values():
            _number(entry["bytes"], "bytes")
            _text(entry["digest"], "digest")
        step, sequence = _number(tree["step"], "step"), _number(tree["sequence"], "sequence")
        manifest = Manifest(_text(tree["tag"], "tag"), step, sequence, files, _about(tree["about"]))
    except FileNotFoundError:
        raise IncompleteCheckpoint(f"has no {MANIFEST}: it was never finished") from None
    except KeyError as error:
        raise IncompleteCheckpoint(f"{MANIFEST} cannot be read ({error} is missing)") from None
    except (ValueError, OSError) as error:
        raise IncompleteCheckpoint(f"{MANIFEST} cannot be read ({type(error).__name__}: {short(error)})") from None
    if not files:
        raise IncompleteCheckpoint(f"{MANIFEST} lists no files")
    return manifest


def _about(value: Any) -> dict[str, Any]:
    about = _mapping(value, "about")
    for name in ("config", "data", "versions"):
        _mapping(about.get(name, {}), name)
    _mapping(about.get("versions", {}).get("packages", {}), "packages")
    if not _is_shallow(about, MOST_NESTED):
        raise ValueError("about is nested too deeply")
    return about


def _is_shallow(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(one, depth - 1) for one in inner)


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a mapping")
    return value


def _number(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
        raise ValueError(f"{name} is not a valid number")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is not text")
    return value


def verify(path: Path) -> Checkpoint:
    """Return the checkpoint at `path` after checking each of its files.

    Raises IncompleteCheckpoint if a file is missing, unreadable, or differs in size or content, or if a rank's part is
    missing: older releases, which did not check for a shared file system, could lose such parts.
    """
    manifest = read_manifest(path)
    if missing := _missing_ranks(manifest):
        raise IncompleteCheckpoint(missing)
    try:
        present = {str(file.relative_to(path)): file for file in files_below(path)}
        for name, entry in manifest.files.items():
            if name not in present:
                raise IncompleteCheckpoint(f"{name} is missing")
            size = present[name].stat().st_size
            if size != entry["bytes"]:
                raise IncompleteCheckpoint(f"{name} has {size} bytes instead of {entry['bytes']}")
        found = digests(present[name] for name in manifest.files)
    except OSError as error:
        raise IncompleteCheckpoint(f"cannot be read ({type(error).__name__}: {short(error)})") from None
    for name, entry in manifest.files.items():
        if found[present[name]] != entry["digest"]:
            raise IncompleteCheckpoint(f"{name} changed after it was written")
    return Checkpoint(path, manifest)


def _missing_ranks(manifest: Manifest) -> str:
    """Describe a role that lacks the parts of some ranks; empty if there is none, or if its ranks are unknown."""
    for role in ROLES:
        options = manifest.about.get("config", {}).get(role)
        there = sum(name.startswith(f"{RANDOM}/{role}_rank") for name in manifest.files)
        if there and isinstance(options, dict):
            numbers = [options.get(name) for name in ("num_nodes", "num_gpus_per_node")]
            ranks = math.prod(number for number in numbers if isinstance(number, int))
            if there < ranks:
                return f"has the parts of only {there} of {ranks} {role} ranks: their nodes did not share a file system"
    return ""


def folders(root: Path) -> list[Path]:
    """Return the folders below `--ckpt.path` that are named like a finished checkpoint."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and NAME.fullmatch(path.name))


def listed(root: Path) -> tuple[list[Checkpoint], dict[str, str]]:
    """Return checkpoints, newest first, and folder name -> reason for each folder without a valid manifest.

    Only manifests are read; `verify` checks the files.
    """
    found, bad = [], {}
    for path in folders(root):
        try:
            found.append(Checkpoint(path, read_manifest(path)))
        except IncompleteCheckpoint as reason:
            bad[path.name] = str(reason)
    found.sort(key=lambda one: (one.manifest.sequence, one.path.name), reverse=True)
    return found, bad


def superseded_spans(root: Path) -> list[tuple[int, int]]:
    """Return pairs of sequence numbers; checkpoints strictly between the two numbers of a pair are superseded.

    A run from scratch supersedes all earlier checkpoints. A rollback supersedes the checkpoints after its own.
    """
    try:
        lines = [[int(word) for word in line.split()] for line in read_text(root / SUPERSEDED).splitlines()]
    except (OSError, ValueError):
        return []
    return [(0, line[0]) if len(line) == 1 else (line[0], line[1]) for line in lines if len(line) in (1, 2)]


def is_superseded(checkpoint: Checkpoint, left: list[tuple[int, int]]) -> bool:
    """Return whether a checkpoint is superseded; `left` comes from `superseded_spans`."""
    return any(after < checkpoint.manifest.sequence < before for after, before in left)


def current_run(root: Path) -> list[Checkpoint]:
    """Return the checkpoints of the current or last run in this folder, newest first."""
    left = superseded_spans(root)
    return [one for one in listed(root)[0] if not is_superseded(one, left)]


def unfinished(root: Path) -> list[str]:
    """Return the names of checkpoints left unfinished when a run ended."""
    if not root.is_dir():
        return []
    return sorted(path.name.removeprefix(STAGING) for path in root.glob(f"{STAGING}*"))
