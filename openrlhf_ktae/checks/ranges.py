"""The range of each numeric option, so that a bad value is refused before it is used.

The host checks only types. `--rollout.micro_batch_size 0` ends in a ZeroDivisionError, `--ckpt.save_steps 0` also, but
after the first step. A negative learning rate is never caught. `nan` is outside every range.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included (`low` excluded with `open_low`), plus the values of `also`."""

    low: float
    high: float = math.inf
    open_low: bool = False
    also: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        inside = self.low < value if self.open_low else self.low <= value
        return (inside and value <= self.high) or value in self.also

    def __str__(self) -> str:
        words = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        if self.high != math.inf:
            words += f" and at most {self.high:g}"
        return words + "".join(f", or {value:g}" for value in self.also)


COUNT, SIZE, SHARE, NOT_NEGATIVE = Range(1), Range(0, open_low=True), Range(0, 1), Range(0)
RANGES = {
    name: limits
    for limits, names in (
        (
            COUNT,
            "actor.num_nodes critic.num_nodes ref.num_nodes reward.num_nodes actor.num_gpus_per_node "
            "critic.num_gpus_per_node ref.num_gpus_per_node reward.num_gpus_per_node ds.tensor_parallel_size "
            "ds.ring_attn_size ds.zpg vllm.tensor_parallel_size train.async_queue_size train.max_staleness "
            "train.num_episodes train.max_epochs train.batch_size train.micro_batch_size train.max_tokens_per_gpu "
            "rollout.batch_size rollout.micro_batch_size rollout.n_samples_per_prompt rollout.max_new_tokens "
            "rollout.vllm_generate_batch_size rollout.max_tokens_per_gpu data.max_len data.max_samples ckpt.max_num "
            "eval.n_samples_per_prompt logger.logging_steps algo.kl.horizon faults.reward_tries "
            "faults.collapse_patience",
        ),
        (
            NOT_NEGATIVE,
            "ds.lora.rank data.dataloader_num_workers data.max_images_per_prompt eval.temperature "
            "actor.adam.weight_decay actor.max_norm algo.kl.init_coef reward.overlong_penalty_factor "
            "ktae.record_rollouts ktae.record_max_mb ktae.record_groups run.grace_seconds run.watchdog_minutes "
            "run.restarts faults.max_skipped_updates faults.rollout_retries faults.engine_restarts "
            "faults.model_restarts faults.max_length faults.max_kl algo.dynamic_filtering_max_gen_batches "
            "algo.dynamic_filtering_skip_solved",
        ),
        (
            SIZE,
            "ckpt.max_mem ds.lora.alpha rollout.temperature actor.adam.lr actor.adam.eps actor.muon.lr actor.eps_clip "
            "algo.kl.target faults.reward_timeout_s",
        ),
        (
            SHARE,
            "train.ema_beta actor.muon.momentum actor.lr_warmup_ratio actor.min_lr_ratio algo.advantage.gamma "
            "algo.advantage.lambd faults.max_failed_share faults.max_repetition faults.min_mixed_share",
        ),
        (Range(0, 1, open_low=True), "vllm.gpu_memory_utilization rollout.top_p"),
        (Range(1, also=(-1,)), "eval.steps ckpt.save_steps"),  # -1 means never
        (Range(1, 3), "ds.zero_stage"),  # at stage 0 non-finite gradients are not checked
        (Range(1, open_low=True), "actor.dual_clip"),
        (Range(0, 1 - 1e-9), "ds.lora.dropout"),
        (Range(0, 2**32 - 1), "train.seed"),
        (Range(-math.inf, 1e6), "actor.entropy_coef"),
    )
    for name in names.split()
}
PAIRS = {
    "actor.eps_clip_low_high": Range(0, open_low=True),
    "actor.adam.betas": Range(0, 1 - 1e-9),
    "algo.dynamic_filtering_range": Range(-math.inf),
    "reward.clip_range": Range(-math.inf),
    "algo.advantage.is_correction_threshold": NOT_NEGATIVE,
}
INCREASING = ("algo.dynamic_filtering_range", "reward.clip_range", "algo.advantage.is_correction_threshold")


def range_problems(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each number in `options` (flat names) outside its range."""
    for name, limits in RANGES.items():
        value = options.get(name)
        if isinstance(value, (int, float)) and value not in limits:
            yield f"--{name} {value:g}: give a number {limits}"
    for name, limits in PAIRS.items():
        values = options.get(name)
        if not isinstance(values, (list, tuple)):
            continue
        written = " ".join(f"{value:g}" for value in values)
        if any(value not in limits for value in values):
            yield f"--{name} {written}: give numbers {limits}"
        elif name in INCREASING and list(values) != sorted(set(values)):
            yield f"--{name} {written}: give the lower number first"
