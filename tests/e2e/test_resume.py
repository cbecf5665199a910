"""The same result twice, and the same after `kill -9` of everything, on the real stack with dynamic sampling."""

from __future__ import annotations

import pytest
import torch
from marks import RARELY

from openrlhf_ktae.checkpoint.folder import listed
from openrlhf_ktae.record.metrics import read_record
from openrlhf_ktae.selftest.killing import EVERYTHING, Death
from openrlhf_ktae.selftest.mortal_run import MortalRun
from openrlhf_ktae.selftest.trial import AGAIN, STRAIGHT, Trial

PROMPTS = 40  # of each of two episodes: some are filtered, so that groups are left over and carried on


@pytest.fixture(scope="module")
def trial(root, environment, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("RAY_ADDRESS", raising=False)
        one = Trial(["--config", "configs/dapo_ktae/quickstart.yaml"], tmp_path_factory.mktemp("resume"), PROMPTS, 2)
        one.finish(STRAIGHT)
        yield one


@RARELY  # the next test would find a difference, too
def test_the_same_run_twice_gives_the_same_figures_and_weights(trial):
    trial.finish(AGAIN)
    assert len(trial.steps(STRAIGHT)) >= 6
    assert trial.difference(AGAIN) is None


def test_killed_and_resumed_it_gives_the_figures_and_weights_of_one_that_was_not(trial):
    """It dies in the middle of a step or of a checkpoint: the moment is wherever the machine is by then."""
    run = MortalRun(trial, "killed", start_seconds=0.0, seed=0)
    assert run.suffer(Death(EVERYTHING, step=len(trial.steps(STRAIGHT)) // 2, share=0.6))
    done = [row["step"] for row in trial.steps("killed")]
    checkpoint = listed(run.checkpoints)[0][0]
    assert 0 < checkpoint.step <= done[-1] <= len(trial.steps(STRAIGHT))
    state = torch.load(checkpoint.path / "trainer.pt", weights_only=True)
    assert len(state["trainer"]["sampling"]["pass_rates"]["keys"]) > 0
    run.finish()
    rows = list(read_record(trial.folder / "killed"))
    assert [row["step"] for row in rows if row["kind"] == "resume"] == [checkpoint.step]
    assert run.toll.wrong == []
    assert trial.difference("killed") is None
