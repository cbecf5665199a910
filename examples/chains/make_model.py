"""A tiny Qwen2 for one member of the chains family, pretrained until it solves a chosen share of the problems.

    python examples/chains/make_model.py --steps 12 --filler 0.9 --ways 4 --accuracy 0.1 --output runs/chains/model

The teacher is right more often (`accuracy` to the power of 3/4). So most of the model's errors imitate the teacher; the
others are steps that it has not learned yet. Pretraining begins with short chains without fillers, which then get
longer. One core needs half a minute to a few minutes. The folder also gets `knobs.json`.

    python examples/chains/make_model.py --pretrained runs/smollm2-135m-instruct --output runs/chains/smollm2

teaches SmolLM2 the task instead, with a token for each word as in the tiny models (400 steps, 15 minutes on two cores).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from make_task import WORDS, Knobs, draw_problem, judge, teacher_trace
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM, Qwen2Tokenizer

from openrlhf_ktae.backend.cpu_linear import use_faster_products

sys.path.append(str(Path(__file__).resolve().parents[1]))
import tiny_models

HIDDEN_SIZE = 64
MAX_POSITIONS = 512
FIRST_WEIGHTS = 3.0
"""Factor on the initial embeddings and MLPs of tiny models; with 1, learning sums takes at least ten times longer."""
MEASURED = 256
"""Answers per measurement of accuracy; the standard error is 3 points at 30 %."""


@dataclass(frozen=True)
class Teaching:
    """How a model is taught: first chains without fillers, which get longer, then more and more fillers."""

    learning_rate: float
    batch_size: int
    warm_up: int
    """Steps without fillers."""
    ramp: int
    """Steps after the warm-up in which fillers rise to their share."""
    most: int
    """Largest number of steps."""
    every: int
    """Steps between measurements of accuracy."""


TINY = Teaching(learning_rate=3e-3, batch_size=64, warm_up=700, ramp=1, most=3000, every=25)
PRETRAINED = Teaching(learning_rate=3e-4, batch_size=16, warm_up=150, ramp=150, most=600, every=50)
"""When all fillers came at once after the warm-up, only 6 % of SmolLM2's answers were right 50 steps later."""


def make_tokenizer() -> Qwen2Tokenizer:
    """Return a tokenizer with one id per hour, operand and word, each with the space before it."""
    return tiny_models.make_tokenizer(WORDS, MAX_POSITIONS)


def with_words(folder: Path) -> tuple[Any, Any]:
    """Return a pretrained model and its tokenizer; each word gets a token, initially the mean of its old tokens."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    parts = [tokenizer.encode(word, add_special_tokens=False) for word in WORDS]
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in WORDS])
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    embeddings = model.get_input_embeddings().weight.data
    for word, ids in zip(WORDS, parts, strict=True):
        embeddings[tokenizer.convert_tokens_to_ids(word)] = embeddings[ids].mean(0)
    use_faster_products(model.float(), {})
    return model, tokenizer


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
    answers = tokenizer.batch_decode(ids[:, prompts.input_ids.shape[1] :], skip_special_tokens=True)
    return sum(judge(text.split(), str(p.results[-1])) for text, p in zip(answers, problems, strict=True)) / MEASURED


def untrained() -> tuple[Qwen2ForCausalLM, Qwen2Tokenizer]:
    """Return a tiny model and its tokenizer."""
    tokenizer = make_tokenizer()
    model = tiny_models.make_untrained_model(tokenizer, HIDDEN_SIZE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "mlp" in name or "embed" in name:
                weight.mul_(FIRST_WEIGHTS)
    return model, tokenizer


def make_model(
    knobs: Knobs, seed: int = 0, teaching: Teaching = TINY, pretrained: Path | None = None
) -> tuple[Any, Any, float]:
    """Train a tiny model, or that in `pretrained`, to `knobs.accuracy`; return model, tokenizer, measured accuracy."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model, tokenizer = with_words(pretrained) if pretrained else untrained()
    right = knobs.accuracy ** (0.75 / knobs.steps)
    drawn, measured = 0, 0.0

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal drawn
        drawn += 1
        early = drawn <= teaching.warm_up
        longest = min(knobs.steps, 3 + 12 * drawn // teaching.warm_up)
        lengths = [rng.randint(1, longest) if early else knobs.steps for _ in range(teaching.batch_size)]
        problems = [draw_problem(length, rng) for length in lengths]
        risen = min(1.0, max(0, drawn - teaching.warm_up) / teaching.ramp)
        now = replace(knobs, filler=risen * knobs.filler)
        return tiny_models.as_batch(tokenizer, [(p.prompt, f" {teacher_trace(p, now, right, rng)}") for p in problems])

    def enough(step: int) -> bool:
        nonlocal measured
        if step % teaching.every == 0 and step > teaching.warm_up + teaching.ramp:
            measured = accuracy(model, tokenizer, knobs, rng)
        return measured >= knobs.accuracy

    tiny_models.pretrain(model, draw, teaching.most, teaching.learning_rate, enough)
    return model, tokenizer, measured


def main() -> None:
    """Make a model and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of model and tokenizer")
    for field in fields(Knobs):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pretrained", type=Path, help="folder of a model to teach instead of a tiny new one")
    args = parser.parse_args()
    knobs = Knobs(**{field.name: getattr(args, field.name) for field in fields(Knobs)})
    teaching = PRETRAINED if args.pretrained else TINY
    model, tokenizer, measured = make_model(knobs, args.seed, teaching, args.pretrained)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    (args.output / "knobs.json").write_text(json.dumps(asdict(knobs) | {"measured": measured}) + "\n")
    print(f"{model.num_parameters():,} parameters, {measured:.0%} right, in {args.output}")
    if measured < knobs.accuracy:
        sys.exit(f"error: --accuracy {knobs.accuracy} was not reached in {teaching.most} steps; choose a lower one")


if __name__ == "__main__":
    main()
