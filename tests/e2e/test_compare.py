"""The comparison command on the real trainer: two arms in one stack, two steps; a second call trains nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from marks import SLOW

pytestmark = SLOW

ARMS = ["configs/compare/grpo.yaml", "configs/compare/grpo_ktae_shuffled.yaml"]
COMMAND = [sys.executable, "-m", "openrlhf_ktae.cli.compare", *ARMS, "--seeds", "1"]
WORDS = ["--data.max_samples", "16", "--eval.steps", "1", "--train.full_determinism_enable", "true"]
TIMES = ("time", "seconds")


def compare(root, environment, output, *words):
    return subprocess.run(
        [*COMMAND, "--output", str(output), "--", *WORDS, *words],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_arms_are_trained_once_with_the_results_of_separate_stacks(root, environment, tmp_path):
    refused = compare(root, environment, tmp_path / "refused", "--train.batch_size", "7")
    assert refused.returncode == 2
    assert "--train.batch_size 7" in refused.stderr
    done = compare(root, environment, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "[2/2] grpo_ktae_shuffled seed 1: done in" in done.stdout
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
    shared, fresh = tmp_path / "out" / "grpo_ktae_shuffled" / "seed-1", tmp_path / "fresh"
    logs = [(tmp_path / "out" / arm / "seed-1" / "train.log").read_text() for arm in ("grpo", "grpo_ktae_shuffled")]
    starts = [float(re.search(r"([\d.]+) s\] held-out before", log)[1]) for log in logs]
    assert starts[1] < starts[0] / 2, "the second run must reuse the first run's stack"
    alone = [sys.executable, "-m", "openrlhf_ktae.cli.train_ppo_ray", "--config", ARMS[1], "--run.dir", str(fresh)]
    subprocess.run([*alone, "--train.seed", "1", *WORDS], cwd=root, env=environment, check=True, timeout=300)
    assert (shared / "model" / "model.safetensors").read_bytes() == (fresh / "model" / "model.safetensors").read_bytes()
    assert figures(shared) == figures(fresh)


def figures(directory):
    """Return all recorded figures of a run except times."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("timing") and not k.endswith(TIMES)} for row in rows]
