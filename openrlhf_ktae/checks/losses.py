"""Contradictory options of the loss and of its monitored limits."""

from collections.abc import Iterator
from types import SimpleNamespace

from openrlhf_ktae.base.batches import one_update


def loss_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield contradictions in length shaping, monitored limits and the normaliser of the loss."""
    buffer, limit = args.reward.overlong_buffer_len, args.rollout.max_new_tokens or args.data.max_len
    if buffer is not None and not 0 < buffer <= limit:
        yield (
            f"--reward.overlong_buffer_len {buffer:g}: must be above 0 and at most the longest response ({limit}); the "
            "DAPO paper takes a fifth of it"
        )
    rollouts = args.rollout.batch_size * args.rollout.n_samples_per_prompt
    if args.faults.max_kl is not None and args.algo.kl.init_coef == 0 and one_update(args, rollouts):
        yield (
            f"--faults.max_kl {args.faults.max_kl:g}: KL cannot be measured without a reference model when a batch "
            "is one update; give --algo.kl.init_coef above 0, or leave it out"
        )
    counted = args.algo.credit.name or args.algo.dynamic_filtering_enable
    if args.faults.min_mixed_share is not None and not counted:
        yield (
            f"--faults.min_mixed_share {args.faults.min_mixed_share:g}: mixed groups are counted by token-level "
            "credit and by dynamic sampling; give --advantage_estimator ktae (--algo.credit.shadow true only counts), "
            "or --algo.dynamic_filtering_enable"
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
            "--actor.dr_grpo_norm true: the gspo loss of --actor.policy_loss_type is a mean over responses and does "
            "not count tokens; leave one of them out"
        )
    if args.actor.dr_grpo_norm and args.actor.loss_agg_mode != "token-mean":
        yield (
            f"--actor.loss_agg_mode {args.actor.loss_agg_mode}: --actor.dr_grpo_norm replaces the number of tokens, so "
            "it needs token-mean"
        )
