"""A tiny Qwen2 for one member of the chains family, pretrained until it solves a chosen share of the problems.

    python examples/chains/make_model.py --steps 12 --filler 0.9 --ways 4 --accuracy 0.1 --output runs/chains/model

The teacher is right more often (`accuracy` to the power of 3/4), so most of the model's errors are the teacher's; the
rest it has not yet learned. Pretraining begins with short chains without fillers, which grow. One core needs half a
minute to a few minutes. The folder also gets `knobs.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from make_task import WORDS, Knobs, draw_problem, judge, teacher_trace, words_of
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1]))
import tiny_models

HIDDEN_SIZE = 64
MAX_POSITIONS = 512
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
FIRST_WEIGHTS = 3.0
"""Initial scale of embeddings and MLPs, relative to the usual one, from which sums take ten times longer, if ever."""
WARM_UP = 700
MOST_STEPS = 3000
EVERY = 25
"""Steps between measurements of accuracy."""
MEASURED = 256
"""Answers per measurement; the standard error is 3 points at 30 %."""


def make_tokenizer() -> Qwen2Tokenizer:
    """One id per hour, operand and word, each with the space before it."""
    return tiny_models.make_tokenizer(WORDS, MAX_POSITIONS)


def longest_response(knobs: Knobs) -> int:
    """Return a length that almost no response of the teacher exceeds: its mean plus six standard deviations."""
    said = 2 * knobs.steps
    spread = (said * knobs.filler) ** 0.5 / (1 - knobs.filler)
    return round(said / (1 - knobs.filler) + 6 * spread) + 6


@torch.no_grad()
def accuracy(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, knobs: Knobs, rng: random.Random) -> float:
    """Return the share of right answers at temperature 1, one for each of `MEASURED` fresh problems."""
    problems = [draw_problem(knobs.steps, rng) for _ in range(MEASURED)]
    prompts = tokenizer([p.prompt for p in problems], return_tensors="pt", padding=True)
    ids = model.generate(**prompts, max_new_tokens=longest_response(knobs), do_sample=True, top_k=0)  # type: ignore[operator]
    answers = map(words_of, ids[:, prompts.input_ids.shape[1] :].tolist())
    return sum(judge(words, str(p.results[-1])) for words, p in zip(answers, problems, strict=True)) / MEASURED


def make_model(knobs: Knobs, seed: int = 0, most: int = MOST_STEPS) -> tuple[Qwen2ForCausalLM, Qwen2Tokenizer, float]:
    """Pretrain a model to `knobs.accuracy`; return it with its tokenizer and last measured accuracy."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = make_tokenizer()
    model = tiny_models.make_untrained_model(tokenizer, HIDDEN_SIZE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "mlp" in name or "embed" in name:
                weight.mul_(FIRST_WEIGHTS)
    right = knobs.accuracy ** (0.75 / knobs.steps)
    drawn, measured = 0, 0.0

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal drawn
        drawn += 1
        early = drawn <= WARM_UP
        longest = min(knobs.steps, 3 + 12 * drawn // WARM_UP)
        lengths = [rng.randint(1, longest) if early else knobs.steps for _ in range(BATCH_SIZE)]
        problems = [draw_problem(length, rng) for length in lengths]
        now = replace(knobs, filler=0.0) if early else knobs
        return tiny_models.as_batch(tokenizer, [(p.prompt, f" {teacher_trace(p, now, right, rng)}") for p in problems])

    def enough(step: int) -> bool:
        nonlocal measured
        if step % EVERY == 0 and step > WARM_UP:
            measured = accuracy(model, tokenizer, knobs, rng)
        return measured >= knobs.accuracy

    tiny_models.pretrain(model, draw, most, LEARNING_RATE, enough)
    return model, tokenizer, measured


def main() -> None:
    """Make a model and save it."""
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
