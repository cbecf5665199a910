"""Set the options for the checkpoint to resume from, and the run's description for its new checkpoints."""

from pathlib import Path
from types import SimpleNamespace

from openrlhf_ktae.base.secrets import secrets_of
from openrlhf_ktae.checkpoint.changes import content_of
from openrlhf_ktae.checkpoint.lock import hold
from openrlhf_ktae.checkpoint.resume import check_options, decide, other_versions
from openrlhf_ktae.record.directory import nested_options, versions


def choose_checkpoint(args: SimpleNamespace, backend: str) -> list[str]:
    """Set `run.resume_from`, `resume_step`, `about`, `accepted_changes`, `ckpt.load_enable`; return lines to print.

    Raises Refusal as `checkpoint.resume` does, or if another run writes below `--ckpt.path` (`checkpoint.lock`).
    """
    if Path(args.ckpt.path).is_dir():  # a run that is refused leaves no folder behind
        hold(args.ckpt.path)
    config = nested_options(args)
    args.run.about = {"config": config, "data": content_of(config), "versions": versions(backend, secrets_of(args))}
    decision = decide(args.resume, Path(args.ckpt.path))
    chosen = decision.checkpoint
    args.run.resume_from = str(chosen.path) if chosen else None
    args.run.resume_step = chosen.step if chosen else 0
    args.ckpt.load_enable = chosen is not None
    lines, about = list(decision.lines), args.run.about
    if chosen is not None:
        accepted = check_options(chosen, about["config"], about["data"], args.run.accept_changes)
        args.run.accepted_changes = accepted
        if accepted:
            lines.append(f"changed from the checkpoint's value: {', '.join(f'--{name}' for name in accepted)}")
        lines += other_versions(chosen, about["versions"])
    hold(args.ckpt.path)
    return lines
