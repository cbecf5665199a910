"""The quickstart's tiny model: a word-level tokenizer and a two-layer Qwen2 pretrained on a careless teacher.

    python examples/quickstart/make_model.py                    # writes model/ next to this file
    python examples/quickstart/make_model.py --output /tmp/model --seed 1 --steps 600

The teacher solves chains of sums aloud, with filler words, forgotten carries and abandoned attempts:

    12 + 7 gives 19 , maybe + 5 gives 14 , hmm - 2 gives 12 so \\boxed{ 12 }
    12 + 7 gives 19 , guess \\boxed{ 21 }

A model trained on such traces knows the sums but samples mistakes as often as its teacher made them. So
reinforcement learning has something to correct, and single ids (`guess`, `maybe`, `carefully`, a partial
sum) separate right rollouts from wrong ones. One core needs a few minutes. The model is about 1.5 MB in
float32.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import torch
from make_task import Problem, draw_problem
from transformers import Qwen2Tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1]))
import tiny_models

FILLERS = ("hmm", "well", "ok")  # unrelated to the next sum
QUITTERS = ("guess", "skip")  # the teacher gives up and invents an answer
WORDS = (":", "+", "-", ",", "gives", "so", "carefully", "maybe", *FILLERS, *QUITTERS, "\\boxed{", "}")
N_NUMBERS = 100

# The teacher's habits. The mood before a sum sets how often a carry is forgotten. Above one half even greedy
# decoding is wrong, so training has to change the most likely token.
MOODS = {"": 0.55, "carefully": 0.2, "maybe": 0.25}
FORGETS_CARRY = {"": 0.55, "carefully": 0.1, "maybe": 0.8}
FORGETS_BORROW = {"": 0.3, "carefully": 0.05, "maybe": 0.5}
SLIP_RATE = 0.08  # other wrong sums, off by 1..MAX_SLIP
MAX_SLIP = 4
QUIT_RATE = 0.15  # before each sum but the first
FILLER_RATE = 0.25

HIDDEN_SIZE = 128
MAX_POSITIONS = 128
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
DEFAULT_STEPS = 1000
DEFAULT_OUTPUT = Path(__file__).resolve().parent / "model"


def make_tokenizer() -> Qwen2Tokenizer:
    """Return a tokenizer with one id per number, word and sign, each with the space before it."""
    words = ["compute", *(f" {word}" for word in WORDS), *(f" {n}" for n in range(N_NUMBERS))]
    return tiny_models.make_tokenizer(words, MAX_POSITIONS)


def slip(value: int, rng: random.Random) -> int:
    """Return a wrong result near `value`, not below zero."""
    return rng.choice([value + d for d in range(-MAX_SLIP, MAX_SLIP + 1) if d and value + d >= 0])


def careless_sum(value: int, n: int, mood: str, rng: random.Random) -> int:
    """Return the teacher's result of `value + n`: right, with a forgotten carry or borrow, or slightly off."""
    result = max(value + n, 0)
    crosses_ten = result // 10 != value // 10
    forgets = FORGETS_CARRY if n > 0 else FORGETS_BORROW
    if crosses_ten and rng.random() < forgets[mood]:
        return result - 10 if n > 0 else result + 10
    return slip(result, rng) if rng.random() < SLIP_RATE else result


def teacher_trace(problem: Problem, rng: random.Random) -> str:
    """Return the careless teacher's solution of `problem`, ending with the boxed result."""
    words, value = [str(problem.start)], problem.start
    for step, n in enumerate(problem.operands):
        if step:
            words.append(",")
            if rng.random() < QUIT_RATE:
                value = slip(value, rng)
                words.append(rng.choice(QUITTERS))
                break
        if rng.random() < FILLER_RATE:
            words.append(rng.choice(FILLERS))
        mood = rng.choices(list(MOODS), list(MOODS.values()))[0]
        value = careless_sum(value, n, mood, rng)
        words += [mood] * bool(mood) + ["+" if n > 0 else "-", str(abs(n)), "gives", str(value)]
    else:
        words.append("so")
    return " ".join([*words, "\\boxed{", str(value), "}"])


def make_batch(tokenizer: Qwen2Tokenizer, rng: random.Random, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels of `size` fresh problems with traces, both (size, T)."""
    problems = [draw_problem(rng) for _ in range(size)]
    return tiny_models.as_batch(tokenizer, [(p.prompt, f" {teacher_trace(p, rng)}") for p in problems])


def main() -> None:
    """Build the tokenizer, pretrain the model and save both in one folder."""
    parser = argparse.ArgumentParser(description="Make the quickstart's tiny model.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of model and tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help="pretraining steps")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model = tiny_models.make_untrained_model(tokenizer, HIDDEN_SIZE)
    rng = random.Random(args.seed)
    tiny_models.pretrain(model, lambda: make_batch(tokenizer, rng, BATCH_SIZE), args.steps, LEARNING_RATE)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    size = sum(file.stat().st_size for file in args.output.iterdir())
    print(f"{model.num_parameters():,} parameters, {size / 1e6:.1f} MB in {args.output}")


if __name__ == "__main__":
    main()
