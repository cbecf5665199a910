"""Token credit in TRL: `KTAEGRPOTrainer`, a `GRPOTrainer`. Tested with trl 1.16.0, transformers 5.23.0, torch 2.13.0.

Shapes: `B` completions of all processes, `T` positions of the longest one.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from openrlhf_ktae.adapters import Values, chosen, given_values, in_prompt
from openrlhf_ktae.base.temporarily import temporarily
from openrlhf_ktae.credit import CreditBatch
from openrlhf_ktae.ktae import KTAEConfig

OF_PASS: dict[str, Callable[[Any], torch.Tensor]] = {
    "log_probs": lambda output: output.log_probs,
    "entropies": lambda output: output.entropy,
    "sum_squares": lambda output: output.log_sum_sq_probs.exp(),
}
"""The inputs in `credit.NEEDS` that TRL's forward pass gives at the sampling temperature -> how, from its output."""
OF_IMAGES = (
    "pixel_values image_grid_thw num_images num_tiles pixel_attention_mask spatial_shapes image_sizes token_type_ids "
    "mm_token_type_ids image_position_ids"
).split()


class KTAEGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` that adds K, or another estimator's credit, to each token's advantage; advantages become (B, T).

    Args:
        ktae: options of KTAE; the paper's by default.
        estimator: a name in `credit.estimators()`. One that needs figures of the policy costs a forward pass.
        options: options of that estimator. If None, `ktae` for those with KTAE's options, defaults for others.
        verifier: index in `reward_funcs` of the function that decides whether a completion is correct, unlike those
            for format or length. If it returns None, the verdict is unknown.
        values: returns values of prefixes (`adapters.Values`), for estimators that need them (`mc_value`). TRL cannot
            continue completions: without it they are refused with ValueError.
    """

    def __init__(
        self,
        *args: Any,
        ktae: KTAEConfig | None = None,
        verifier: int = 0,
        estimator: str = "ktae",
        options: Any = None,
        values: Values | None = None,
        **kwargs: Any,
    ) -> None:
        self.estimator, self.values = chosen("estimator", estimator, values, "values="), values
        self.ktae, self.verifier = ktae or KTAEConfig(), verifier
        self.options = self.ktae if options is None and self.estimator.options is KTAEConfig else options
        sums = "sum_squares" in self.estimator.needs
        with temporarily(grpo_trainer, add_fused_lm_head=_head_with_sums) if sums else nullcontext():
            super().__init__(*args, **kwargs)
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        self._special_ids = tuple(tokenizer.all_special_ids)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)  # of all processes, in rank order
        self._scores_B = rewards[:, self.verifier]
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        ids, mask = output["completion_ids"], output["completion_mask"] * output.get("tool_mask", 1)
        rows, positions = ids.shape
        own = {"ids": ids, "mask": mask, **self._needed(output)}
        needs = self.accelerator.gather(self.accelerator.pad_across_processes(own, dim=1))  # a group may span processes
        ids_BT, mask_BT = needs.pop("ids"), needs.pop("mask")
        mode, samples = ("train", self.num_generations) if self.model.training else ("eval", self.num_generations_eval)
        groups_B = torch.arange(len(ids_BT)) // samples
        base_B = self.accelerator.gather(output["advantages"])
        labels = self._scores_B, groups_B, base_B, self._special_ids, self.ktae.correct_threshold
        batch = CreditBatch.from_tables(ids_BT, mask_BT, *labels, **needs)
        added_BT = self.estimator(batch, self.options).added_N.view(ids_BT.shape)
        first = self.accelerator.process_index * rows
        own_BT = added_BT[first : first + rows, :positions].to(output["advantages"].device)
        output["advantages"] = output["advantages"][:, None] + own_BT
        self._metrics[mode][f"{self.estimator.metrics_prefix}/mixed_group_share"].append(float(batch.mixed_Q.mean()))
        return output

    @torch.no_grad()
    def _needed(self, output: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the estimator's inputs, (rows, T) each; the policy's are computed before its update."""
        needs = self.estimator.needs
        found = dict[str, torch.Tensor]()
        texts = output["completion_ids"], output["prompt_ids"], output["prompt_mask"]
        if "in_prompt" in needs:
            found["in_prompt"] = in_prompt(*texts)
        if "values" in needs and self.values is not None:
            found["values"] = given_values(self.values, *texts, output["completion_mask"])
        if made := [need for need in needs if need in OF_PASS]:
            ids, mask = (
                torch.cat([output[f"{of}_{what}"] for of in ("prompt", "completion")], 1) for what in ("ids", "mask")
            )
            kept, args = output["completion_ids"].size(1), self.args
            rows = args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size
            images = {name: output[name] for name in OF_IMAGES if name in output}
            outputs = list[Any]()

            def watched(**inputs: Any) -> Any:
                outputs.append(self.model(**inputs))
                return outputs[-1]

            self._get_per_token_logps_and_entropies(watched, ids, mask, kept, rows, **images)
            found |= {need: torch.cat([OF_PASS[need](one)[:, -kept:] for one in outputs]) for need in made}
        return found


def _head_with_sums(*args: Any, outputs: tuple[str, ...] = ("log_probs",), **kwargs: Any) -> None:
    """Add TRL's head to a model, and let its passes also give sums of squared probabilities."""
    _host_head(*args, outputs=(*outputs, "log_sum_sq_probs"), **kwargs)


_host_head = grpo_trainer.add_fused_lm_head
