"""The comparison through the real trainer: one arm, one seed, two steps; then once more, which trains nothing."""

from __future__ import annotations

import json
import subprocess
import sys

from marks import SLOW

pytestmark = SLOW

COMMAND = [sys.executable, "-m", "openrlhf_ktae.cli.compare", "configs/compare/grpo_ktae_shuffled.yaml", "--seeds", "1"]


def compare(root, environment, output, *words):
    return subprocess.run(
        [*COMMAND, "--output", str(output), "--", "--data.max_samples", "16", "--eval.steps", "1", *words],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_an_arm_is_trained_once(root, environment, tmp_path):
    refused = compare(root, environment, tmp_path / "refused", "--train.batch_size", "7")
    assert refused.returncode == 2
    assert "--train.batch_size 7" in refused.stderr
    done = compare(root, environment, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "[1/1] grpo_ktae_shuffled seed 1: done in" in done.stdout
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    values = result["runs"]["grpo_ktae_shuffled"]["1"]
    assert result["steps"] == 2
    assert 0 < values["final_accuracy"] < 1
    assert values["response_length"] > 10
    assert (tmp_path / "out" / "comparison.html").is_file()
    again = compare(root, environment, tmp_path / "out")
    assert again.returncode == 0, again.stderr
    assert "already done" in again.stdout
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == result
