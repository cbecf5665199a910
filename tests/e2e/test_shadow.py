"""A run with a reference model, KTAE in shadow mode, and evaluations during training."""

from __future__ import annotations

import json
import re

import pytest
from marks import SLOW
from trackers import WANDB_KEY, assert_trackers_have


@SLOW
def test_reference_model_kl_shadow_and_evaluation_during_training(train, root, tmp_path):
    """Evaluated on two benchmarks with the same prompts: one has the right answers, one wrong ones."""
    held_out = (root / "examples/quickstart/data/heldout.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in held_out[:16]]
    pairs = [{**row, "datasource": "right"} for row in rows] + [
        {**row, "label": "-1", "datasource": "no"} for row in rows
    ]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    words = "--algo.kl.init_coef 0.01 --algo.kl.use_loss --algo.kl.estimator k3 --eval.steps 1 --algo.ktae.shadow"
    words += f" --eval.dataset {tmp_path}/two.jsonl --eval.n_samples_per_prompt 2"
    words += f" --data.max_samples 32 --actor.entropy_coef 0 --logger.wandb.key {WANDB_KEY}"
    run = train(tmp_path / "run", *words.split(), WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    assert run.code == 0, run.output
    for row in run.evaluations.values():
        assert row["eval_no_accuracy"] == row["eval_no_pass2"] == 0
        assert row["eval_right_accuracy"] > 0
        assert row["eval_right_pass2"] >= row["eval_right_accuracy"]
        assert row["eval_macro_accuracy"] == pytest.approx(row["eval_right_accuracy"] / 2)
        assert row["eval_macro_accuracy_low"] <= row["eval_macro_accuracy"] <= row["eval_macro_accuracy_high"]
    during = [row for row in run.rows if row["kind"] == "eval" and row["when"] == "during"]
    assert [row["step"] for row in during] == [1, 2, 3, 4]
    last, after = ({k: v for k, v in row.items() if "eval_" in k} for row in (during[-1], run.evaluations["after"]))
    assert last == after, "the last step must not be evaluated twice"
    best = max(during, key=lambda row: row["eval_macro_accuracy"])  # on a tie, the first
    assert_trackers_have(run, tmp_path)
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and WANDB_KEY.encode() in path.read_bytes()]
    assert not holders, "keys must never be written"
    assert WANDB_KEY not in run.output
    (line,) = re.findall(r"held-out +after  accuracy .* macro .*", run.output)
    assert re.search(r" right \d", line)  # benchmarks are in order of their first answers
    assert re.search(r" no 0\.0", line)
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").glob("best*")]
    assert saved == [f"best_global_step{best['step']}"]
    assert set(run.evaluations) == {"before", "during", "after"}
    assert all("entropy_loss" in step and "kl" in step for step in run.steps)
    assert all(step["ktae/mean_abs_k"] > 0 for step in run.steps)
