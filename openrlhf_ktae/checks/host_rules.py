"""Combinations that the host rejects with a bare assertion or crashes on, refused with option, value and way out.

These checks run first, on the flat options; the host's own validation runs afterwards, unchanged.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

GROUPED = ("group_norm", "dr_grpo", "rloo", "reinforce_baseline")
"""Estimators that compare the rollouts of one prompt. Each can be the base of KTAE; the first is the default."""


def host_problems(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each combination that OpenRLHF 0.11.2 does not support."""
    yield from _batches(options)
    yield from _modes(options)
    yield from _correction(options)
    if options["use_ms"] and importlib.util.find_spec("modelscope") is None:
        yield "--use_ms true: the package modelscope is not installed; install it, or leave the option out"


def _batches(options: Mapping[str, Any]) -> Iterator[str]:
    engines, samples = options["vllm.num_engines"], options["rollout.n_samples_per_prompt"]
    if engines is None or engines < 1:
        yield f"--vllm.num_engines {engines}: vLLM generates the rollouts; give at least 1"
    estimator = options["algo.advantage.estimator"]
    if estimator in GROUPED and samples < 2:
        yield (
            f"--rollout.n_samples_per_prompt {samples}: {estimator} compares the rollouts of one prompt; give at least "
            "2, or --advantage_estimator reinforce"
        )
    rollouts, micro = samples * options["rollout.batch_size"], options["rollout.micro_batch_size"]
    world = options["actor.num_nodes"] * options["actor.num_gpus_per_node"]
    ranks = max(1, world // options["ds.ring_attn_size"] // options["ds.tensor_parallel_size"])
    if rollouts // micro < ranks:
        yield (
            f"--rollout.batch_size {options['rollout.batch_size']} x --rollout.n_samples_per_prompt {samples} = "
            f"{rollouts} rollouts a step: fewer than --rollout.micro_batch_size {micro} x {ranks} ranks; use at least "
            f"{micro * ranks} rollouts, or fewer --actor.num_gpus_per_node ({options['actor.num_gpus_per_node']})"
        )
    generated = options["rollout.vllm_generate_batch_size"] or 0
    if generated > options["rollout.batch_size"] and not options["train.async_enable"]:
        yield (
            f"--rollout.vllm_generate_batch_size {generated}: above --rollout.batch_size "
            f"{options['rollout.batch_size']} only with --train.async_enable true; leave it out"
        )


def _correction(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield combinations that the host's loss refuses only after the models are loaded."""
    level, mode, gating, threshold = (
        options[f"algo.advantage.is_correction_{name}"] for name in ("level", "mode", "gating", "threshold")
    )
    written = " ".join(f"{value:g}" for value in threshold)
    if len(threshold) not in (1, 2):
        yield f"--algo.advantage.is_correction_threshold {written}: give HIGH, or LOW HIGH"
    if mode == "clip" and (level == "seq" or gating != "ratio"):
        yield (
            "--algo.advantage.is_correction_mode clip: works on token ratios, not with --algo.advantage."
            f"is_correction_level {level} and --algo.advantage.is_correction_gating {gating}; give mask, or token and "
            "ratio"
        )
    if level != "off" and gating != "ratio" and len(threshold) == 2 and threshold[0] > 0:
        yield (
            f"--algo.advantage.is_correction_threshold {written}: with --algo.advantage.is_correction_gating {gating} "
            "there is only an upper bound; give one number, such as 0.05"
        )


def _modes(options: Mapping[str, Any]) -> Iterator[str]:
    if options["train.partial_rollout_enable"] and not options["train.async_enable"]:
        yield "--train.partial_rollout_enable true: requires --train.async_enable true; give it, or leave this out"
    images = options["data.max_images_per_prompt"]
    if images > 0 and options["algo.advantage.estimator"] == "gae":
        yield (
            f"--data.max_images_per_prompt {images}: there is no critic for vision-language models; give another "
            "--advantage_estimator than gae"
        )
    for name in ("ds.packing_samples", "train.dynamic_batch_enable"):
        if images > 0 and options[name]:
            yield f"--data.max_images_per_prompt {images}: images cannot be packed; give --{name} false"
    judged_by_model = options["reward.model_name_or_path"] and not (
        options["reward.remote_url"] or options["train.agent_func_path"]
    )
    for name in ("eval.dataset", "algo.dynamic_filtering_enable"):
        if judged_by_model and options[name]:
            yield (
                f"--{name} {options[name]}: --reward.model_name_or_path scores answers only when they are trained on, "
                "too late for this; leave one of them out, or serve the model at --reward.remote_url"
            )
