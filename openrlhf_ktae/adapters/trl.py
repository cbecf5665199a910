"""Token credit in TRL: `KTAEGRPOTrainer`, a `GRPOTrainer`. Tested with trl 1.16.0, transformers 5.23.0, torch 2.13.0.

Shapes: `B` completions of all processes, `T` positions of the longest one.
"""

from types import SimpleNamespace
from typing import Any

import torch
from trl import GRPOTrainer

from openrlhf_ktae.credit import OF_POLICY, CreditBatch, estimators, tokens_in_prompt
from openrlhf_ktae.ktae import KTAEConfig

TAKEN = (*OF_POLICY, "in_prompt")
"""The inputs that are available, and that an estimator may need; the policy's are at the sampling temperature."""
OF_IMAGES = (
    "pixel_values image_grid_thw num_images num_tiles pixel_attention_mask spatial_shapes image_sizes token_type_ids "
    "mm_token_type_ids image_position_ids"
).split()


class KTAEGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` that adds K, or another estimator's credit, to each token's advantage; advantages become (B, T).

    Args:
        ktae: options of KTAE; the paper's by default.
        estimator: a name in `credit.estimators()`. One that needs log-probabilities or entropies costs a forward pass,
            and `otb` two. `mc_value`, which samples continuations, is refused with ValueError.
        options: options of that estimator; its defaults if None.
        verifier: index in `reward_funcs` of the function that decides whether a completion is correct, unlike those
            for format or length. If it returns None, the verdict is unknown.
    """

    def __init__(
        self,
        *args: Any,
        ktae: KTAEConfig | None = None,
        verifier: int = 0,
        estimator: str = "ktae",
        options: Any = None,
        **kwargs: Any,
    ) -> None:
        if missing := set(estimators()[estimator].needs) - set(TAKEN):
            usable = ", ".join(name for name, one in estimators().items() if set(one.needs) <= set(TAKEN))
            raise ValueError(
                f"estimator={estimator!r}: needs {min(missing)}, which TRL does not compute; give {usable}"
            )
        super().__init__(*args, **kwargs)
        self.ktae, self.verifier = ktae or KTAEConfig(), verifier
        self.estimator, self.options = estimators()[estimator], self.ktae if estimator == "ktae" else options
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
        needs, found = self.estimator.needs, dict[str, torch.Tensor]()
        if not needs:
            return found
        parts = [[output[f"{of}_{what}"] for of in ("prompt", "completion")] for what in ("ids", "mask")]
        ids, mask = (torch.cat(part, dim=1) for part in parts)
        kept, args = output["completion_ids"].size(1), self.args
        if "in_prompt" in needs:
            answered = mask.clone()
            answered[:, :-kept] = 0
            found["in_prompt"] = tokens_in_prompt(ids, answered)[:, -kept:]
        rows = args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size
        images = {name: output[name] for name in OF_IMAGES if name in output}
        inputs = ids, mask, kept, rows
        if "sum_squares" in needs:
            found["sum_squares"] = self._get_per_token_logps_and_entropies(self._sum_squares, *inputs, **images)[0]
        if {"log_probs", "entropies"}.intersection(needs):
            log_probs, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model, *inputs, compute_entropy="entropies" in needs, **images
            )
            made = {"log_probs": log_probs, "entropies": entropies}
            found |= {name: values for name, values in made.items() if name in needs}
        return found

    def _sum_squares(self, labels: Any, fused_lm_head: bool, **inputs: Any) -> SimpleNamespace:
        """Call the model; return each token's sum of squared probabilities, which TRL's fused head lacks.

        They take the place of its log-probabilities, so that TRL splits the batch and its images as usual.
        """
        logits = self.model(**inputs).logits[:, :-1].float() / self.temperature
        return SimpleNamespace(log_probs=torch.nn.functional.pad(logits.softmax(-1).square().sum(-1), (1, 0)))
