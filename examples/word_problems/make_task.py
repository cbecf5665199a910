"""Very easy word problems in chat form, for a small instruction-tuned model: two JSONL files.

    python examples/word_problems/make_task.py                  # writes runs/word_problems/
    python examples/word_problems/make_task.py --output /tmp/task --seed 1

A problem is one sum or difference of small numbers. `input` is the whole text that the model sees, in the chat
markup of SmolLM2 (ChatML): worked examples as earlier turns, the question, and the first word of the answer.
With these a 135M model stays on the task at temperature 1. Standard library only.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from task_files import draw_distinct, write_rows

DATASOURCE = "word_problems"
NAMES = ("Tom", "Anna", "Ben", "Lena", "Max", "Sara", "Paul", "Nora", "Sam", "Lucy", "Dan", "Emma")
THINGS = ("apples", "books", "coins", "shells", "pens", "cards", "balls", "stamps", "keys", "cups")
MAX_NUMBER = 6  # small, so that the untrained model is often right and groups are mixed
N_TRAIN = 1600
N_HELDOUT = 200
DEFAULT_SEED = 0
DEFAULT_OUTPUT = Path("runs/word_problems")

ANSWER_START = "Solution:"  # ends the prompt; without it a third of the answers are off-topic
EXAMPLES = (  # a third example would add 45 tokens to each prompt but few right answers
    ("Leo has 9 rings and gives away 4. How many rings?", "9 - 4 = 5", "5"),
    ("Mia has 3 pears and gets 4 more. How many pears?", "3 + 4 = 7", "7"),
)

Sum = tuple[str, str, int, int]  # name, things, initial number, number added (negative: removed)


def question(problem: Sum) -> str:
    """Return the problem in words."""
    name, things, first, change = problem
    if change > 0:
        return f"{name} has {first} {things} and gets {change} more. How many {things}?"
    return f"{name} has {first} {things} and gives away {-change}. How many {things}?"


def prompt(problem: Sum) -> str:
    """Return the text that the model sees: examples, question and the start of the answer, in ChatML."""
    turns = []
    for asked, worked, answer in EXAMPLES:
        turns.append(f"<|im_start|>user\n{asked}<|im_end|>\n")
        turns.append(f"<|im_start|>assistant\n{ANSWER_START} {worked}, so \\boxed{{{answer}}}<|im_end|>\n")
    turns.append(f"<|im_start|>user\n{question(problem)}<|im_end|>\n<|im_start|>assistant\n{ANSWER_START}")
    return "".join(turns)


def draw_sum(rng: random.Random) -> Sum:
    """Draw one problem with a result of at least 1."""
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    low, high = sorted(rng.sample(range(1, MAX_NUMBER + 1), 2))
    if rng.random() < 0.5:
        return name, things, high, -low
    return name, things, *rng.choice([(low, high), (high, low)])


def to_row(problem: Sum) -> dict[str, str]:
    """Return a row of the data set: prompt, answer as text, and source."""
    return {"input": prompt(problem), "label": str(problem[2] + problem[3]), "datasource": DATASOURCE}


def write_task(output: Path, seed: int, n_train: int, n_heldout: int) -> None:
    """Write `train.jsonl` and `heldout.jsonl`, which share no problem."""
    problems = draw_distinct(draw_sum, n_train + n_heldout, seed)
    write_rows(output, [to_row(problem) for problem in problems], n_heldout)


def main() -> None:
    """Write the two files and say where they are."""
    parser = argparse.ArgumentParser(description="Write easy word problems in the chat form of SmolLM2.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of the two files")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--train", type=int, default=N_TRAIN, help="number of training problems")
    parser.add_argument("--heldout", type=int, default=N_HELDOUT, help="number of held-out problems")
    args = parser.parse_args()
    write_task(args.output, args.seed, args.train, args.heldout)
    print(f"{args.train} training and {args.heldout} held-out problems in {args.output}")


if __name__ == "__main__":
    main()
