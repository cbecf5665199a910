"""Real stack with dynamic sampling: repeated, killed and resumed runs are identical, and match the stored reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import reference
import torch
from marks import RARELY

from openrlhf_ktae.checkpoint.folder import listed
from openrlhf_ktae.record.metrics import read_record
from openrlhf_ktae.selftest.killing import EVERYTHING, Death
from openrlhf_ktae.selftest.mortal_run import MortalRun
from openrlhf_ktae.selftest.trial import AGAIN, STRAIGHT


@pytest.fixture(scope="module")
def trial(root, environment, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("RAY_ADDRESS", raising=False)
        for name, value in reference.ENVIRONMENT.items():
            patch.setenv(name, value)
        one = reference.trial_of(tmp_path_factory.mktemp("resume"))
        one.finish(STRAIGHT)
        yield one


@pytest.fixture
def stored():
    return json.loads(reference.STORED.read_text())


def test_ten_steps_match_the_stored_reference(trial, stored):
    family = reference.processor_family(Path("/proc/cpuinfo").read_text())
    assert reference.difference(reference.trajectory(trial.steps(STRAIGHT)), stored, family) is None


@pytest.mark.parametrize("name", reference.FIGURES)
def test_a_changed_sixth_digit_of_any_step_is_detected(stored, name):
    family, one = next(iter(stored.items()))
    assert reference.difference(one, stored, family) is None
    moved = {**one, name: [*one[name][:9], one[name][9] * (1 + 1e-5)]}
    assert f"step 10: {name} is" in reference.difference(moved, stored, family)


def test_a_processor_without_a_reference_compares_the_first_step(stored):
    one = next(iter(stored.values()))
    near, far = ({name: [values[0] * factor] for name, values in one.items()} for factor in (1.0005, 1.002))
    family = reference.processor_family("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2\n")
    with pytest.warns(UserWarning, match=r"no reference for intel-avx2: the first step"):
        assert reference.difference(near, stored, family) is None
    with pytest.warns(UserWarning, match="no reference"):
        assert "step 1: policy_loss" in reference.difference(far, stored, family)


@RARELY  # the next test would catch a difference too
def test_the_same_run_twice_gives_the_same_figures_and_weights(trial):
    trial.finish(AGAIN)
    assert len(trial.steps(STRAIGHT)) >= 6
    assert trial.difference(AGAIN) is None


def test_killed_and_resumed_run_gives_the_same_metrics_and_weights(trial):
    """The kill lands in a step or a checkpoint, depending on the machine's speed."""
    run = MortalRun(trial, "killed", start_seconds=0.0, seed=0)
    assert run.inject(Death(EVERYTHING, step=len(trial.steps(STRAIGHT)) // 2, share=0.6))
    done = [row["step"] for row in trial.steps("killed")]
    checkpoint = listed(run.checkpoints)[0][0]
    assert 0 < checkpoint.step <= done[-1] <= len(trial.steps(STRAIGHT))
    state = torch.load(checkpoint.path / "trainer.pt", weights_only=True)
    assert len(state["position"]["pass_rates"]) > 0
    run.finish()
    rows = list(read_record(trial.folder / "killed"))
    assert [row["step"] for row in rows if row["kind"] == "resume"] == [checkpoint.step]
    assert run.toll.wrong == []
    assert trial.difference("killed") is None
