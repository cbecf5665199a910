"""Rollouts of a member of `examples/chains` in plain torch, as input for token-credit estimators.

Legend as in `stacked_qwen2`: `S` models, `B` rollouts of each; a group's rollouts are adjacent.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stacked_qwen2 import Forward, Weights, stacked
from transformers import AutoTokenizer, Qwen2ForCausalLM

from openrlhf_ktae.credit import CreditBatch, tokens_in_prompt

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES / "chains"))
from make_model import longest_response  # noqa: E402
from make_task import Knobs, Problem, judge, words_of  # noqa: E402

ORACLE = EXAMPLES / "chains/oracle.py"


class Member:
    """Model, tokenizer and knobs from a folder written by `make_model.py`."""

    def __init__(self, folder: Path) -> None:
        known = json.loads((folder / "knobs.json").read_text())
        self.name, self.measured = folder.name, known["measured"]
        self.knobs = Knobs(**{field.name: known[field.name] for field in fields(Knobs)})
        self.model = Qwen2ForCausalLM.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.forward = Forward(self.model.config)
        self.pad, self.end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        self.most = longest_response(self.knobs)

    def weights(self, copies: int = 1) -> Weights:
        """Return the model's weights, stacked `copies` times."""
        return stacked(self.model, copies)

    def prompts(self, problems: Sequence[Problem], group: int) -> torch.Tensor:
        """Return each prompt's ids `group` times, (B, T); prompts of one member have equal length."""
        return torch.tensor([self.tokenizer.encode(p.prompt) for p in problems]).repeat_interleave(group, 0)

    def scores(self, ids_BT: torch.Tensor, problems: Sequence[Problem]) -> torch.Tensor:
        """Return 1 for right rollouts and 0 for wrong ones; a problem's rollouts are adjacent."""
        rows, each = ids_BT.tolist(), len(ids_BT) // len(problems)
        return torch.tensor([judge(words_of(row), str(problems[i // each].results[-1])) for i, row in enumerate(rows)])

    def credit_batch(
        self, ids_BT: torch.Tensor, log_probs_BTV: torch.Tensor, scores_B: torch.Tensor, group: int, prompt: int
    ) -> CreditBatch:
        """Return the estimators' input: rows without their first token, with all figures of the policy's pass."""
        ids = ids_BT[:, 1:]
        mask = ids != self.pad
        mask[:, : prompt - 1] = False
        probs = log_probs_BTV.exp()
        chosen = log_probs_BTV.gather(-1, ids[..., None]).squeeze(-1)
        needs: dict[str, Any] = {
            "log_probs": chosen,
            "entropies": -(probs * log_probs_BTV).sum(-1),
            "sum_squares": probs.pow(2).sum(-1),
            "in_prompt": tokens_in_prompt(ids, mask),
        }
        groups = torch.arange(len(ids)) // group
        return CreditBatch.from_tables(
            ids, mask, scores_B, groups, group_normalised(scores_B, group), (self.pad, self.end), **needs
        )


def group_normalised(scores_B: torch.Tensor, group: int) -> torch.Tensor:
    """Return GRPO's advantages (B,)."""
    scores = scores_B.view(-1, group)
    return ((scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-9)).flatten()


def advantages(batch: CreditBatch, added_N: torch.Tensor) -> np.ndarray:
    """Return the advantages of the action tokens (A,)."""
    return (batch.base_N + added_N).numpy()[batch.at_A]
