"""Which estimators agree with true credit on rollouts that a run recorded? On SmolLM2's and the quickstart's.

    RUN="python -m openrlhf_ktae.cli.train_ppo_ray --advantage_estimator custom --critic.freezing_steps 9 \\
        --algo.credit.file benchmarks/all_inputs.py --ktae.record_rollouts 1 --rollout.batch_size 16 \\
        --data.max_samples 16"
    $RUN --config configs/compare/chains_llm/grpo.yaml --algo.mc_value.every 1000 --rollout.n_samples_per_prompt 128 \\
        --train.batch_size 2048 --run.dir runs/recorded/smollm2
    $RUN --config configs/compare/grpo.yaml --algo.mc_value.every 1 --algo.mc_value.samples 32 \\
        --rollout.n_samples_per_prompt 32 --train.batch_size 512 --run.dir runs/recorded/quickstart
    python benchmarks/recorded_agreement.py runs/recorded/* --output runs/recorded_agreement

A token's true credit is the change in the chance of a right answer that it causes. The chance is the mean score of the
continuations that the run sampled after every token (column `values`). Without them the rollouts must be chains
(`examples/chains`), whose chance depends on the prompt and the state: the mean score of all recorded rollouts of the
prompt that reached the state.
The rollouts of a prompt are taken as groups of 8 in order; only groups with both verdicts count. Figures are those of
`credit_agreement.py`. For the intervals prompts are drawn with replacement.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chain_rollouts import group_normalised
from credit_agreement import compared, credits_of, true_credit, write_results
from make_task import read_problem, words_of

from openrlhf_ktae.credit import NEEDS, CreditBatch, estimators
from openrlhf_ktae.record.recorded import find, read_groups


def batch_of(rows: list[dict[str, Any]], size: int, special_ids: list[int]) -> CreditBatch:
    """Return recorded rollouts, with their prompts, as groups of `size`."""
    width = max(len(row["prompt_ids"]) + len(row["token_ids"]) for row in rows)

    def table(name: str, kind: Any) -> np.ndarray:
        made = np.zeros((len(rows), width), kind)
        for line, row in zip(made, rows, strict=True):
            start = len(row["prompt_ids"])
            line[start : start + len(row[name])] = row[name]
        return made

    ids_BT = table("token_ids", np.int64)
    for line, row in zip(ids_BT, rows, strict=True):
        line[: len(row["prompt_ids"])] = row["prompt_ids"]
    scores_B = torch.tensor([row["score"] for row in rows])
    labels = scores_B, torch.arange(len(rows)) // size, group_normalised(scores_B, size)
    needs = {name: table(name, np.float64) for name in NEEDS}
    return CreditBatch.from_tables(ids_BT, table("action", np.bool_), *labels, special_ids, **needs)


def measured(run: Path, size: int) -> dict[str, Any]:
    """Return the figures of all estimators on the mixed groups of `size` rollouts that a run recorded."""
    groups = list(read_groups(find([run])))
    rows = [row for group in groups for row in group.rows]
    each, prompt_ids, special = len(groups[0].rows), rows[0]["prompt_ids"], groups[0].about["special_ids"]
    if len({group.step for group in groups}) > 1 or {len(group.rows) for group in groups} != {each} or each % size:
        sys.exit(f"{run}: record one step, with the same multiple of {size} rollouts for each prompt")
    if any(row["score"] is None for row in rows):
        sys.exit(f"{run}: has rollouts without a verdict, whose true credit is unknown; record it again")
    batch = batch_of(rows, each, special)
    if not torch.isnan(batch.needed("values")[batch.at_A]).all():
        control_A = estimators()["mc_value"](batch).figures["change"].numpy()[batch.at_A].astype(float)
    elif all(read_problem(words_of(row["prompt_ids"])) and len(row["prompt_ids"]) == len(prompt_ids) for row in rows):
        control_A = true_credit(batch, [], each, len(prompt_ids) + 1)
    else:
        sys.exit(f"{run}: has no values, and is not on chains of equal length; sample values (--algo.mc_value.every 1)")
    control = np.split(control_A, batch.first_B[1:])
    scores = batch.scores_B.view(-1, size).mean(1)
    kept = [b for b in range(len(rows)) if 0 < scores[b // size] < 1]
    if not kept:
        sys.exit(f"{run}: has no group with both verdicts")
    batch, control_A = batch_of([rows[b] for b in kept], size, special), np.concatenate([control[b] for b in kept])
    prompt_A = np.array(kept)[batch.row_A] // each
    return {
        "member": run.name,
        "accuracy": float(scores.mean()),
        "group": size,
        "groups": len(kept) // size,
        "prompts": len(groups),
        **compared(credits_of(batch), control_A, batch.row_A, prompt_A),
    }


def main() -> None:
    """Measure each run; print and write the results as `credit_agreement.py` does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of results.json, tables.md and agreement.svg"
    )
    parser.add_argument("--group-size", type=int, default=8)
    args = parser.parse_args()
    write_results((measured(run, args.group_size) for run in args.runs), args.output)


if __name__ == "__main__":
    main()
