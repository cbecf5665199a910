"""DAPO with token-level credit on the real stack: it learns, keeps its prompt ledger, and says why it stops."""

from __future__ import annotations

import json

import pytest
from marks import RARELY
from run_processes import ASYNCHRONOUS

DAPO = "configs/dapo_ktae/quickstart.yaml"
EXIT_STOPPED = 3


@pytest.fixture(scope="module")
def dapo(train, tmp_path_factory):
    """One episode of 320 prompts with a linear schedule and a checkpoint every 5 steps."""
    words = "--actor.lr_scheduler linear --actor.mask_truncated --ckpt.save_steps 5 --ckpt.max_num 99"
    return train(tmp_path_factory.mktemp("dapo"), *words.split(), config=DAPO)


@RARELY  # test_resume.py also trains with dynamic sampling
def test_it_learns_from_full_batches_of_mixed_groups(dapo):
    assert dapo.code == 0, dapo.output
    assert dapo.evaluations["after"]["eval_accuracy"] >= dapo.evaluations["before"]["eval_accuracy"] + 0.2
    assert all(step["rollout/num_samples"] == 64 for step in dapo.steps[:-1])
    assert all(step["ktae/mixed_group_share"] == 1 for step in dapo.steps)
    assert sum(step["dynamic_sampling/prompts_drawn"] for step in dapo.steps) <= 320
    assert len(dapo.steps) < 40, "filtering leaves fewer steps"


@RARELY  # test_resume.py also trains with dynamic sampling
def test_the_schedule_ends_with_the_data(dapo):
    """The host plans 80 updates; filtering leaves fewer, and the learning rate must still decay to nearly 0."""
    assert dapo.steps[-1]["actor_lr"] < 0.08 * max(step["actor_lr"] for step in dapo.steps)


@RARELY  # test_resume.py compares a resumed run with an uninterrupted one
def test_the_checkpoint_contains_every_judged_prompt(dapo, train):
    """A run resumed mid-episode draws the remaining prompts and remembers the earlier ones."""
    directory = dapo.directory
    drawn = {step["step"]: step["dynamic_sampling/prompts_drawn"] for step in dapo.steps}
    words = f"--resume {directory}/checkpoints/global_step20 --run.eval_edges false --ckpt.save_steps 5"
    again = train(directory, *words.split(), *"--actor.lr_scheduler linear --actor.mask_truncated".split(), config=DAPO)
    assert again.code == 0, again.output
    assert [step["step"] for step in again.steps] == list(range(1, len(again.steps) + 1)), (
        "steps after 20 were set aside"
    )
    resumed = again.steps[20:]
    before = sum(count for step, count in drawn.items() if step <= 20)
    after = sum(step["dynamic_sampling/prompts_drawn"] for step in resumed)
    assert before + after == pytest.approx(320, abs=24), "no prompt is drawn twice"
    highest = max(step["actor_lr"] for step in dapo.steps)
    assert highest > 0.3 * highest > resumed[-1]["actor_lr"]

    import torch

    tag = (directory / "checkpoints/latest").read_text()
    state = torch.load(directory / "checkpoints" / tag / "trainer.pt", weights_only=True)["position"]
    upto = int(tag.removeprefix("global_step"))
    judged = before + sum(step["dynamic_sampling/prompts_drawn"] for step in resumed if step["step"] <= upto)
    assert len(state["pass_rates"]) == pytest.approx(judged, abs=12)
    assert sum(known for known, _, _ in state["pass_rates"].values()) == 8 * len(state["pass_rates"])


@RARELY
def test_hopeless_data_stop_the_asynchronous_run_with_the_reason(train, tmp_path):
    """The model cannot produce any gold answer, so no group is mixed and the model is saved unchanged."""
    rows = [{"input": f"compute {i} + 1 :", "label": "123456"} for i in range(64)]
    (tmp_path / "hopeless.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    words = f"--data.prompt_dataset {tmp_path}/hopeless.jsonl {ASYNCHRONOUS}"
    limit = "--algo.dynamic_filtering_max_gen_batches 2 --run.eval_edges false"
    run = train(tmp_path / "run", *words.split(), *limit.split(), config=DAPO)
    assert run.code == EXIT_STOPPED, run.output
    assert run.steps == []
    for text in (
        "stopped early",
        "--algo.dynamic_filtering_max_gen_batches 2 is reached with 0 groups whose scores differ",
        "Prompts drawn: 16",
        "0: 16",
        "easier prompts",
    ):
        assert text in run.output
    assert (tmp_path / "run/model/config.json").is_file()
