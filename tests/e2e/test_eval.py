"""`cli.eval` with vLLM on the quickstart's model: one engine in-process, two through Ray, and resumed after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from marks import RARELY, SLOW

from openrlhf_ktae.selftest.killing import kill_all

pytestmark = SLOW

HELD_OUT = "examples/quickstart/data/heldout.jsonl"
COMMAND = [sys.executable, "-m", "openrlhf_ktae.cli.eval", "--model", "examples/quickstart/model", "--template", "none"]
SETTINGS = ["--benchmarks", HELD_OUT, "--max_new_tokens", "40", "--dtype", "fp32", "--backend", "cpu"]


def evaluate(root, environment, output, *words):
    done = subprocess.run(
        [*COMMAND, *SETTINGS, *words, "--output", str(output)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((output / "summary.json").read_text()), done


@pytest.fixture(scope="module")
def greedy(root, environment, tmp_path_factory):
    """Evaluate all 200 held-out problems, resuming an evaluation whose processes were all killed midway."""
    output = tmp_path_factory.mktemp("greedy")
    path = output / "responses.jsonl"
    words = [*COMMAND, *SETTINGS, "--output", str(output)]
    run = subprocess.Popen(words, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while run.poll() is None and time.monotonic() < end and not (path.is_file() and b"\n" in path.read_bytes()):
        time.sleep(0.01)
    kill_all(run)
    kept = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    path.write_text("".join(json.dumps({**row, "reason": "kept"}) + "\n" for row in kept))
    return len(kept), output, *evaluate(root, environment, output)


def test_greedy_accuracy_is_the_known_one(greedy):
    """30.5 %, as examples/quickstart/README.md says (measured with transformers)."""
    *_, summary, done = greedy
    held_out = summary["benchmarks"]["heldout"]
    assert held_out["accuracy"] == pytest.approx(0.305, abs=0.01)
    assert held_out["ci95"][0] < 0.305 < held_out["ci95"][1]
    assert (held_out["n"], held_out["truncated_rate"], held_out["format_rate"]) == (200, 0.0, 1.0)
    assert summary["length_unit"] == "tokens"
    assert summary["sampling"]["temperature"] == 0
    assert "tokens/s" in done.stderr
    assert "| heldout | 200 | 200 |" in done.stdout


def test_a_killed_evaluation_generates_only_the_rest(greedy):
    kept, output, *_ = greedy
    assert 0 < kept < 200
    rows = [json.loads(line) for line in (output / "responses.jsonl").read_text().splitlines()]
    assert [row["reason"] == "kept" for row in rows] == [True] * kept + [False] * (200 - kept)
    assert len({row["id"] for row in rows}) == 200


@RARELY
def test_two_engines_through_ray_with_four_samples(root, environment, tmp_path):
    words = ["--engines", "2", "--samples", "4", "--temperature", "1", "--limit", "50"]
    summary, _ = evaluate(root, environment, tmp_path, *words)
    held_out = summary["benchmarks"]["heldout"]
    assert (held_out["n"], held_out["problems"], held_out["samples"]) == (200, 50, 4)
    passes = [held_out["pass_at_k"][str(k)]["value"] for k in range(1, 5)]
    assert passes == sorted(passes)
    assert passes[0] == pytest.approx(held_out["accuracy"])
    assert passes[3] > passes[0] + 0.2, "the four samples of a problem must differ"
    assert 0.15 < held_out["accuracy"] < 0.5
