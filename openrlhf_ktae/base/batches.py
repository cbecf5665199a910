"""How the rollouts of a step divide into whole groups, micro-batches, ranks and optimiser steps.

The host gives ranks chunks of unequal size when a batch does not divide evenly. Under ZeRO-3 the ranks then deadlock
(openrlhf/trainer/ray/launcher.py, `async_run_method_batch`).
"""

import math
from math import lcm
from types import SimpleNamespace


def models(args: SimpleNamespace) -> list[str]:
    """Return the option groups of the models that run in this job; `actor` comes first."""
    used = {
        "actor": True,
        "ref": args.algo.kl.init_coef > 0,
        "critic": bool(args.critic.model_name_or_path),
        "reward": not args.reward.remote_url,  # the host sets the URL for an agent, too
    }
    return [name for name, is_used in used.items() if is_used]


def world(args: SimpleNamespace, model: str = "actor") -> int:
    """Return the number of ranks of a model."""
    options = getattr(args, model)
    return options.num_nodes * options.num_gpus_per_node


def data_ranks(args: SimpleNamespace, model: str = "actor") -> int:
    """Return the number of data-parallel ranks of a model."""
    return max(1, world(args, model) // args.ds.ring_attn_size // args.ds.tensor_parallel_size)


def rollout_unit(args: SimpleNamespace) -> int:
    """Return the number of which every training step's rollouts must be a multiple.

    Its multiples are whole groups, whole optimiser steps, and equally many experience micro-batches on each rank of
    each model. Dynamic batching balances its micro-batches itself.
    """
    unit = lcm(args.rollout.n_samples_per_prompt, args.train.batch_size)
    ranks = lcm(*(data_ranks(args, model) for model in models(args)))
    if args.train.dynamic_batch_enable:
        return lcm(unit, ranks)
    return lcm(unit, args.rollout.micro_batch_size * ranks)


def one_update(args: SimpleNamespace, rollouts: int) -> bool:
    """Return whether a batch of `rollouts` is used for a single optimiser step."""
    return args.train.max_epochs == 1 and rollouts <= args.train.batch_size


def trainable(rollouts: int, args: SimpleNamespace) -> int:
    """Return how many of `rollouts` a step can train on: the largest multiple of `rollout_unit`."""
    return rollouts - rollouts % rollout_unit(args)


def steps_in_buffer(batch: int, generated: int | None, filtering: bool) -> int:
    """Return the most steps that a surplus prompt waits; 0 with dynamic sampling, which drops stale prompts.

    Each step takes b prompts, and each call samples g. Fewer than b are left before a call, and their number is a
    multiple of the greatest common divisor of b and g.
    """
    generated = generated or batch
    return 0 if filtering else -(-(generated - math.gcd(batch, generated)) // batch)
