"""What the trainer does after a step: go on, save or end. Checkpoints are really written."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from openrlhf_ktae.checkpoint.files import files_below
from openrlhf_ktae.checkpoint.folder import listed
from openrlhf_ktae.checkpoint.write import staging
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.record.metrics import read_record, stop_reason

WORDS = (
    "--pretrain examples/quickstart/model --prompt_data d.jsonl --vllm_num_engines 1 --actor.num_gpus_per_node 1 "
    "--label_key label --advantage_estimator ktae --n_samples_per_prompt 4 --max_ckpt_num 9 --actor.entropy_coef 0 "
    "--faults.min_entropy 0.5 --faults.collapse_patience 2 --save_steps 100 --eval_dataset e.jsonl --eval_steps 100"
)


class Ranks:
    """A rank that writes where the options say and counts saved models."""

    def __init__(self, ray, args):
        self._ray, self._args = ray, args
        self.models = 0
        self.states = None

    def async_run_method(self, method_name, tag=None, client_states=None, **_):
        if method_name == "get_checkpoint_states":
            return [self._ray.put(self.states)]
        if method_name == "files_seen":
            folder = staging(self._args.ckpt.path, tag)
            files = {str(path.relative_to(folder)): path.stat().st_size for path in files_below(folder)}
            return [self._ray.put(("this-node", files))]
        assert method_name == "save_checkpoint"
        folder = staging(self._args.ckpt.path, tag) / "_actor"
        folder.mkdir(parents=True)
        torch.save(client_states, folder / "rank0.pt")
        self.states = client_states
        return []

    def async_save_model(self):
        self.models += 1
        return []


def rollout():
    return SimpleNamespace(
        info={}, sequences=torch.arange(6)[None], action_mask=torch.ones(1, 5), prompts=["p"], labels=["l"]
    )


class Generator:
    """Gives one rollout per step; first calls what `before_step` or `before_evaluation` has for the call's number."""

    def __init__(self, steps):
        self._steps, self.calls, self.evaluations = steps, 0, 0
        self.before_step, self.before_evaluation = {}, {}
        self.left_over, self.last_eval = 0, {"eval_macro_accuracy": 0.5}
        self.continuation_metrics = {}

    def generate_samples(self, **_):
        self.calls += 1
        self.before_step.get(self.calls, lambda: None)()
        torch.rand(1)  # draws for abandoned rollouts must not reach a checkpoint
        return [rollout()], None, 1, self.calls == self._steps

    def generate_eval_samples(self, **_):
        self.evaluations += 1
        self.before_evaluation.get(self.evaluations, lambda: None)()
        return []


@pytest.fixture
def new_run(ray_here, tmp_path, monkeypatch, root):
    """Build a synchronous run whose steps have given outcomes: a status or an error."""
    from openrlhf.trainer import ppo_trainer as host

    from openrlhf_ktae.trainer import ending
    from openrlhf_ktae.trainer.engines import EngineKeeper
    from openrlhf_ktae.trainer.ppo_trainer import KTAEPPOTrainer

    monkeypatch.chdir(root)
    waited = []
    monkeypatch.setattr(ending, "wait_for_the_driver", waited.append)
    monkeypatch.setattr(host, "compute_eval_metrics", lambda *_: {})

    def host_step(self, rollout_samples, global_step):
        outcome = self.outcomes.pop(0) if self.outcomes else {}
        if isinstance(outcome, Exception):
            raise outcome
        self.kl_ctl.value = outcome.get("kl_after", self.kl_ctl.value)
        return {"entropy_loss": 1.0, **outcome}, global_step + 1

    monkeypatch.setattr(EngineKeeper, "broadcast_to_vllm", lambda self: None)
    monkeypatch.setattr(host.BasePPOTrainer, "train_step", host_step)
    monkeypatch.setattr(host.BasePPOTrainer, "_compute_rollout_stats", lambda *_: {})

    def make(*outcomes, words=(), resume_from=None, states=None, steps=None):
        args = parse_command_line([*WORDS.split(), "--run.dir", str(tmp_path / "run"), *words])
        args.run.about = {"config": {}, "data": {}, "versions": {}}
        args.run.resume_from, args.ckpt.load_enable = resume_from, bool(resume_from)
        made = KTAEPPOTrainer.__new__(KTAEPPOTrainer)
        made.args, made.outcomes, made.waited = args, list(outcomes), waited
        made.actor_model_group, made.critic_model_group = Ranks(ray_here, args), None
        made.actor_model_group.states = states
        made.vllm_engines, made.generate_kwargs = None, {}
        made.wandb_logger = made.tensorboard_logger = None
        made.kl_ctl = SimpleNamespace(value=0.5)
        shuffle = made.shuffle = torch.Generator().manual_seed(3)
        made.experience_maker = SimpleNamespace(key_tokens={}, metrics={}, credit=None, shuffle=shuffle)
        made.best_eval_metric_key, made.best_eval_metric_value = "none", float("-inf")
        made._latest_eval_metric_value = None
        made.eval_dataloader = [1]
        made.samples_generator = Generator(steps or len(outcomes))
        made.prompts_dataloader = Data()
        return made

    return make


class Data(list):
    def __init__(self):
        super().__init__(range(8))

    def state_dict(self):
        position = {"ended": False, "buffer": [], "carried": [], "prompts_sent": 0}
        return {"loader": {}, "position": position}

    def load_state_dict(self, state):
        self.loaded = state


SKIP = {"faults/skipped_updates": 1.0}
SKIP_CRITIC = {"faults/skipped_critic_updates": 1.0}


def rows(run, kind):
    return [row for row in read_record(run.args.run.dir) if row["kind"] == kind]


def checkpoints(run):
    return [one.path.name for one in listed(Path(run.args.ckpt.path))[0]]


def nonfinite():
    from openrlhf_ktae.trainer.nonfinite import NonFiniteBatch

    return NonFiniteBatch("a score is infinite", [])


def test_the_run_stops_after_so_many_skipped_updates_in_a_row(new_run):
    run = new_run(SKIP, {}, SKIP, nonfinite(), SKIP_CRITIC, {}, words=("--faults.max_skipped_updates", "3"))
    run.fit()
    assert [row["step"] for row in rows(run, "step")] == [1, 2, 3, 4, 5]
    (stop,) = rows(run, "stop")
    assert "--faults.max_skipped_updates 3: 3 updates in a row were skipped" in stop["reason"]
    assert run.samples_generator.evaluations == 2, "the last model must be evaluated"
    texts = [row["text"] for row in rows(run, "note")]
    assert "step 1: the update is skipped, a loss or gradient of the policy is not finite; the batch is in" in texts[0]
    assert "step 4: the update is skipped, a score is infinite" in texts[2]
    assert "gradient of the critic" in texts[3]
    assert rows(run, "step")[3]["faults/skipped_updates"] == 1
    assert (Path(run.args.run.dir) / "postmortem/step-000001.pt").is_file()


def test_limit_0_never_stops(new_run):
    run = new_run(*[SKIP] * 6, words=("--faults.max_skipped_updates", "0"))
    run.fit()
    assert len(rows(run, "step")) == 6
    assert not rows(run, "stop")


@pytest.mark.parametrize("after", [math.nan, math.inf, 0.7])
def test_a_skipped_update_keeps_the_kl_coefficient_finite(new_run, after):
    run = new_run({**SKIP, "kl_after": after})
    run.fit()
    assert run.kl_ctl.value == (0.5 if not math.isfinite(after) else after)


LOW = {"entropy_loss": 0.1}


@pytest.mark.parametrize(
    ("action", "saved", "steps"),
    [("warn", [], 4), ("checkpoint", ["global_step2"], 4), ("stop", ["global_step2"], 2)],
)
def test_a_collapse_warns_checkpoints_or_stops(new_run, action, saved, steps):
    run = new_run(LOW, LOW, {}, {}, words=("--faults.collapse_action", action))
    run.fit()
    assert checkpoints(run) == saved
    assert len(rows(run, "step")) == steps
    assert ["--faults.min_entropy 0.5: entropy_loss has been below" in row["text"] for row in rows(run, "note")] == [
        True
    ]
    assert bool(stop_reason(run.args.run.dir)) == (action == "stop")


def test_consecutive_counts_survive_a_resume(new_run):
    words = ("--faults.max_skipped_updates", "2", "--save_steps", "1")
    first = new_run({**SKIP, **LOW}, words=words)
    first.fit()
    path = f"{first.args.ckpt.path}/global_step1"
    second = new_run({**SKIP, **LOW}, {}, words=words, resume_from=path, states=first.actor_model_group.states, steps=2)
    second.fit()
    assert [row["step"] for row in rows(second, "step")] == [1, 2]
    assert "2 updates in a row were skipped" in stop_reason(second.args.run.dir)
    assert sum("--faults.min_entropy" in row["text"] for row in rows(second, "note")) == 1


def ends_the_generation(run):
    """Return a callback that gives the order and aborts, like a generator in `abort_on_end_order`."""
    from openrlhf_ktae.processes.ending import GivenUp

    def act():
        torch.rand(7)
        run.end_order.ask()
        raise GivenUp

    return act


def test_an_order_while_rollouts_are_generated_saves_the_last_step(new_run):
    run = new_run({}, {}, {})
    run.samples_generator.before_step[3] = ends_the_generation(run)
    torch.manual_seed(4)
    run.fit()
    assert run.waited == [run.end_order]
    assert checkpoints(run) == ["global_step2"]
    assert run.end_order.answered.startswith("checkpoint of step 2 in ")
    assert run.actor_model_group.models == 0
    torch.manual_seed(4)
    torch.rand(2)
    state = torch.load(f"{run.args.ckpt.path}/global_step2/trainer.pt", weights_only=True)
    assert torch.equal(state["trainer"]["random"]["torch"], torch.get_rng_state()), "must be the state after step 2"


def test_an_order_during_generation_discards_the_rollouts(new_run):
    run = new_run({}, {}, {})
    run.samples_generator.before_step[3] = run.end_order.ask
    run.fit()
    assert checkpoints(run) == ["global_step2"]
    assert [row["step"] for row in rows(run, "step")] == [1, 2]
    assert run.end_order.answered.startswith("checkpoint of step 2 in ")


def test_an_order_during_an_evaluation_saves_the_last_step(new_run):
    run = new_run({}, {}, {}, words=("--eval_steps", "2"))
    run.samples_generator.before_evaluation[2] = ends_the_generation(run)
    run.fit()
    assert checkpoints(run) == ["global_step2"]
    assert run.waited == [run.end_order]


def test_an_order_during_a_step_lets_it_finish(new_run):
    run = new_run({}, {}, {})
    run.samples_generator.before_step[2] = lambda: run.outcomes.__setitem__(0, Asks(run))
    run.fit()
    assert checkpoints(run) == ["global_step2"]
    assert [row["step"] for row in rows(run, "step")] == [1, 2]


class Asks(dict):
    """The status of a step during which the order arrives."""

    def __init__(self, run):
        super().__init__()
        self._run = run

    def get(self, name, default=None):
        self._run.end_order.ask()
        return super().get(name, default)


def test_an_order_after_the_last_step_saves_its_checkpoint_and_the_model(new_run):
    run = new_run({}, {})
    run.samples_generator.before_evaluation[2] = ends_the_generation(run)
    run.fit()
    assert checkpoints(run) == ["global_step2"]
    assert run.actor_model_group.models == 1
    answer = run.end_order.answered
    assert answer.startswith(f"the final model is in {run.args.ckpt.output_dir}; checkpoint of step 2 in ")
    assert run.waited == [run.end_order]


def test_an_order_after_a_stop_for_skipped_updates_saves_checkpoint_and_model(new_run):
    run = new_run({}, SKIP, words=("--faults.max_skipped_updates", "1"))
    run.samples_generator.before_evaluation[2] = ends_the_generation(run)
    run.fit()
    assert stop_reason(run.args.run.dir).startswith("--faults.max_skipped_updates 1")
    assert checkpoints(run) == ["global_step2"]
    assert run.actor_model_group.models == 1
    assert run.waited == [run.end_order]


def test_a_dead_engine_counts_as_an_order_only_if_there_was_one(new_run):
    from ray.exceptions import ActorDiedError

    def dies():
        raise ActorDiedError

    run = new_run({}, {})
    run.samples_generator.before_step[2] = dies
    with pytest.raises(ActorDiedError):
        run.fit()
    assert checkpoints(run) == []


@pytest.mark.parametrize("evaluation", [1, 2])
def test_too_many_failed_rollouts_in_an_evaluation_stop_the_run(new_run, evaluation):
    """Before training (1) or after it (2); `fit` must return, so that the model is saved."""
    from openrlhf_ktae.base.errors import TrainingStopped

    def fails():
        raise TrainingStopped("too many failed")

    run = new_run({}, {})
    run.samples_generator.before_evaluation = dict.fromkeys(range(evaluation, 9), fails)
    run.fit()
    assert stop_reason(run.args.run.dir) == "too many failed"
    assert len(rows(run, "step")) == (0 if evaluation == 1 else 2)


def test_a_stop_whose_reason_cannot_be_written_saves_the_model_and_fails(new_run, files_up_to):
    """The host's command saves the model after a stop, but not after an error."""
    from openrlhf_ktae.base.errors import TrainingStopped
    from openrlhf_ktae.record.metrics import UnwrittenStop

    run = new_run({}, TrainingStopped("in a step"))
    room = files_up_to(0)
    run.samples_generator.before_step[2] = room.__enter__
    try:
        with pytest.raises(UnwrittenStop, match="in a step"):
            run.fit()
    finally:
        room.__exit__(None, None, None)
    assert run.actor_model_group.models == 1
    assert stop_reason(run.args.run.dir) is None


def test_the_first_stop_reason_is_kept(new_run):
    from openrlhf_ktae.base.errors import TrainingStopped

    def fails():
        raise TrainingStopped("and in the evaluation")

    run = new_run({}, TrainingStopped("in a step"))
    run.samples_generator.before_evaluation[2] = fails
    run.fit()
    assert stop_reason(run.args.run.dir) == "in a step"
    assert [row["text"] for row in rows(run, "note")] == ["and in the evaluation"]


@pytest.mark.parametrize("step", [1, 2])
def test_a_missed_evaluation_is_run_on_resume(new_run, step):
    """Step 2's checkpoint is written before its evaluation; a run that ended in between evaluates first."""
    words = ("--save_steps", "1", "--eval_steps", "2")
    first = new_run({}, {}, words=words)
    first.fit()
    path = f"{first.args.ckpt.path}/global_step{step}"
    states = torch.load(f"{path}/_actor/rank0.pt", weights_only=True)
    second = new_run({}, words=words, resume_from=path, states=states)
    before = len(rows(second, "eval"))
    second.fit()
    assert [row["step"] for row in rows(second, "eval")[before:] if row["when"] == "during"] == [2]


def test_the_shuffle_of_labels_continues_after_a_resume(new_run):
    words = ("--save_steps", "1")
    first = new_run({}, words=words)
    first.shuffle.set_state(torch.Generator().manual_seed(77).get_state())
    first.fit()
    expected = torch.rand(3, generator=first.shuffle)
    path = f"{first.args.ckpt.path}/global_step1"
    second = new_run({}, words=words, resume_from=path, states=first.actor_model_group.states)
    second.fit()
    assert torch.equal(torch.rand(3, generator=second.shuffle), expected)
