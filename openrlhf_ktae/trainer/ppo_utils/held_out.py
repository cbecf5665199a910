"""The metrics of an evaluation during training, computed by the same functions as those of `cli.eval`."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_ktae.figures.summary import LENGTH
from openrlhf_ktae.figures.summary import summarize as summarize_rows
from openrlhf_ktae.ktae import above
from openrlhf_ktae.trainer.ppo_utils.raw_scores import raw_scores
from openrlhf_ktae.verifier import CORRECT, UNKNOWN, WRONG
from openrlhf_ktae.verifier.extract import extract_answer
from openrlhf_ktae.verifier.formats import keeps_format, opening_of, response_text

Answer = tuple[str | None, bool]
"""The answer as written, and whether the response keeps its format."""


def answer_reader(args: SimpleNamespace, tokenizer: Any) -> Callable[[Experience], Answer] | None:
    """Return a function that reads a rollout's answer as the verifier does; None if the verifier does not judge."""
    config = args.verifier.config
    if not args.verifier.enable or config.reward_file:
        return None

    def read(sample: Experience) -> Answer:
        acted = sample.action_mask[0].bool()
        response = opening_of(sample.prompts[0]) + response_text(tokenizer, sample.sequences[0, 1:][acted].tolist())
        answer = extract_answer(response, config.answer_format, sample.labels[0]).answer
        return answer, keeps_format(response, config.require_tags, require_single_answer=True)

    return read


def summarize(
    parts: Mapping[str, list[Experience]],
    per_problem: int,
    threshold: float,
    read: Callable[[Experience], Answer] | None = None,
) -> dict[str, float]:
    """Return `eval_NAME_...` for each benchmark, `eval_macro_...` (their mean), and `eval_...` over all problems.

    The names end in `_accuracy` and `_response_length_mean`, both also with `_low` and `_high`; `_passK` (unbiased) for
    every K up to `per_problem`; `_truncated_rate`; and with `read`, `_majK`, `_format_rate` and `_answered_rate`.

    Args:
        parts: rollouts of each benchmark, grouped by problem.
        per_problem: rollouts of each problem.
        threshold: a score above it is correct; an unknown score (NaN) is not correct, and is counted as unknown.
        read: reads the answer of a rollout; None for judges other than the verifier.
    """
    rows = [
        {**row, "benchmark": name}
        for name, samples in parts.items()
        for row in rows_of(samples, per_problem, threshold, read)
    ]
    if not rows:
        return {}
    found = summarize_rows(rows, {})
    groups = {f"eval_{name}": group for name, group in found["benchmarks"].items()}
    summary: dict[str, float] = {}
    for prefix, group in {**groups, "eval_macro": found["macro"], "eval": found["pooled"]}.items():
        summary |= _figures(prefix, group)
    problems = found["pooled"]["problems"]
    unknown = sum(row["verdict"] == UNKNOWN for row in rows)
    return {**summary, "eval_problems": problems, "eval_rollouts": problems * per_problem, "eval_unknown": unknown}


def rows_of(
    samples: Sequence[Experience],
    per_problem: int,
    threshold: float,
    read: Callable[[Experience], Answer] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield a row per rollout, with the fields of `cli.eval`'s rows that `Tally` reads.

    Problems are numbered in the order of their prompts, so that the engines' finishing order cannot move an interval.
    """
    groups = [samples[start : start + per_problem] for start in range(0, len(samples), per_problem)]
    for number, group in enumerate(sorted(groups, key=lambda group: (group[0].prompts[0], str(group[0].labels[0])))):
        for sample in group:
            score = raw_scores(sample)[0]
            judged = (sample.info or {}).get("verifier_unknown")  # an unknown verdict may still have a score
            unknown = math.isnan(score) or (judged is not None and bool(judged.flatten()[0] > 0))
            answer, kept = (None, None) if read is None else read(sample)
            yield {
                "id": f"{number:09d}",
                "verdict": UNKNOWN if unknown else CORRECT if above(score, threshold) else WRONG,
                "extracted": answer,
                "format": kept,
                "characters": 0,
                "tokens": float(sample.response_length.flatten()[0]),
                "truncated": bool(sample.truncated.flatten()[0]),
            }


def _figures(prefix: str, group: Mapping[str, Any]) -> dict[str, float]:
    figures = {f"{prefix}_pass{k}": one["value"] for k, one in group["pass_at_k"].items()}
    for name, ends in (("accuracy", "ci95"), (LENGTH, "response_length_ci95")):
        low, high = group[ends]
        figures |= {f"{prefix}_{name}": group[name], f"{prefix}_{name}_low": low, f"{prefix}_{name}_high": high}
    figures[f"{prefix}_truncated_rate"] = group["truncated_rate"]
    if group["format_rate"] is not None:  # the answers were read
        figures |= {f"{prefix}_{name}": group[name] for name in ("format_rate", "answered_rate")}
        figures |= {f"{prefix}_maj{k}": one["value"] for k, one in group["maj_at_k"].items() if k != "1"}
    return figures
