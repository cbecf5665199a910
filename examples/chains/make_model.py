"""A tiny Qwen2 for one member of the family of chains, pretrained until it solves a chosen share of the problems.

    python examples/chains/make_model.py --steps 12 --filler 0.9 --ways 4 --accuracy 0.1 --output runs/chains/model

The teacher's own accuracy is the target's square root, so part of the errors are the teacher's and part are what the
model has not learned yet. One core needs a minute or a few; the folder also gets `knobs.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict, fields
from pathlib import Path

import torch
from make_task import WORDS, Knobs, draw_problem, judge, teacher_trace, words_of
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1]))
import tiny_models  # noqa: E402

HIDDEN_SIZE = 64
MAX_POSITIONS = 512
BATCH_SIZE = 64
LEARNING_RATE = 5e-3
MOST_STEPS = 2000
EVERY = 25
"""Steps between measurements of accuracy."""
MEASURED = 256
"""Answers of one measurement: 3 points of standard error at 30 %."""


def make_tokenizer() -> Qwen2Tokenizer:
    """One id per number, letter, word and sign, each with the space before it."""
    return tiny_models.make_tokenizer(WORDS, MAX_POSITIONS)


def longest_response(knobs: Knobs) -> int:
    """Tokens that next to no response of the teacher exceeds: mean and six standard deviations."""
    said = 2 * knobs.steps
    spread = (said * knobs.filler) ** 0.5 / (1 - knobs.filler)
    return round(said / (1 - knobs.filler) + 6 * spread) + 6


@torch.no_grad()
def accuracy(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, knobs: Knobs, rng: random.Random) -> float:
    """Share of right answers at temperature 1, one to each of `MEASURED` fresh problems."""
    problems = [draw_problem(knobs.steps, rng) for _ in range(MEASURED)]
    prompts = tokenizer([p.prompt for p in problems], return_tensors="pt", padding=True)
    ids = model.generate(**prompts, max_new_tokens=longest_response(knobs), do_sample=True, top_k=0)  # type: ignore[operator]
    answers = map(words_of, ids[:, prompts.input_ids.shape[1] :].tolist())
    return sum(judge(words, str(p.results[-1])) for words, p in zip(answers, problems, strict=True)) / MEASURED


def make_model(knobs: Knobs, seed: int = 0, most: int = MOST_STEPS) -> tuple[Qwen2ForCausalLM, Qwen2Tokenizer, float]:
    """Pretrain a model to `knobs.accuracy`; return it with its tokenizer and the accuracy that was measured last."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = make_tokenizer()
    model = tiny_models.make_untrained_model(tokenizer, HIDDEN_SIZE)
    measured = 0.0

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        problems = [draw_problem(knobs.steps, rng) for _ in range(BATCH_SIZE)]
        right = knobs.accuracy ** (0.5 / knobs.steps)
        return tiny_models.as_batch(
            tokenizer, [(p.prompt, f" {teacher_trace(p, knobs, right, rng)}") for p in problems]
        )

    def enough(step: int) -> bool:
        nonlocal measured
        if step % EVERY == 0:
            measured = accuracy(model, tokenizer, knobs, rng)
        return measured >= knobs.accuracy

    tiny_models.pretrain(model, draw, most, LEARNING_RATE, enough)
    return model, tokenizer, measured


def main() -> None:
    """Make one and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of model and tokenizer")
    for field in fields(Knobs):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    knobs = Knobs(**{field.name: getattr(args, field.name) for field in fields(Knobs)})
    model, tokenizer, measured = make_model(knobs, args.seed)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    (args.output / "knobs.json").write_text(json.dumps(asdict(knobs) | {"measured": measured}) + "\n")
    print(f"{model.num_parameters():,} parameters, {measured:.0%} right, in {args.output}")
    if measured < knobs.accuracy:
        sys.exit(f"error: --accuracy {knobs.accuracy} was not reached in {MOST_STEPS} steps; choose a lower one")


if __name__ == "__main__":
    main()
