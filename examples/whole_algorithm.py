"""GRPO with key-token advantages (KTAE) from top to bottom: one process, one CPU, no Ray, no vLLM.

    python examples/whole_algorithm.py                          # 40 steps, well under a minute
    python examples/whole_algorithm.py --variant calibrated --seed 1
    python examples/whole_algorithm.py --ktae-weight 0          # plain GRPO

Each step samples a group of answers to each prompt, judges them with math-verify, turns the scores into
advantages, adds the key-token value of each token's id, and takes one optimiser step on the clipped loss. The
distributed trainer uses the same mathematics; this file is for reading.

Shapes: P prompts, G answers to each, B = P x G, S tokens of a padded prompt, T tokens of an answer.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from math_verify import parse, verify
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from openrlhf_ktae.ktae import KTAEConfig, compute_ktae_advantages

HERE = Path(__file__).resolve().parent
MAX_NEW_TOKENS = 32
CLIP = 0.2  # the probability ratio is clipped to 1 +- CLIP (PPO)
MAX_GRADIENT_NORM = 1.0
STD_EPSILON = 1e-9
NORMAL_95 = 1.96  # half-width of a 95 % interval, in standard errors

Row = dict[str, str]


@dataclass
class Rollouts:
    """B answers; the G answers to one prompt are adjacent."""

    sequences: torch.Tensor  # (B, S + T) ids: left-padded prompt, then answer
    attention: torch.Tensor  # (B, S + T) 1 where there is a token
    action_BT: torch.Tensor  # 1 on the answer's tokens, including its end token
    scores_B: torch.Tensor  # 1 for right, 0 for wrong


def judge(text: str, label: str) -> float:
    """Score an answer: 1 if its `\\boxed{}` equals `label`, else 0."""
    if "\\boxed" not in text:
        return 0.0  # an unboxed number gets no reward
    return float(verify(parse(f"\\boxed{{{label}}}"), parse(text)))


@torch.no_grad()
def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], group: int) -> Rollouts:
    """Sample `group` answers to each row's prompt at temperature 1 and judge them."""
    prompts = tokenizer([row["input"] for row in rows for _ in range(group)], padding=True, return_tensors="pt")
    sequences = model.generate(**prompts, max_new_tokens=MAX_NEW_TOKENS, do_sample=True, top_k=0)  # type: ignore[operator]
    answers_BT = sequences[:, prompts.input_ids.shape[1] :]
    ended_BT = answers_BT == tokenizer.eos_token_id
    action_BT = (ended_BT.cumsum(1) - ended_BT.long() == 0).long()  # no end token before this one
    texts = tokenizer.batch_decode(answers_BT, skip_special_tokens=True)
    scores_B = torch.tensor([judge(text, rows[i // group]["label"]) for i, text in enumerate(texts)])
    return Rollouts(sequences, torch.cat([prompts.attention_mask, action_BT], 1), action_BT, scores_B)


def answer_log_probs(model: PreTrainedModel, rollouts: Rollouts) -> torch.Tensor:
    """Return the log-probability of each answer token under `model`, (B, T)."""
    n_answer = rollouts.action_BT.shape[1]
    positions = (rollouts.attention.cumsum(1) - 1).clamp(min=0)
    output = model(rollouts.sequences, attention_mask=rollouts.attention, position_ids=positions)
    log_probs = output.logits[:, -n_answer - 1 : -1].log_softmax(-1)  # logits at t predict token t + 1
    return log_probs.gather(-1, rollouts.sequences[:, -n_answer:, None]).squeeze(-1)


def group_normalised(scores_B: torch.Tensor, group: int) -> torch.Tensor:
    """Return GRPO's advantages (B,): how many standard deviations each score lies above the mean of its group."""
    scores_PG = scores_B.view(-1, group)
    centred_PG = scores_PG - scores_PG.mean(1, keepdim=True)
    return (centred_PG / (scores_PG.std(1, keepdim=True) + STD_EPSILON)).flatten()


def token_advantages(rollouts: Rollouts, group: int, config: KTAEConfig, special_ids: list[int]) -> torch.Tensor:
    """Return the rollout's advantage plus the key-token value of each id, (B, T); 0 after the end."""
    n_answer = rollouts.action_BT.shape[1]
    return compute_ktae_advantages(
        rollouts.sequences[:, -n_answer:],
        rollouts.action_BT,
        rollouts.scores_B,
        torch.arange(len(rollouts.scores_B)) // group,
        group_normalised(rollouts.scores_B, group),
        config=config,
        special_token_ids=special_ids,
    )


def clipped_loss(
    new_BT: torch.Tensor, old_BT: torch.Tensor, advantages_BT: torch.Tensor, action_BT: torch.Tensor
) -> torch.Tensor:
    """Return PPO's clipped surrogate loss, averaged over the batch's answer tokens."""
    ratio_BT = (new_BT - old_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - CLIP, 1 + CLIP)
    gain_BT = torch.min(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    return -(gain_BT * action_BT).sum() / action_BT.sum()


def update(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    advantages_BT: torch.Tensor,
    epochs: int,
) -> None:
    """Take `epochs` optimiser steps on the same rollouts; from the second on, the clip matters."""
    with torch.no_grad():
        old_BT = answer_log_probs(model, rollouts)
    for _ in range(epochs):
        new_BT = answer_log_probs(model, rollouts)
        loss = clipped_loss(new_BT, old_BT, advantages_BT, rollouts.action_BT)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()


def accuracy(scores_B: torch.Tensor) -> str:
    """Return the share of right answers, one per problem, with its 95 % interval (Wilson)."""
    n, share, z2 = len(scores_B), float(scores_B.mean()), NORMAL_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return f"{share:.1%} (95 % interval {centre - half:.1%} to {centre + half:.1%}, {n} problems)"


def read_rows(path: Path) -> list[Row]:
    """Return the problems of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def parse_arguments() -> argparse.Namespace:
    """Parse the options; defaults are tuned for the quickstart's task."""
    parser = argparse.ArgumentParser(description="GRPO with KTAE on a CPU, in one readable file.")
    parser.add_argument("--model", type=Path, default=HERE / "quickstart/model")
    parser.add_argument("--data", type=Path, default=HERE / "quickstart/data", help="train and held-out files")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=8, help="prompts per step")
    parser.add_argument("--group", type=int, default=8, help="answers per prompt")
    parser.add_argument("--epochs", type=int, default=1, help="optimiser steps on each batch")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--variant", choices=("paper", "reference", "calibrated"), default="paper")
    parser.add_argument("--ktae-weight", type=float, default=1.0, help="factor of KTAE; 0 is plain GRPO")
    parser.add_argument("--heldout", type=int, default=200, help="held-out problems to evaluate on")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Evaluate, train, evaluate again."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    train, heldout = (read_rows(args.data / f"{name}.jsonl") for name in ("train", "heldout"))
    random.Random(args.seed).shuffle(train)
    config = KTAEConfig(variant=args.variant, weight=args.ktae_weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)

    print("held-out before:", accuracy(sample(model, tokenizer, heldout[: args.heldout], 1).scores_B))
    for step in range(args.steps):
        started = time.monotonic()
        rows = [train[(step * args.prompts + i) % len(train)] for i in range(args.prompts)]
        rollouts = sample(model, tokenizer, rows, args.group)
        advantages_BT = token_advantages(rollouts, args.group, config, tokenizer.all_special_ids)
        update(model, optimizer, rollouts, advantages_BT, args.epochs)
        length = rollouts.action_BT.sum(1).float().mean()
        print(
            f"step {step + 1:3d}  right {rollouts.scores_B.mean():.0%}  "
            f"tokens {length:.1f}  {time.monotonic() - started:.2f} s",
            flush=True,
        )
    print("held-out after:", accuracy(sample(model, tokenizer, heldout[: args.heldout], 1).scores_B))


if __name__ == "__main__":
    main()
