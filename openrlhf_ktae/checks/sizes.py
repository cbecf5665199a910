"""Incompatible device counts, batch sizes and lengths."""

import os
from collections.abc import Iterator
from types import SimpleNamespace

from openrlhf_ktae.base.batches import data_ranks, models, world
from openrlhf_ktae.base.model_config import config_of


def parallel_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield numbers of engines, ranks and parallel parts that do not fit together."""
    engines, tensor_parallel = args.vllm.num_engines, args.vllm.tensor_parallel_size
    ring, tensor = args.ds.ring_attn_size, args.ds.tensor_parallel_size
    for model in models(args):
        devices = world(args, model)
        if devices % (ring * tensor):
            yield (
                f"--ds.ring_attn_size {ring} x --ds.tensor_parallel_size {tensor}: must divide --{model}.num_nodes x "
                f"--{model}.num_gpus_per_node ({devices}); use {_next_multiple(devices, ring * tensor)} devices, or "
                "smaller parts"
            )
    together = args.train.colocate_all and not args.train.async_enable and engines
    if together and world(args) != engines * tensor_parallel:
        yield (
            f"--vllm.num_engines {engines}: with --train.colocate_all, engines x --vllm.tensor_parallel_size "
            f"({tensor_parallel}) must equal --actor.num_nodes x --actor.num_gpus_per_node ({world(args)})"
        )
    yield from _colocated_problems(args)
    if args.ds.tensor_parallel_size > 1 and args.ds.zero_stage == 3:
        yield (
            f"--ds.tensor_parallel_size {args.ds.tensor_parallel_size}: cannot be combined with --ds.zero_stage 3 at "
            "the pinned versions; use --ds.zero_stage 2, or --ds.ring_attn_size for long responses"
        )


def _colocated_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield the problems of models that share devices."""
    numbers = {model: _numbers(args, model) for model in models(args)}
    colocated = args.train.colocate_actor_ref or args.train.colocate_all
    if "ref" in numbers and colocated and numbers["ref"] != numbers["actor"]:
        yield (
            f"{_written(args, 'ref')}: a colocated reference model needs the actor's numbers; set them equal, or "
            "--algo.kl.init_coef 0 for no reference model"
        )
    judges = [model for model in numbers if model in ("critic", "reward")]
    if args.train.colocate_critic_reward and "critic" in numbers:
        if numbers["critic"] != _numbers(args, "reward"):  # the host requires it even without a reward model
            yield (
                f"{_written(args, 'critic')}: with --train.colocate_critic_reward the reward model needs the same "
                f"numbers ({_written(args, 'reward')}); set them equal"
            )
    elif args.train.colocate_all:
        for model in judges:
            if world(args, model) > world(args):
                yield (
                    f"{_written(args, model)}: with --train.colocate_all it shares the actor's {world(args)} devices; "
                    f"give the actor's numbers, {args.actor.num_nodes} and {args.actor.num_gpus_per_node}"
                )


def _numbers(args: SimpleNamespace, model: str) -> tuple[int, int]:
    options = getattr(args, model)
    return options.num_nodes, options.num_gpus_per_node


def _written(args: SimpleNamespace, model: str) -> str:
    nodes, devices = _numbers(args, model)
    return f"--{model}.num_nodes {nodes} --{model}.num_gpus_per_node {devices}"


def batch_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield batch sizes that do not divide evenly, so that ranks would deadlock (see `base.batches`)."""
    rollouts = args.rollout.batch_size * args.rollout.n_samples_per_prompt
    shape = (
        f"--rollout.batch_size {args.rollout.batch_size} x --rollout.n_samples_per_prompt "
        f"{args.rollout.n_samples_per_prompt} = {rollouts} rollouts a step"
    )
    for model in models(args):
        ranks = data_ranks(args, model)
        of_model = "ranks" if model == "actor" else f"ranks of --{model}"
        micro = args.rollout.micro_batch_size * ranks
        if not args.train.dynamic_batch_enable and rollouts % micro:
            yield (
                f"{shape} do not divide into --rollout.micro_batch_size {args.rollout.micro_batch_size} x {ranks} "
                f"{of_model}; use {_next_multiple(rollouts, micro)} rollouts or another micro-batch"
            )
        if args.train.dynamic_batch_enable and data_ranks(args) % ranks:
            yield (
                f"{_written(args, model)}: {ranks} {of_model} do not divide the actor's {data_ranks(args)}, among "
                "which --train.dynamic_batch_enable balances its micro-batches; give it the actor's numbers"
            )
        micro = args.train.micro_batch_size * ranks  # DeepSpeed requires it even for dynamic batches
        if model in ("actor", "critic") and args.train.batch_size % micro:
            yield (
                f"--train.batch_size {args.train.batch_size}: does not divide into --train.micro_batch_size "
                f"{args.train.micro_batch_size} x {ranks} {of_model}; use "
                f"{_next_multiple(args.train.batch_size, micro)}"
            )
    if args.train.batch_size > rollouts or rollouts % args.train.batch_size:
        yield f"--train.batch_size {args.train.batch_size}: must divide the {shape}; use {rollouts} or a divisor of it"
    if args.train.dynamic_batch_enable and args.ds.zero_stage < 3:
        yield (
            f"--ds.zero_stage {args.ds.zero_stage}: with --train.dynamic_batch_enable DeepSpeed 0.19.6 keeps the "
            "gradient of the last micro-batch only; use --ds.zero_stage 3"
        )
    generated = args.rollout.vllm_generate_batch_size
    if generated and generated < args.rollout.batch_size:
        yield (
            f"--rollout.vllm_generate_batch_size {generated}: below --rollout.batch_size {args.rollout.batch_size}, "
            "every step would silently be smaller, or empty; leave it out or make it equal"
        )


def _next_multiple(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def length_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield a response limit that leaves no room for a prompt, and lengths beyond the model's positions."""
    if args.rollout.max_new_tokens is not None and args.rollout.max_new_tokens >= args.data.max_len:
        yield (
            f"--rollout.max_new_tokens {args.rollout.max_new_tokens}: must be below --data.max_len "
            f"{args.data.max_len}, which holds prompt and response"
        )
    longest = _positions(args.actor.model_name_or_path)
    if longest and args.data.max_len > longest and os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") != "1":
        yield (
            f"--data.max_len {args.data.max_len}: {args.actor.model_name_or_path} has {longest} positions "
            f"(max_position_embeddings), and vLLM refuses more; use at most {longest}"
        )


def _positions(model: str | None) -> int | None:
    """Return the positions of a local model; None if unknown or extended by a scaled rotary embedding."""
    config = config_of(model)
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    scaled = not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default"
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    return longest if isinstance(longest, int) and not scaled else None
