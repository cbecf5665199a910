"""Before any model loads, select the checkpoint for `--resume` (`auto`, `never` or a path), or refuse it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.checkpoint.changes import cannot_be_applied, differences
from openrlhf_ktae.checkpoint.files import read_text
from openrlhf_ktae.checkpoint.folder import (
    ACTOR,
    LATEST,
    MANIFEST,
    Checkpoint,
    IncompleteCheckpoint,
    Manifest,
    is_superseded,
    listed,
    superseded_spans,
    unfinished,
    verify,
)
from openrlhf_ktae.checkpoint.write import restore_replaced

AUTO, NEVER = "auto", "never"


@dataclass(frozen=True)
class Decision:
    """The checkpoint to resume from, and one line to print for each candidate considered."""

    checkpoint: Checkpoint | None
    lines: list[str] = field(default_factory=list)


def decide(choice: str, root: Path) -> Decision:
    """Return the checkpoint that `--resume CHOICE` selects, with the reasons.

    Args:
        choice: `auto`, `never`, a checkpoint, or a folder of checkpoints.
        root: the folder of this run's checkpoints (`--ckpt.path`).

    Raises:
        Refusal: a checkpoint is required, but none is complete.
    """
    if choice == NEVER:
        return Decision(None)
    if choice == AUTO:
        return newest(root, f"--resume {AUTO}")
    path, flag = Path(choice), f"--resume {choice}"
    if not path.is_dir():
        raise Refusal(f"{flag}: no such folder; give a checkpoint, a folder of checkpoints, {AUTO} or {NEVER}")
    if (path / MANIFEST).exists():
        if not (path / ACTOR).is_dir():
            raise Refusal(
                f"{flag}: has no {ACTOR}, at most an export (--ckpt.disable_ds); train from the export with "
                "--actor.model_name_or_path, or give another checkpoint"
            )
        try:
            return Decision(verify(path), [f"resuming from {path}"])
        except IncompleteCheckpoint as reason:
            raise Refusal(f"{flag}: {reason}; --resume {AUTO} takes the newest complete one") from None
    for folder in (path, path / "checkpoints"):
        decision = newest(folder, flag, any_run=True)
        if decision.checkpoint:
            return decision
    raise Refusal(f"{flag}: contains no checkpoint ({MANIFEST}); give one, {AUTO} or {NEVER}")


def newest(root: Path, flag: str, any_run: bool = False) -> Decision:
    """Decide on the newest complete checkpoint, else one of plain OpenRLHF; on None if `root` has no checkpoints.

    Skips checkpoints superseded by a restart or rollback; with `any_run` they come last instead. Restores a checkpoint
    whose replacement never finished. Raises Refusal if there are checkpoints, but none is complete.
    """
    restore_replaced(root)
    (listed_here, bad), left = listed(root), superseded_spans(root)
    lines = [f"skipped {name}: was being written when the run ended" for name in unfinished(root)]
    lines += [f"skipped {name}: {reason}" for name, reason in bad.items()]
    found = [one for one in listed_here if not is_superseded(one, left)]
    others = [one for one in listed_here if is_superseded(one, left)]
    if any_run:
        found += others
    else:
        lines += [
            f"skipped {one.path.name}: {_why_superseded(one, left)}; --resume {one.path} takes it" for one in others
        ]
    for candidate in found:
        try:
            if not (candidate.path / ACTOR).is_dir():
                raise IncompleteCheckpoint(f"has no {ACTOR}, only an export (--ckpt.disable_ds)")
            whole = verify(candidate.path)
        except (IncompleteCheckpoint, OSError) as reason:
            lines.append(f"skipped {candidate.path.name}: {reason}")
            continue
        why = "the newest" if len(found) + len(bad) > 1 else "the only one"
        return Decision(whole, [*lines, f"resuming from {whole.path} (step {whole.step}, {why})"])
    host = host_checkpoint(root, flag)
    if host:
        return Decision(host, [*lines, f"resuming from {host.path}, written by plain OpenRLHF; it cannot be verified"])
    if found or bad:
        reasons = "; ".join(line.removeprefix("skipped ") for line in lines)
        raise Refusal(
            f"{flag}: no checkpoint in {root} is complete ({reasons}). --resume {NEVER} starts from scratch, --resume "
            "PATH takes another"
        )
    return Decision(None, [*lines, f"no checkpoint in {root}: starting from scratch"])


def _why_superseded(checkpoint: Checkpoint, left: list[tuple[int, int]]) -> str:
    began = any(after == 0 and is_superseded(checkpoint, [(after, before)]) for after, before in left)
    return "a later run started from scratch here" if began else "a later run went back to an earlier checkpoint"


def host_checkpoint(path: Path, flag: str) -> Checkpoint | None:
    """Return the checkpoint that plain OpenRLHF saved at `path`, if any: `_actor/TAG` named by `_actor/latest`.

    Raises:
        Refusal: a folder cannot be read, or `latest` names none; the host would fail or start from scratch, but later.
    """
    folder = path / ACTOR
    latest = folder / LATEST
    try:
        if not folder.is_dir():
            return None
        tags = sorted(tag.name for tag in folder.iterdir() if tag.is_dir())
    except OSError as error:
        raise Refusal(f"{flag}: {folder} cannot be read ({error}); give another folder, or {NEVER}") from None
    try:
        name = read_text(latest).strip()
    except (OSError, UnicodeDecodeError):
        name = ""
    if name not in tags:
        what = f"names {name!r}, which is not there" if name else "is missing or cannot be read"
        raise Refusal(
            f"{flag}: {latest} {what}. Write one of these names into it: "
            f"{', '.join(tags) or 'there are none; --resume never starts from scratch'}"
        )
    digits = name.rpartition("global_step")[2]
    return Checkpoint(path, Manifest(name, int(digits) if digits.isdigit() else 0, 0, {}))


def check_options(
    checkpoint: Checkpoint, config: Mapping[str, Any], data: Mapping[str, str], accepted: Iterable[str]
) -> list[str]:
    """Refuse options that would make this a different run from the checkpoint's; return accepted changes.

    Raises:
        Refusal: an option differs without being accepted, or an accepted change cannot be applied.
    """
    about = checkpoint.manifest.about
    if not about:
        return []
    before = about.get("config", {}), about.get("data", {})
    found = differences(before[0], config, before[1], data)
    accepted = {name.removeprefix("--") for name in accepted}
    refused = {name: text for name, text in found.items() if name not in accepted}
    if refused:
        lines = "; ".join(f"--{name}: {text}" for name, text in refused.items())
        raise Refusal(
            f"--resume: {checkpoint.path} was written with other options: {lines}. Set them back, accept them with "
            f"--run.accept_changes {' '.join(refused)}, or start from scratch with --resume {NEVER}"
        )
    reasons = cannot_be_applied(found, before[0], config, before[1], data)
    if reasons:
        lines = "; ".join(f"--{name}: {found[name]}: {reason}" for name, reason in reasons.items())
        raise Refusal(
            f"--run.accept_changes {' '.join(reasons)}: cannot be applied to {checkpoint.path}: {lines}. Set them "
            f"back, or start from scratch with --resume {NEVER} (--actor.model_name_or_path takes an export)"
        )
    return list(found)


def other_versions(checkpoint: Checkpoint, versions: Mapping[str, Any]) -> list[str]:
    """Return one line if package versions have changed: the same options may then give different numbers."""
    before = checkpoint.manifest.about.get("versions", {}).get("packages", {})
    now = versions.get("packages", {})
    other = [f"{name} {before[name]} -> {now.get(name, 'none')}" for name in before if before[name] != now.get(name)]
    return [f"versions differ from the checkpoint's: {', '.join(other)}"] if other else []
