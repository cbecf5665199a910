"""The quickstart's task: chains of additions and subtractions, written as two JSONL files.

    python examples/quickstart/make_task.py                     # writes data/ next to this file
    python examples/quickstart/make_task.py --output /tmp/task --seed 1

A problem reads `compute 12 + 7 - 5 + 2 :` and its label is `16`. Spaces separate numbers and signs, so a
word-level tokenizer gives each number one id. This script needs only the standard library and runs in well
under a second. `make_model.py` draws its problems with it, too.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from task_files import draw_distinct, write_rows

DATASOURCE = "chain_sums"
N_STEPS = 3  # sums per problem: enough that partial results can be key tokens, few enough for 24 tokens
MAX_START = 20
MAX_OPERAND = 9
N_TRAIN = 3200  # 200 steps of 16 prompts, or 400 of 8
N_HELDOUT = 200
DEFAULT_SEED = 0
DEFAULT_OUTPUT = Path(__file__).resolve().parent / "data"


@dataclass(frozen=True)
class Problem:
    """A start value and `N_STEPS` signed operands; no partial result is below 0 or above 20 + 3 * 9 = 47."""

    start: int
    operands: tuple[int, ...]

    @property
    def prompt(self) -> str:
        """The text that the model sees."""
        signed = " ".join(f"{'+' if n > 0 else '-'} {abs(n)}" for n in self.operands)
        return f"compute {self.start} {signed} :"

    @property
    def answer(self) -> int:
        """The value of the chain."""
        return self.start + sum(self.operands)


def draw_problem(rng: random.Random) -> Problem:
    """Draw one problem; a subtraction that would go below zero becomes an addition."""
    start = value = rng.randint(1, MAX_START)
    operands = []
    for _ in range(N_STEPS):
        n = rng.randint(1, MAX_OPERAND)
        if rng.random() < 0.5 and n <= value:
            n = -n
        operands.append(n)
        value += n
    return Problem(start, tuple(operands))


def to_row(problem: Problem) -> dict[str, str]:
    """Return a row of the data set: prompt, answer as text, and source."""
    return {"input": problem.prompt, "label": str(problem.answer), "datasource": DATASOURCE}


def write_task(output: Path, seed: int, n_train: int, n_heldout: int) -> None:
    """Write `train.jsonl` and `heldout.jsonl`, which share no problem."""
    problems = draw_distinct(draw_problem, n_train + n_heldout, seed)
    write_rows(output, [to_row(problem) for problem in problems], n_heldout)


def main() -> None:
    """Write the two files and say where they are."""
    parser = argparse.ArgumentParser(description="Write the quickstart's training and held-out problems.")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder of the two files")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--train", type=int, default=N_TRAIN, help="number of training problems")
    parser.add_argument("--heldout", type=int, default=N_HELDOUT, help="number of held-out problems")
    args = parser.parse_args()
    write_task(args.output, args.seed, args.train, args.heldout)
    print(f"{args.train} training and {args.heldout} held-out problems in {args.output}")


if __name__ == "__main__":
    main()
