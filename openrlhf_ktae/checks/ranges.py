"""The range of each numeric option, so that a bad value is refused before it is used.

The host checks only types: `--rollout.micro_batch_size 0` ends in a ZeroDivisionError, `--ckpt.save_steps 0` does so
after the first step, a negative learning rate is never caught. `nan` is outside every range.
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


COUNT, SIZE, SHARE = Range(1), Range(0, open_low=True), Range(0, 1)
EVERY = Range(1, also=(-1,))  # steps; -1 means never
NOT_NEGATIVE = Range(0)
GROUPS = ("actor", "critic", "ref", "reward")
RANGES: dict[str, Range] = {
    **dict.fromkeys(
        (
            *(f"{group}.num_nodes" for group in GROUPS),
            *(f"{group}.num_gpus_per_node" for group in GROUPS),
            "ds.tensor_parallel_size ds.ring_attn_size ds.zpg vllm.tensor_parallel_size train.async_queue_size",
            "train.max_staleness",
            "train.num_episodes train.max_epochs train.batch_size train.micro_batch_size train.max_tokens_per_gpu",
            "rollout.batch_size rollout.micro_batch_size rollout.n_samples_per_prompt rollout.max_new_tokens",
            "rollout.vllm_generate_batch_size rollout.max_tokens_per_gpu data.max_len data.max_samples ckpt.max_num",
            "eval.n_samples_per_prompt logger.logging_steps algo.kl.horizon",
        ),
        COUNT,
    ),
    "eval.steps": EVERY,
    "ckpt.save_steps": EVERY,
    "ckpt.max_mem": SIZE,
    "train.seed": Range(0, 2**32 - 1),
    "train.ema_beta": SHARE,
    "ds.zero_stage": Range(1, 3),  # without ZeRO non-finite gradients go unchecked
    "ds.lora.rank": NOT_NEGATIVE,
    "ds.lora.alpha": SIZE,
    "ds.lora.dropout": Range(0, 1 - 1e-9),
    "data.dataloader_num_workers": NOT_NEGATIVE,
    "data.max_images_per_prompt": NOT_NEGATIVE,
    "vllm.gpu_memory_utilization": Range(0, 1, open_low=True),
    "rollout.temperature": SIZE,
    "rollout.top_p": Range(0, 1, open_low=True),
    "eval.temperature": NOT_NEGATIVE,
    "actor.adam.lr": SIZE,
    "actor.adam.eps": SIZE,
    "actor.adam.weight_decay": NOT_NEGATIVE,
    "actor.muon.lr": SIZE,
    "actor.muon.momentum": SHARE,
    "actor.lr_warmup_ratio": SHARE,
    "actor.min_lr_ratio": SHARE,
    "actor.max_norm": NOT_NEGATIVE,
    "actor.eps_clip": SIZE,
    "actor.dual_clip": Range(1, open_low=True),
    "actor.entropy_coef": Range(-math.inf, 1e6),
    "algo.advantage.gamma": SHARE,
    "algo.advantage.lambd": SHARE,
    "algo.kl.init_coef": NOT_NEGATIVE,
    "algo.kl.target": SIZE,
    "reward.overlong_penalty_factor": NOT_NEGATIVE,
    "run.grace_seconds": NOT_NEGATIVE,
    "run.watchdog_minutes": NOT_NEGATIVE,
    "run.restarts": NOT_NEGATIVE,
}
RANGES = {name: limits for names, limits in RANGES.items() for name in names.split()}
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
