"""`make gpu-check` without a GPU: six real steps on the CPU backend, and the report."""

from __future__ import annotations

import json
import subprocess
import sys

from marks import RARELY


@RARELY  # its parts are unit-tested; this run only adds another start of the whole stack
def test_six_steps_on_a_cpu_have_equal_weights_and_log_probabilities(root, environment, tmp_path):
    output = tmp_path / "gpu-check.json"
    words = ["--backend", "cpu", "--only", "attention,six-steps", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "openrlhf_ktae.cli.gpu_check", *words],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=450,
    )
    assert done.returncode == 0, done.stdout
    attention, steps = json.loads(output.read_text())["checks"]
    assert (attention["status"], steps["status"]) == ("skipped", "ok")
    figures = steps["figures"]
    assert figures["steps"] == figures["synchronisations"] == figures["with_equal_weights"] == 6
    assert 0 < figures["log_prob_gap_mean"] < 0.01
    assert figures["tokens"] > 1000
    assert str(tmp_path) not in output.read_text()
