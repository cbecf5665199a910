"""Token credit in verl: `algorithm.adv_estimator=ktae`, `tempo`, ... Tested with verl 0.9.1, torch 2.13.0.

The trainer's process must import this module. Write a module that imports it and sets `special_token_ids` and, if you
like, `options`, `others` and `values`, and name your module in `VERL_USE_EXTERNAL_MODULES`. Estimators are registered
through verl's public hook. verl does not pass them token ids, so two functions are wrapped to do so:
`_compute_advantage` of verl's trainers (`verl.trainer.ppo.v1`), which read their fields from TransferQueue, and
`compute_advantage` of the old trainer (`trainer.use_v1=False`). `_compute_old_log_prob` of both is wrapped to compute
and keep figures of the policy. A separate trainer class does not work, because verl compares `trainer.v1.trainer_mode`
with its own names, for example to choose a replay buffer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from verl.trainer.ppo import core_algos, ray_trainer

from openrlhf_ktae.adapters import Values, chosen, given_values, in_prompt
from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.credit import CreditBatch, Estimator, estimators
from openrlhf_ktae.ktae import KTAEConfig

options = KTAEConfig()
others: dict[str, Any] = {}
"""Options of estimators by name. One without an entry uses `options` if they are of its type, or else its defaults."""
special_token_ids: tuple[int, ...] | None = None
"""Ids that never get a value: the tokenizer's `all_special_ids`. They must be set, or the end-of-sequence token would
become a key token, since truncated responses lack it."""
values: Values | None = None
"""For estimators that need values of prefixes (`mc_value`): verl samples no continuations of responses."""
_batch: ContextVar[Any] = ContextVar("batch whose advantages are being computed")
_host = ray_trainer.compute_advantage


@contextmanager
def _within_reach(batch: Any) -> Iterator[None]:
    token = _batch.set(batch)
    try:
        yield
    finally:
        _batch.reset(token)


def compute_advantage(data: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute advantages as verl does, with the batch available to the estimator."""
    if "responses" not in data.batch:  # either `keep_figures_of_v1` has set the batch, or nothing has
        return _host(data, *args, **kwargs)
    with _within_reach(data):
        return _host(data, *args, **kwargs)


class Source(NamedTuple):
    """How verl's batch gives an input of an estimator."""

    fields: tuple[str, ...]
    """verl's names of the tensors that it is made from."""
    way_out: str = "use a trainer of verl's own"
    """What to do if a batch lacks one of them."""
    made: Callable[..., torch.Tensor] = torch.Tensor.float
    """Returns the input (B, T), given the tensors."""


def _values(*tensors: torch.Tensor) -> torch.Tensor:
    assert values is not None  # or `chosen` would have refused
    return given_values(values, *tensors)


RECOMPUTED = "set algorithm.rollout_correction.bypass_mode=False"
SOURCES = {
    "log_probs": Source(("old_log_probs",)),
    "entropies": Source(("entropy",), RECOMPUTED),
    "sum_squares": Source(("sum_pi_squared",), RECOMPUTED),
    "in_prompt": Source(("responses", "prompts", "attention_mask"), made=in_prompt),
    "values": Source(("responses", "prompts", "attention_mask", "response_mask"), made=_values),
}
"""Input of an estimator, a name in `credit.NEEDS` -> its source."""


def _chosen(name: str) -> Estimator:
    return chosen("algorithm.adv_estimator", name, values, "openrlhf_ktae.adapters.verl.values")


def credited_advantages(
    name: str, token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: Any, config: Any = None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return GRPO's advantages plus token credit (B, T), as advantages and as returns. A rollout is correct if its
    `acc`, or without one its score, is above `options.correct_threshold`."""
    data, one = _batch.get(None), _chosen(name)
    if data is None or "responses" not in data.batch or "token_level_scores" not in data.batch:
        raise RuntimeError(f"{name} needs responses and token_level_scores in the batch: use a trainer of verl's own")
    if special_token_ids is None:
        raise RuntimeError(
            "set openrlhf_ktae.adapters.verl.special_token_ids = tuple(tokenizer.all_special_ids) in the module that "
            "VERL_USE_EXTERNAL_MODULES names (docs/ktae.md)"
        )
    by_std = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
    base_BT, _ = core_algos.compute_grpo_outcome_advantage(
        token_level_rewards, response_mask, index, norm_adv_by_std_in_grpo=by_std
    )
    acc_B = data.non_tensor_batch.get("acc")
    scores_B = data.batch["token_level_scores"].sum(-1) if acc_B is None else np.asarray(acc_B, dtype=np.float64)
    groups_B = np.unique(index, return_inverse=True)[1]
    needs: dict[str, Any] = {}
    for need, (fields, way_out, made) in ((need, SOURCES[need]) for need in one.needs):
        if missing := [field for field in fields if field not in data.batch]:
            raise RuntimeError(f"algorithm.adv_estimator={name}: the batch has no {', '.join(missing)}; {way_out}")
        needs[need] = made(*(data.batch[field] for field in fields))
    labels = scores_B, groups_B, base_BT, special_token_ids, options.correct_threshold
    batch = CreditBatch.from_tables(data.batch["responses"], response_mask, *labels, **needs)
    own = others.get(name, options if one.options is KTAEConfig else None)
    advantages_BT = base_BT + one(batch, own).added_N.view(base_BT.shape).to(base_BT.device)
    return advantages_BT, advantages_BT


def registered(name: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Register an estimator with verl; return the function."""

    def advantages(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return credited_advantages(name, *args, **kwargs)

    advantages.__name__ = f"{name}_advantages"
    core_algos.register_adv_est(name)(advantages)
    return advantages


ktae_advantages = registered("ktae")
for _other in sorted(set(estimators()) - {"ktae"}):
    registered(_other)


ray_trainer.compute_advantage = compute_advantage


def _fields(trainer: Any) -> list[str] | None:
    """Return verl's names of what the trainer's estimator needs; None if it is one of verl's own."""
    if (name := trainer.config.algorithm.adv_estimator) not in estimators():
        return None
    return [field for need in _chosen(name).needs for field in SOURCES[need].fields]


def keep_figures_of_v1() -> None:
    """Make verl's trainers also fetch responses, verdicts and needed figures before they compute advantages."""
    import transfer_queue
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.workers.utils.padding import response_from_nested

    log_probs, advantages = PPOTrainer._compute_old_log_prob, PPOTrainer._compute_advantage

    def with_sums(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        batch.extra_info["calculate_sum_pi_squared"] = "sum_pi_squared" in (_fields(self) or ())
        found = log_probs(self, batch, metrics)
        batch.extra_info.pop("calculate_sum_pi_squared")  # not for the update
        return found

    def with_fields(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        needed = _fields(self)
        if needed is None:
            return advantages(self, batch, metrics)
        fields = ["responses", "rm_scores", "extra_fields", *needed]
        found = transfer_queue.kv_batch_get(batch.keys, batch.partition_id, select_fields=fields)
        verdicts = [_verdict(extra) for extra in found.pop("extra_fields").tolist()]
        if "prompts" in found:
            found["attention_mask"] = torch.ones_like(found["prompts"])
        if "sum_pi_squared" in found:  # of prompts and responses
            found["sum_pi_squared"] = response_from_nested(found["sum_pi_squared"], found["responses"])
        tensors = found.to_padded_tensor()
        tensors["token_level_scores"] = tensors["rm_scores"]
        others = {} if None in verdicts else {"acc": np.array(verdicts, dtype=np.float64)}
        with _within_reach(SimpleNamespace(batch=tensors, non_tensor_batch=others)):
            return advantages(self, batch, metrics)

    PPOTrainer._compute_old_log_prob, PPOTrainer._compute_advantage = with_sums, with_fields


def keep_figures_of_v0() -> None:
    """Make the old trainer compute sums of squares, and keep entropies in its batch, if the estimator needs them."""
    host = ray_trainer.RayPPOTrainer._compute_old_log_prob

    def with_figures(self: Any, batch: Any) -> Any:
        needed, actor = _fields(self) or (), self.config.actor_rollout_ref.actor
        with temporarily(actor, calculate_sum_pi_squared="sum_pi_squared" in needed or actor.calculate_sum_pi_squared):
            found, speed = host(self, batch)
        if "entropy" in needed:
            found.batch["entropy"] = found.batch["entropys"]  # which the trainer takes away
        return found, speed

    ray_trainer.RayPPOTrainer._compute_old_log_prob = with_figures


def _verdict(extra: Any) -> float | None:
    """Return the `acc` that a reward function returned in addition to its score; None without one."""
    said = extra.get("reward_extra_info") if isinstance(extra, dict) else None
    return said.get("acc") if said else None


keep_figures_of_v1()
keep_figures_of_v0()
