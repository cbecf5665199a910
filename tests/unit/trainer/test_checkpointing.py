"""The host's saving, redirected into atomic folders: full disks, failures, best checkpoints, ends of episodes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from openrlhf_ktae.checkpoint.files import files_below
from openrlhf_ktae.checkpoint.folder import listed, verify
from openrlhf_ktae.checkpoint.write import staging
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.record.metrics import RunRecord, read_record

WORDS = (
    "--pretrain examples/quickstart/model --prompt_data d.jsonl --vllm_num_engines 1 --actor.num_gpus_per_node 1 "
    "--label_key label --advantage_estimator ktae --n_samples_per_prompt 4 --save_steps 2 --max_ckpt_num 2"
)


class Ranks:
    """Two ranks that write where the options say, as the host does through `CheckpointedActor`."""

    def __init__(self, ray, args):
        self._ray, self._args = ray, args
        self.broken = None
        self.states = None
        self.elsewhere = {}

    def async_run_method(self, method_name, tag=None, client_states=None, **_):
        if method_name == "get_checkpoint_states":
            return [self._ray.put(self.states)]
        if method_name == "files_seen":
            folder = staging(self._args.ckpt.path, tag)
            files = {str(path.relative_to(folder)): path.stat().st_size for path in files_below(folder)}
            return [self._ray.put(("node-one", files)), self._ray.put(("node-two", {**files, **self.elsewhere}))]
        assert method_name == "save_checkpoint"
        if self.broken:
            raise self.broken
        folder = staging(self._args.ckpt.path, tag) / "_actor"
        folder.mkdir(parents=True)
        for rank in range(2):
            torch.save(client_states, folder / f"rank{rank}.pt")
        self.states = client_states
        return []


@pytest.fixture
def new_trainer(ray_here, tmp_path, monkeypatch, root):
    """Build the host's base trainer with our mixins; values it would compute are given."""
    from openrlhf.trainer.ppo_trainer import BasePPOTrainer

    from openrlhf_ktae.trainer.checkpointing import CheckpointingTrainer
    from openrlhf_ktae.trainer.recording import RecordingTrainer

    monkeypatch.chdir(root)

    class Trainer(CheckpointingTrainer, RecordingTrainer, BasePPOTrainer):
        pass

    def make(*words, resume_from=None, states=None):
        args = parse_command_line([*WORDS.split(), "--run.dir", str(tmp_path / "run"), *words])
        args.run.about = {"config": {}, "data": {}, "versions": {}}
        args.run.resume_from, args.ckpt.load_enable = resume_from, bool(resume_from)
        made = Trainer.__new__(Trainer)
        made.args, made.actor_model_group, made.critic_model_group = args, Ranks(ray_here, args), None
        made.actor_model_group.states = states
        made.wandb_logger = made.tensorboard_logger = None
        made.kl_ctl = SimpleNamespace(value=0.5)
        shuffle = torch.Generator().manual_seed(3)
        made.experience_maker = SimpleNamespace(key_tokens={}, shuffle=shuffle)
        made.best_eval_metric_key, made.best_eval_metric_value = args.ckpt.best_metric_key, float("-inf")
        made._latest_eval_metric_value = None
        return made

    return make


def client_states(step, ended=False):
    position = {"ended": ended, "buffer": [], "carried": [], "prompts_sent": 8 * step}
    loader = {"loader": {"yielded": step}, "position": position}
    return {"episode": 0, "global_step": step, "total_consumed_prompts": 8 * step, "data_loader_state_dict": loader}


def names(trainer):
    return [one.path.name for one in listed(Path(trainer.args.ckpt.path))[0]]


def notes(trainer):
    return [row["text"] for row in read_record(trainer.args.run.dir) if row["kind"] == "note"]


def train(trainer, *steps):
    for step in steps:
        trainer.save_logs_and_checkpoints(step, {"reward": 0.5}, client_states(step))


def test_a_checkpoint_is_written_every_n_steps_and_old_ones_are_deleted(new_trainer):
    trainer = new_trainer()
    train(trainer, *range(1, 8))
    assert names(trainer) == ["global_step6", "global_step4"]
    checkpoint = verify(Path(trainer.args.ckpt.path) / "global_step6")
    assert {"_actor/rank0.pt", "_actor/rank1.pt", "trainer.pt"} == set(checkpoint.manifest.files)
    assert [row["step"] for row in read_record(trainer.args.run.dir)] == list(range(1, 8))


def test_buffered_rollouts_are_saved_only_once(new_trainer):
    trainer = new_trainer()
    train(trainer, 2)
    assert trainer.actor_model_group.states["data_loader_state_dict"] == {"yielded": 2}


def test_a_run_resumes_from_the_saved_state(new_trainer):
    first = new_trainer("--algo.kl.target", "6")
    first.kl_ctl.value = 0.125
    torch.manual_seed(11)
    train(first, 2)
    expected = torch.rand(3)
    path = str(Path(first.args.ckpt.path) / "global_step2")
    second = new_trainer("--algo.kl.target", "6", resume_from=path, states=first.actor_model_group.states)
    states = second.init_checkpoint_states()
    assert states["data_loader_state_dict"]["position"]["prompts_sent"] == 16
    assert states["data_loader_state_dict"]["loader"] == {"yielded": 2}
    assert states["episode"] == 0
    assert second.kl_ctl.value == 0.125
    assert second.record.last_step == 2
    torch.rand(5)  # draws before the first step must not matter
    assert torch.equal(second.training_state()["random"]["torch"], second._resumed_random["torch"])
    drawn = []
    host = type(second).__mro__[3]
    assert host.__name__ == "BasePPOTrainer"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "train_step", lambda *_: drawn.append(torch.rand(3)) or ({}, 3))
        second.experience_maker.metrics, second.experience_maker.credit = {}, None
        second.train_step([], 2)
    assert torch.equal(drawn[0], expected)


def test_the_end_of_an_episode_is_not_repeated(new_trainer):
    first = new_trainer()
    first.save_logs_and_checkpoints(2, {}, client_states(2, ended=True))
    path = str(Path(first.args.ckpt.path) / "global_step2")
    second = new_trainer(resume_from=path, states=first.actor_model_group.states)
    assert second.init_checkpoint_states()["episode"] == 1
    assert second.resumed_states["episode"] == 0, "saving again at once must write the same state"


def test_the_ledger_of_an_older_checkpoint_is_moved_to_the_position(new_trainer):
    first = new_trainer()
    train(first, 2)
    path = Path(first.args.ckpt.path) / "global_step2"
    saved = torch.load(path / "trainer.pt", weights_only=True)
    ledger = {"keys": torch.tensor([7, 2**62]), "rows": torch.tensor([[4, 4, 1], [8, 4, 0]])}
    saved["trainer"]["sampling"] = {"pass_rates": ledger, "prompts_seen": 24}
    torch.save(saved, path / "trainer.pt")
    second = new_trainer(resume_from=str(path), states=first.actor_model_group.states)
    position = second.init_checkpoint_states()["data_loader_state_dict"]["position"]
    assert (position["pass_rates"], position["prompts_seen"]) == ({7: (4, 4, 1), 2**62: (8, 4, 0)}, 24)


def test_the_best_is_replaced_by_a_better_one(new_trainer):
    trainer = new_trainer()
    for step, accuracy in ((1, 0.5), (2, 0.4), (3, 0.6)):
        trainer.save_best_checkpoint({"eval_macro_accuracy": accuracy}, step, client_states(step))
    assert names(trainer) == ["best_global_step3"]
    assert trainer.best_eval_metric_value == 0.6
    assert [row["step"] for row in read_record(trainer.args.run.dir)] == [1, 2, 3]
    trainer.save_best_checkpoint({}, 4, client_states(4))
    trainer.save_best_checkpoint({"another": 1.0}, 4, client_states(4))
    assert names(trainer) == ["best_global_step3"]


def test_a_failed_write_keeps_the_last_complete_checkpoint_and_the_run_continues(new_trainer):
    trainer = new_trainer()
    train(trainer, 2)
    trainer.actor_model_group.broken = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    train(trainer, 3, 4)
    assert names(trainer) == ["global_step2"]
    assert "no checkpoint global_step4: the disk had " in notes(trainer)[0]
    assert "free when the write failed, OSError: [Errno 28] No space left on device" in notes(trainer)[0]
    assert [row["step"] for row in read_record(trainer.args.run.dir) if row["kind"] == "step"] == [2, 3, 4]
    trainer.actor_model_group.broken = None
    train(trainer, 6)
    assert names(trainer) == ["global_step6", "global_step2"]
    assert not list(Path(trainer.args.ckpt.path).glob(".*"))


def test_files_on_an_unshared_disk_make_no_checkpoint(new_trainer, monkeypatch):
    monkeypatch.setattr("openrlhf_ktae.checkpoint.write.SEEN_SECONDS", 0.1)
    trainer = new_trainer()
    train(trainer, 2)
    trainer.actor_model_group.elsewhere = {"_actor/rank2.pt": 5}
    train(trainer, 4)
    assert names(trainer) == ["global_step2"]
    (note,) = notes(trainer)
    assert "no checkpoint global_step4: the trainer does not see 1 of 4 files that ranks on node-two see" in note
    assert "the disk had" not in note
    assert not list(Path(trainer.args.ckpt.path).glob(".writing*"))


def test_a_rank_that_dies_while_saving_ends_the_run(new_trainer):
    trainer = new_trainer()
    trainer.actor_model_group.broken = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(RuntimeError, match="closed by peer"):
        train(trainer, 2)


def test_a_failed_write_stops_the_run_if_requested(new_trainer):
    from openrlhf_ktae.base.errors import TrainingStopped

    trainer = new_trainer("--ckpt.on_failure", "stop")
    trainer.actor_model_group.broken = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(TrainingStopped, match=r"global_step2: .*OSError.*--ckpt\.on_failure stop"):
        train(trainer, 2)
    assert [row["step"] for row in read_record(trainer.args.run.dir) if row["kind"] == "step"] == [2]


def test_an_old_checkpoint_that_cannot_be_deleted_is_noted_once(new_trainer, monkeypatch):
    import shutil

    real = shutil.rmtree

    def rmtree(path, *args, **kwargs):
        if "step2" in str(path):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        real(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    trainer = new_trainer()
    train(trainer, 2, 4, 6, 8, 10)
    assert names(trainer) == ["global_step10", "global_step8"]
    assert len(notes(trainer)) == 1
    assert ".deleting-global_step2 cannot be deleted" in notes(trainer)[0]
    trainer.actor_model_group.broken = OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: rmtree("step2"))
    train(trainer, 12)
    assert "no checkpoint global_step12" in notes(trainer)[-1], "staged files cannot be deleted either"
    assert names(trainer) == ["global_step10", "global_step8"]


def test_the_record_is_flushed_before_a_checkpoint_is_renamed(new_trainer, monkeypatch):
    """Otherwise a machine crash could leave a checkpoint with more steps than the record."""
    import openrlhf_ktae.trainer.checkpointing as module

    order = []
    trainer = new_trainer()
    sync, commit = trainer.record.sync, module.commit
    monkeypatch.setattr(trainer.record, "sync", lambda: order.append("record") or sync())
    monkeypatch.setattr(module, "commit", lambda *words: order.append("commit") or commit(*words))
    train(trainer, 2)
    assert order == ["record", "commit"]


def test_a_full_disk_skips_the_best_checkpoint_and_retries_it_later(new_trainer, monkeypatch):
    trainer = new_trainer()
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("openrlhf_ktae.checkpoint.space.shutil.disk_usage", lambda _: usage)
    train(trainer, 2)
    trainer.save_best_checkpoint({"eval_macro_accuracy": 0.5}, 2, client_states(2))
    assert names(trainer) == []
    assert trainer.args.ckpt.save_steps == 2
    assert len(notes(trainer)) == 2
    assert "a checkpoint takes" in notes(trainer)[0]
    assert [row["kind"] for row in read_record(trainer.args.run.dir)] == ["note", "step", "note", "eval"]
    usage.free = 10**12
    trainer.save_best_checkpoint({"eval_macro_accuracy": 0.4}, 4, client_states(4))
    assert names(trainer) == ["best_global_step4"], "an unsaved checkpoint must not count as the best"


def test_a_dead_rank_is_not_mistaken_for_a_full_disk(new_trainer):
    from ray.exceptions import ActorDiedError

    trainer = new_trainer()
    trainer.actor_model_group.broken = ActorDiedError()
    with pytest.raises(ActorDiedError):
        train(trainer, 2)
    assert [row["step"] for row in RunRecord(trainer.args.run.dir) and read_record(trainer.args.run.dir)] == [2]


def test_a_best_checkpoint_that_was_not_written_does_not_count(new_trainer):
    trainer = new_trainer()
    trainer.actor_model_group.broken = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    trainer.save_best_checkpoint({"eval_macro_accuracy": 0.9}, 2, client_states(2))
    trainer.actor_model_group.broken = None
    trainer.save_best_checkpoint({"eval_macro_accuracy": 0.5}, 4, client_states(4))
    assert names(trainer) == ["best_global_step4"]


@pytest.mark.parametrize(
    ("words", "saved", "text"),
    [
        ([], ["best_global_step3", "global_step2"], "checkpoint of step 3 in "),
        (["--ckpt.disable_ds"], [], "no weights were saved (--ckpt.disable_ds without --ckpt.save_hf)"),
        (["--ckpt.disable_ds", "--ckpt.save_hf"], ["best_global_step3", "global_step2"], "export of step 3 in "),
    ],
)
def test_a_checkpoint_without_weights_is_not_written(new_trainer, words, saved, text):
    from openrlhf_ktae.trainer.ending import saved_summary

    trainer = new_trainer("--eval.dataset", "e.jsonl", *words)
    train(trainer, 2)
    trainer.save_best_checkpoint({"eval_macro_accuracy": 0.5}, 3, client_states(3))
    assert names(trainer) == saved
    assert saved_summary(trainer.args, trainer.saved_step).startswith(text)


def test_a_resumed_run_knows_its_saved_step(new_trainer):
    from openrlhf_ktae.trainer.ending import saved_summary

    first = new_trainer()
    train(first, 2)
    path = f"{first.args.ckpt.path}/global_step2"
    own = new_trainer(resume_from=path, states=first.actor_model_group.states)
    own.init_checkpoint_states()
    assert saved_summary(own.args, own.saved_step) == f"checkpoint of step 2 in {own.args.ckpt.path}"
    other = new_trainer("--ckpt.path", f"{first.args.run.dir}/other", resume_from=path)
    other.actor_model_group.states = first.actor_model_group.states
    other.init_checkpoint_states()
    assert saved_summary(other.args, other.saved_step) == f"nothing new to save after {path}"


@pytest.mark.parametrize(("prompts", "steps"), [(320, 40), (323, 40), (324, 41)])
def test_the_plan_counts_a_short_last_batch_if_it_can_be_trained_on(new_trainer, prompts, steps):
    trainer = new_trainer("--rollout.batch_size", "8", "--train.batch_size", "16", "--train.num_episodes", "2")
    trainer.record_plan(prompts)
    assert [row["steps"] for row in read_record(trainer.args.run.dir)] == [2 * steps]
