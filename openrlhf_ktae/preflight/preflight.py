"""What is refused before any model loads: one sentence each, with the option, its value and the way out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from openrlhf_ktae.backend import Backend
from openrlhf_ktae.preflight.data_columns import data_problems
from openrlhf_ktae.preflight.lora import lora_problems
from openrlhf_ktae.preflight.model_folder import config_of, model_problems
from openrlhf_ktae.preflight.replay import replay_problems
from openrlhf_ktae.preflight.round_trip import round_trip
from openrlhf_ktae.preflight.user_code import judge_problems
from openrlhf_ktae.run.batches import data_ranks, models, one_update, world

SCHEDULES = ("cosine_with_min_lr", "constant", "constant_with_warmup", "linear", "cosine")
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
NAME_BYTES = 255  # of one part of a path, in all usual file systems


class Refused(ValueError):
    """The run cannot work as asked; the message has one line for each reason."""


def preflight(args: SimpleNamespace, backend: Backend) -> list[str]:
    """Raise `Refused` with every reason found; return notes on what will be repaired."""
    problems = [
        *parallel_problems(args),
        *batch_problems(args),
        *_lengths(args),
        *_loss(args),
        *_models(args),
        *lora_problems(args),
        *_texts(args),
        *_places(args),
        *(replay_problems(args) if args.train.replay else (*data_problems(args), *judge_problems(args))),
        *backend.problems(args),
    ]
    notes: list[str] = []
    if not problems:  # only then: it loads transformers, which takes seconds
        problems, notes = round_trip(args)
    if problems:
        raise Refused("\nerror: ".join(problems))
    return notes


def parallel_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield what is wrong with the numbers of engines, ranks and parts."""
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
    """Yield what does not fit the devices that several models are put on."""
    numbers = {model: _numbers(args, model) for model in models(args)}
    colocated = args.train.colocate_actor_ref or args.train.colocate_all
    if "ref" in numbers and colocated and numbers["ref"] != numbers["actor"]:
        yield (
            f"{_written(args, 'ref')}: a colocated reference model needs the actor's numbers; set them equal, or "
            "--algo.kl.init_coef 0 for no reference model"
        )
    judges = [model for model in numbers if model in ("critic", "reward")]
    if args.train.colocate_critic_reward and "critic" in numbers:
        if numbers["critic"] != _numbers(args, "reward"):  # the host asks for it without a reward model, too
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
    """Yield batch sizes that do not divide, so that ranks would wait for each other: `batches` says why."""
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
                "which --train.dynamic_batch_enable levels its micro-batches; give it the actor's numbers"
            )
        micro = args.train.micro_batch_size * ranks  # DeepSpeed wants it whole, though a dynamic batch levels itself
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
            "gradient of the last micro-batch alone; use --ds.zero_stage 3"
        )
    generated = args.rollout.vllm_generate_batch_size
    if generated and generated < args.rollout.batch_size:
        yield (
            f"--rollout.vllm_generate_batch_size {generated}: below --rollout.batch_size {args.rollout.batch_size}, "
            "every step would silently be smaller, or have nothing to train on; leave it out or make it equal"
        )


def _next_multiple(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _lengths(args: SimpleNamespace) -> Iterator[str]:
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
    """Return the positions of a local model; None where a scaled rotary embedding or another file decides."""
    config = config_of(model)
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    scaled = not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default"
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    return longest if isinstance(longest, int) and not scaled else None


def _loss(args: SimpleNamespace) -> Iterator[str]:
    """Yield what contradicts itself among length shaping and the normaliser of the loss."""
    buffer, limit = args.reward.overlong_buffer_len, args.rollout.max_new_tokens or args.data.max_len
    if buffer is not None and not 0 < buffer <= limit:
        yield (
            f"--reward.overlong_buffer_len {buffer:g}: must be above 0 and at most the longest response ({limit}); the "
            "DAPO paper takes a fifth of it"
        )
    rollouts = args.rollout.batch_size * args.rollout.n_samples_per_prompt
    if args.faults.max_kl is not None and args.algo.kl.init_coef == 0 and one_update(args, rollouts):
        yield (
            f"--faults.max_kl {args.faults.max_kl:g}: there is nothing to measure without a reference model where "
            "a batch is one update; give --algo.kl.init_coef above 0, or leave it out"
        )
    counted = args.algo.ktae.enable or args.algo.dynamic_filtering_enable
    if args.faults.min_mixed_share is not None and not counted:
        yield (
            f"--faults.min_mixed_share {args.faults.min_mixed_share:g}: mixed groups are counted by KTAE and by "
            "dynamic sampling; give --advantage_estimator ktae (--algo.ktae.shadow true only counts), or "
            "--algo.dynamic_filtering_enable"
        )
    if args.faults.min_entropy is not None and args.actor.entropy_coef is None:
        yield (
            f"--faults.min_entropy {args.faults.min_entropy:g}: entropy is not computed; give --actor.entropy_coef 0 "
            "(or the coefficient you want)"
        )
    if args.actor.dr_grpo_norm and args.rollout.max_new_tokens is None:
        yield "--actor.dr_grpo_norm true: divides by --rollout.max_new_tokens, which is not set; give it"
    if args.actor.dr_grpo_norm and args.actor.policy_loss_type == "gspo":
        yield (
            "--actor.dr_grpo_norm true: with --actor.policy_loss_type gspo the loss is a mean over responses, whose "
            "tokens are not counted; leave one of them out"
        )
    if args.actor.dr_grpo_norm and args.actor.loss_agg_mode != "token-mean":
        yield (
            f"--actor.loss_agg_mode {args.actor.loss_agg_mode}: --actor.dr_grpo_norm replaces the number of tokens, so "
            "it needs token-mean"
        )


def _models(args: SimpleNamespace) -> Iterator[str]:
    """Yield what is wrong with the models that the run loads."""
    actor, critic, reward = (part.model_name_or_path for part in (args.actor, args.critic, args.reward))
    trusted = args.model.trust_remote_code
    if not actor:
        yield "--actor.model_name_or_path (--pretrain): give a model folder or a name on the Hugging Face Hub"
    else:
        yield from model_problems("--actor.model_name_or_path", actor, trusted, generates=True)
    if critic and critic != actor:
        yield from model_problems("--critic.model_name_or_path", critic, trusted, generates=False)
    if reward and reward != critic and not args.reward.remote_url:
        yield from model_problems("--reward.model_name_or_path", reward, trusted, generates=False)


def _texts(args: SimpleNamespace) -> Iterator[str]:
    """Yield what is wrong with names that only another library knows, and with the template of prompts."""
    schedule = args.actor.lr_scheduler
    if schedule not in SCHEDULES and schedule not in _all_schedules():
        yield f"--actor.lr_scheduler {schedule}: give one of {', '.join(SCHEDULES)}"
    attention = args.ds.attn_implementation
    if attention not in ATTENTION and "/" not in attention:
        yield f"--ds.attn_implementation {attention}: give one of {', '.join(ATTENTION)}"
    folder = Path(args.actor.model_name_or_path or "")
    if args.data.apply_chat_template and os.path.isdir(folder) and not _has_chat_template(folder):
        yield (
            f"--data.apply_chat_template true: the tokenizer in {folder} has no chat template; leave it out, or add "
            "chat_template.jinja to the model"
        )


def _all_schedules() -> list[str]:
    from transformers import SchedulerType  # takes seconds, so the usual ones are not looked up

    return [one.value for one in SchedulerType]


def _has_chat_template(folder: Path) -> bool:
    if any(folder.glob("chat_template*")) or (folder / "additional_chat_templates").is_dir():
        return True
    try:
        return "chat_template" in (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _places(args: SimpleNamespace) -> Iterator[str]:
    """Yield which outputs cannot be written."""
    places = {
        "--run.dir": args.run.dir,
        "--ckpt.output_dir": args.ckpt.output_dir,
        "--ckpt.path": args.ckpt.path,
        "--logger.tensorboard_dir": args.logger.tensorboard_dir,
    }
    for flag, place in places.items():
        if place and (reason := unusable(place)):
            yield f"{flag} {place}: {reason}"


def unusable(place: str) -> str:
    """Return why no folder can be at `place`, in words; empty where one can. A folder is made on trial, and removed."""
    if "\0" in place or any(len(os.fsencode(part)) > NAME_BYTES for part in Path(place).parts):
        return f"no path: a part of it has more than {NAME_BYTES} bytes, or none at all; give a shorter one"
    path = Path(place).absolute()
    nearest = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not nearest.is_dir():
        return f"{nearest} is a file; give a folder"
    try:
        os.rmdir(tempfile.mkdtemp(dir=nearest))
    except OSError:
        return f"nothing can be written in {nearest}; give another folder"
    return ""
