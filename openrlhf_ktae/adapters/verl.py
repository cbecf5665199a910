"""Token credit in verl: `algorithm.adv_estimator=ktae`, `tempo`, ... Tested with verl 0.9.1, torch 2.13.0.

The trainer's process must import this module. Write a module that imports it and sets `special_token_ids` and, if you
like, `options` and `others`, and name your module in `VERL_USE_EXTERNAL_MODULES`. Estimators are registered through
verl's public hook. verl does not pass them token ids, so two functions are wrapped to do so: `_compute_advantage` of
verl's trainers (`verl.trainer.ppo.v1`), which read their fields from TransferQueue, and `compute_advantage` of the old
trainer (`trainer.use_v1=False`). `_compute_old_log_prob` is wrapped for `otb`, whose sums of squares verl's trainers do
not ask for. A separate trainer class does not work, because verl compares
`trainer.v1.trainer_mode` with its own names, for example to choose a replay buffer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo import core_algos, ray_trainer

from openrlhf_ktae.credit import CreditBatch, estimators, tokens_in_prompt
from openrlhf_ktae.ktae import KTAEConfig

options = KTAEConfig()
others: dict[str, Any] = {}
"""Options of estimators other than KTAE, by name; an estimator without an entry uses its defaults."""
special_token_ids: tuple[int, ...] | None = None
"""Ids that never get a value: the tokenizer's `all_special_ids`. They must be set, or the end-of-sequence token would
become a key token, since truncated responses lack it."""
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
    if "responses" not in data.batch:  # either `keep_responses_of_v1` has set the batch, or nothing has
        return _host(data, *args, **kwargs)
    with _within_reach(data):
        return _host(data, *args, **kwargs)


SQUARES, CALCULATE_SQUARES = "sum_pi_squared", "calculate_sum_pi_squared"
NEEDED = {
    "log_probs": ("old_log_probs", ""),
    "entropies": (
        "entropy",
        "; only verl's default trainers keep it: trainer.use_v1=True, rollout_correction.bypass_mode=False",
    ),
    "sum_squares": (
        SQUARES,
        "; the old trainer computes it with actor_rollout_ref.actor.calculate_sum_pi_squared=True, verl's default "
        "trainers without rollout_correction.bypass_mode",
    ),
    "in_prompt": ("prompts", ""),
}
"""Input of an estimator -> the field of verl's batch that it is, or is made from, and how to get a batch with it."""
NO_TOKEN = -1  # in place of a prompt's padding


def credited_advantages(
    name: str, token_level_rewards: torch.Tensor, response_mask: torch.Tensor, index: Any, config: Any = None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return GRPO's advantages plus token credit (B, T), as advantages and as returns. A rollout is correct if its
    `acc`, or without one its score, is above `options.correct_threshold`."""
    data, one = _batch.get(None), estimators()[name]
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
    needs: dict[str, Any] = {need: _needed(name, need, data.batch, response_mask) for need in one.needs}
    labels = scores_B, groups_B, base_BT, special_token_ids, options.correct_threshold
    batch = CreditBatch.from_tables(data.batch["responses"], response_mask, *labels, **needs)
    own = options if name == "ktae" else others.get(name)
    advantages_BT = base_BT + one(batch, own).added_N.view(base_BT.shape).to(base_BT.device)
    return advantages_BT, advantages_BT


def _needed(name: str, need: str, batch: Any, response_mask: torch.Tensor) -> torch.Tensor:
    """Return an input of the estimator `name` (B, T). Raises RuntimeError if verl's batch does not have it."""
    field, way = NEEDED.get(need, (need, "; no trainer of verl computes it"))
    if field not in batch:
        raise RuntimeError(f"{name} needs {need} of each token, and verl's batch has no {field}{way}")
    values: torch.Tensor = batch[field]
    if need != "in_prompt":
        return values
    width = values.size(1)
    if "attention_mask" in batch:
        values = values.masked_fill(batch["attention_mask"][:, :width] == 0, NO_TOKEN)
    ids = torch.cat([values, batch["responses"]], dim=1)
    return tokens_in_prompt(ids, torch.cat([torch.zeros_like(values), response_mask], dim=1))[:, width:]


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


def keep_responses_of_v1() -> None:
    """Make verl's trainers also fetch responses, verdicts and an estimator's inputs before they compute advantages."""
    import transfer_queue
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.workers.utils.padding import response_from_nested

    host, host_log_prob = PPOTrainer._compute_advantage, PPOTrainer._compute_old_log_prob

    def with_responses(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        one = estimators().get(self.config.algorithm.adv_estimator)
        if one is None:
            return host(self, batch, metrics)
        needed = [NEEDED[need][0] for need in one.needs if need in NEEDED]
        fields = ["responses", "response_mask", "rm_scores", "extra_fields", *needed]
        found = transfer_queue.kv_batch_get(batch.keys, batch.partition_id, select_fields=fields)
        if SQUARES in found:  # of prompt and response, as the workers left it
            found[SQUARES] = response_from_nested(found[SQUARES], found["response_mask"])
        verdicts = [_verdict(extra) for extra in found.pop("extra_fields").tolist()]
        others = {} if None in verdicts else {"acc": np.array(verdicts, dtype=np.float64)}
        tensors = {"prompts": found.pop("prompts").to_padded_tensor(NO_TOKEN)} if "prompts" in needed else {}
        tensors |= dict(found.to_padded_tensor().items())
        tensors["token_level_scores"] = tensors["rm_scores"]
        with _within_reach(SimpleNamespace(batch=tensors, non_tensor_batch=others)):
            return host(self, batch, metrics)

    def with_squares(self: Any, batch: Any, metrics: dict[str, Any]) -> Any:
        one = estimators().get(self.config.algorithm.adv_estimator)
        needed = one is not None and "sum_squares" in one.needs
        batch.extra_info |= {CALCULATE_SQUARES: True} if needed else {}
        done = host_log_prob(self, batch, metrics)
        for each in (batch, done):  # later passes, such as the reference model's, must not overwrite it
            each.extra_info.pop(CALCULATE_SQUARES, None)
        return done

    PPOTrainer._compute_advantage = with_responses
    PPOTrainer._compute_old_log_prob = with_squares


def _verdict(extra: Any) -> float | None:
    """Return the `acc` that a reward function returned in addition to its score; None without one."""
    said = extra.get("reward_extra_info") if isinstance(extra, dict) else None
    return said.get("acc") if said else None


keep_responses_of_v1()
