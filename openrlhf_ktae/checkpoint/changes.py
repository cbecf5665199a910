"""Which options may change when a run resumes from a checkpoint, and which would make it a different run."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.config_file import flat
from openrlhf_ktae.base.options import OLD_CREDIT_NAMES
from openrlhf_ktae.base.text import joined
from openrlhf_ktae.checkpoint.files import digest, files_below
from openrlhf_ktae.data.names import entries

FREE_GROUPS = ("ckpt", "eval", "faults", "ktae", "logger", "run")
"""Output, held-out evaluation and stop criteria: they do not affect training."""
FREE = frozenset(
    (  # backends compute the same, config files are compared by their options, `use_ms` is where models come from
        "backend config use_ms local_rank model.trust_remote_code algo.credit.top_tokens "
        # a longer run (a schedule tied to the data follows), and options that can be turned on at any time
        "train.num_episodes train.full_determinism_enable train.max_staleness "
        "verifier.workers verifier.memory_mb verifier.recycle_after verifier.cache_size "
        "vllm.num_engines vllm.tensor_parallel_size vllm.gpu_memory_utilization vllm.enforce_eager vllm.enable_sleep "
        "vllm.sync_backend vllm.sync_with_ray vllm.enable_prefix_caching ds.enable_sleep ds.attn_implementation "
        "ref.offload reward.offload train.colocate_all train.colocate_actor_ref train.colocate_critic_reward"
    ).split()
)
"""Options that may differ."""
RENAMED = {old: f"algo.credit.{name}" for name, old in OLD_CREDIT_NAMES.items()}
"""Names of options in checkpoints of older versions."""
BY_CONTENT = (
    "data.prompt_dataset actor.model_name_or_path critic.model_name_or_path reward.model_name_or_path "
    "reward.remote_url train.agent_func_path algo.credit.file"
).split()
"""Options with paths, compared by content. Of a Python file only its own text counts, not its imports."""
NO_CONTENT = (".md", ".png", ".jpg", ".svg", ".gif", ".pdf", ".log")  # suffixes of files that do not affect training
NO_CONTENT_NAMES = ("LICENSE", "NOTICE")
SHARDED = ("actor.num_nodes actor.num_gpus_per_node ds.zero_stage ds.tensor_parallel_size ds.ring_attn_size").split()
UNIVERSAL = "ds.use_universal_ckpt"
TRAINED = ("actor.model_name_or_path", "critic.model_name_or_path")
WEIGHT_SUFFIXES = (".safetensors", ".bin")
IN_CHECKPOINT = {
    "train.seed": "random states and the prompt order come from the checkpoint",
    "actor.optim": "the checkpoint holds the other optimizer's moments",
    "critic.optim": "the checkpoint holds the other optimizer's moments",
    "ds.param_dtype": "DeepSpeed would ignore the checkpoint's optimizer state",
    "ds.load_in_4bit": "the checkpoint's parameters use the other format",
    "ds.lora.rank": "the checkpoint's adapter has the other rank",
    "ds.lora.target_modules": "the checkpoint's adapter covers other layers",
}
"""Options whose change cannot be applied to a checkpoint, even if accepted, with the reason."""


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], data_before: Mapping[str, str], data_now: Mapping[str, str]
) -> dict[str, str]:
    """Return the options that make this a different run, each with `before -> now` or another description.

    Args:
        before: options of the checkpoint, nested.
        now: options of this run, nested.
        data_before: option of `BY_CONTENT` -> digests of its files in the checkpoint's run (`content_of`).
        data_now: the same for this run.
    """
    old, new = flat(before), flat(now)
    old = {RENAMED.get(name, name): value for name, value in old.items()}
    found = {}
    for name in sorted(old.keys() | new.keys()):
        if name in FREE or name.split(".")[0] in FREE_GROUPS or (name in SHARDED and new.get(UNIVERSAL)):
            continue
        if name in BY_CONTENT and name in data_before and name in data_now:
            if data_before[name] != data_now[name]:
                same = old.get(name) == new.get(name)
                found[name] = "its content has changed" if same else f"{old.get(name)} -> {new.get(name)}"
        elif old.get(name) != new.get(name) and name in old and name in new:
            found[name] = f"{joined(old[name])} -> {joined(new[name])}"
    return found


def cannot_be_applied(
    names: Iterable[str],
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    data_before: Mapping[str, str],
    data_now: Mapping[str, str],
) -> dict[str, str]:
    """Return the options of `names`, all changed, whose new value would have no effect or fail, with the reason."""
    old, new = flat(before), flat(now)
    reasons = {}
    for name in names:
        if name in IN_CHECKPOINT:
            reasons[name] = IN_CHECKPOINT[name]
        elif name in SHARDED:
            reasons[name] = f"the checkpoint is sharded differently; give --{UNIVERSAL}"
        elif name == "train.enable_ema" and new[name]:
            reasons[name] = "the checkpoint holds no averaged weights"
        elif name == "rollout.n_samples_per_prompt" and _carries_rollouts(old):
            reasons[name] = "the checkpoint has buffered rollouts in groups of the other size"
        elif name in TRAINED and _weights(data_before.get(name, "")) != _weights(data_now.get(name, "")):
            reasons[name] = "the checkpoint's weights would replace its weights"
    return reasons


def _carries_rollouts(options: Mapping[str, Any]) -> bool:
    surplus = options.get("rollout.vllm_generate_batch_size") or 0
    return bool(options.get("algo.dynamic_filtering_enable")) or surplus > options.get("rollout.batch_size", 0)


def _weights(contents: str) -> list[str]:
    return sorted(part for part in contents.split() if part.rsplit(":", 1)[0].endswith(WEIGHT_SUFFIXES))


def content_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return content digests for each option of `BY_CONTENT` that names local files."""
    options, found = flat(config), {}
    for name in BY_CONTENT:
        if not options.get(name):
            continue
        parts = [Path(part) for part, _ in entries(str(options[name]))]
        if all(os.path.exists(part) for part in parts):
            found[name] = " ".join(_digest_of(part) for part in parts)
    return found


def _digest_of(path: Path) -> str:
    if path.is_file():
        return digest(path)
    names = ((file, file.relative_to(path)) for file in files_below(path))
    return " ".join(f"{name}:{digest(file)}" for file, name in names if is_content(name))


def is_content(name: Path) -> bool:
    """Return whether a file counts as content; `name` is its path relative to the folder."""
    hidden = any(part.startswith(".") for part in name.parts)
    return not hidden and name.suffix not in NO_CONTENT and not name.name.startswith(NO_CONTENT_NAMES)
