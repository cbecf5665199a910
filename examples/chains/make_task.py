"""Chains of sums on a 12-hour clock, written as two JSONL files; knobs set how hard it is to assign credit.

    python examples/chains/make_task.py --steps 12 --output runs/chains/12

A problem reads `compute 7 +3 +15 +2 :` and its label is `3`. The teacher of `make_model.py` says each operand and the
hour after it,

    +3 10 hmm +15 1 well +2 3 so \\boxed{ 3 }

with meaningless filler words. It gets some steps wrong, each in one of several ways. Whether a prefix is right can be
read from its ids (`on_track`). Standard library only.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from task_files import draw_distinct, write_rows

DATASOURCE = "chain_hours"
HOURS = 12
OPERANDS = tuple(f"+{n}" for n in range(1, 16))
"""Each occurs at most once in a problem, so that an operand determines the one after it."""
MOST_STEPS = 12
FILLERS = ("hmm", "well", "ok", "now", "then", "right", "fine", "good")
BOX = "\\boxed{"
WORDS = ("compute", *(f" {word}" for word in (":", "so", BOX, "}", *OPERANDS, *FILLERS, *range(HOURS))))
FIRST_IDS = (258, 49151)
"""First id of `WORDS` in the tiny models' tokenizer; in SmolLM2's, with its `compute`, the second word's id minus 1."""
OFFSETS = (1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6)
"""Errors of a wrong step; a member of the family uses the first `ways` of them."""
N_TRAIN = 3200
N_HELDOUT = 200


@dataclass(frozen=True)
class Knobs:
    """The parameters of a member of the family."""

    steps: int = 6
    """Sums of a chain, 1 to 12."""
    filler: float = 0.5
    """Share of filler words in the chain's words, at least 0 and below 1."""
    ways: int = 4
    """Number of different errors that a step can have, 1 to 11."""
    accuracy: float = 0.3
    """Share of right answers at which pretraining stops, between 0 and 1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"steps={self.steps} must be from 1 to {MOST_STEPS}")
        if not 0 <= self.filler < 1:
            raise ValueError(f"filler={self.filler} must be at least 0 and below 1")
        if not 1 <= self.ways <= len(OFFSETS):
            raise ValueError(f"ways={self.ways} must be from 1 to {len(OFFSETS)}")
        if not 0 < self.accuracy < 1:
            raise ValueError(f"accuracy={self.accuracy} must be between 0 and 1")


@dataclass(frozen=True)
class Problem:
    """A start hour and the operand of each step."""

    start: int
    operands: tuple[int, ...]

    @property
    def prompt(self) -> str:
        """The text that the model sees."""
        return f"compute {self.start} {' '.join(f'+{n}' for n in self.operands)} :"

    @property
    def results(self) -> list[int]:
        """The right result of each step."""
        return [(self.start + sum(self.operands[: i + 1])) % HOURS for i in range(len(self.operands))]


def draw_problem(steps: int, rng: random.Random) -> Problem:
    """Draw one problem."""
    return Problem(rng.randrange(HOURS), tuple(rng.sample(range(1, len(OPERANDS) + 1), steps)))


def teacher_trace(problem: Problem, knobs: Knobs, step_accuracy: float, rng: random.Random) -> str:
    """Return the teacher's solution of `problem`; each step is right with probability `step_accuracy`."""
    words, value = [], problem.start

    def say(word: str) -> None:
        while rng.random() < knobs.filler:
            words.append(rng.choice(FILLERS))
        words.append(word)

    for n in problem.operands:
        value += n if rng.random() < step_accuracy else n + rng.choice(OFFSETS[: knobs.ways])
        value %= HOURS
        say(f"+{n}")
        say(str(value))
    return " ".join([*words, "so", BOX, str(value), "}"])


def words_of(ids: Sequence[int]) -> list[str]:
    """Return the word of each token id; empty for ids of other tokens."""
    named = {first + i: word.strip() for first in FIRST_IDS for i, word in enumerate(WORDS)}
    return [named.get(i, "") for i in ids]


def read_problem(prompt: Sequence[str]) -> Problem | None:
    """Return the problem in a prompt's words (the first may be missing); None if they contain no problem."""
    hours = [int(word) for word in prompt if word.isdigit()]
    operands = tuple(int(word) for word in prompt if word in OPERANDS)
    return Problem(hours[0], operands) if len(hours) == 1 and operands else None


def on_track(response: Sequence[str], problem: Problem) -> Iterator[tuple[int, bool]]:
    """Yield for each word the number of hours given so far, including the boxed one, and whether all is right.

    All is right if the last hour is right and the operand or box after it, if any, is the next one due. Earlier errors
    do not matter, since the next step starts from the last hour.
    """
    before = [*({f"+{n}"} for n in problem.operands), {"so", BOX}]
    expected = [*problem.results, problem.results[-1]]
    done, right, last = 0, True, ""
    for word in response:
        if word in OPERANDS or word in ("so", BOX):
            last = word
        elif word.isdigit() and done < len(expected):
            right, done, last = last in before[done] and int(word) == expected[done], done + 1, ""
        yield done, right and (not last or (done < len(before) and last in before[done]))


def judge(response: Sequence[str], label: str) -> float:
    """Score the words of a response: 1 if the box contains the label, else 0."""
    boxed = [after for word, after in pairwise(response) if word == BOX]
    return float(boxed[-1:] == [label])


def write_task(output: Path, steps: int, seed: int = 0, n_train: int = N_TRAIN, n_heldout: int = N_HELDOUT) -> None:
    """Write `train.jsonl` and `heldout.jsonl`, which share no problem."""
    problems = draw_distinct(partial(draw_problem, steps), n_train + n_heldout, seed)
    rows = [{"input": p.prompt, "label": str(p.results[-1]), "datasource": DATASOURCE} for p in problems]
    write_rows(output, rows, n_heldout)


def main() -> None:
    """Write the two files and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--steps", type=int, default=Knobs.steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=N_TRAIN, help="number of training problems")
    parser.add_argument("--heldout", type=int, default=N_HELDOUT, help="number of held-out problems")
    args = parser.parse_args()
    Knobs(steps=args.steps)
    write_task(args.output, args.steps, args.seed, args.train, args.heldout)
    print(f"{args.train} training and {args.heldout} held-out problems in {args.output}")


if __name__ == "__main__":
    main()
