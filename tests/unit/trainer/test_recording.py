"""Recording on a full disk: a run continues without its trackers."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch

from openrlhf_ktae.record.metrics import read_record


@pytest.fixture
def trainer(host, tmp_path):
    from openrlhf.utils.logging_utils import TensorboardLogger

    from openrlhf_ktae.trainer.recording import RecordingTrainer

    class Host:
        def train_step(self, rollouts, step):
            return {}, step + 1

        def save_logs_and_checkpoints(self, global_step, logs_dict, client_states):
            self.tensorboard_logger.log_train(global_step, logs_dict)

    class Trainer(RecordingTrainer, Host):
        pass

    made = Trainer()
    logger = SimpleNamespace(tensorboard_dir=str(tmp_path / "tensorboard"), wandb=SimpleNamespace(run_name="run"))
    made.args = SimpleNamespace(run=SimpleNamespace(dir=str(tmp_path)), logger=logger)
    made.wandb_logger, made.tensorboard_logger = None, TensorboardLogger(made.args)
    made.tensorboard_logger.writer.flush()
    made.experience_maker = SimpleNamespace(key_tokens={"highest": "a"}, credit=None, metrics={})
    return made


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_under_tensorboard_does_not_end_the_run(trainer, files_up_to):
    trainer.hold_trackers()
    writer = trainer.tensorboard_logger.writer
    with files_up_to(10):
        for step in range(1, 4):
            trainer.save_logs_and_checkpoints(step, {"loss": 0.5}, {})
            with suppress(OSError):
                writer.flush()  # its own thread writes later
        trainer.track_evaluation(3, {"eval_accuracy": 0.5})
    trainer.save_logs_and_checkpoints(4, {"loss": 0.5}, {})
    trainer.close_trackers()
    rows = list(read_record(trainer.args.run.dir))
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1, 2, 3, 4]
    notes = [row["text"] for row in rows if row["kind"] == "note"]
    assert (
        len([text for text in notes if text.startswith("TensorboardLogger is disabled for the rest of this run")]) == 1
    )


def test_rollouts_that_cannot_be_written_are_noted(trainer):
    def write(*_):
        raise OSError("no room")

    trainer.rollout_recorder = SimpleNamespace(wants=lambda step: True, write=write, full=False)
    trainer.tokenizer, trainer.experience_maker.credit = None, object()
    assert trainer.train_step([], 6) == ({}, 7)
    (row,) = read_record(trainer.args.run.dir)
    assert row["text"] == "the rollouts of step 7 are not recorded: no room"


def test_a_post_mortem_batch_is_skipped_on_a_full_disk(host, tmp_path, files_up_to):
    from openrlhf_ktae.trainer.nonfinite import save_batch

    batch = SimpleNamespace(sequences=torch.zeros(1000), prompts=[], labels=[])
    with files_up_to(100):
        assert save_batch(tmp_path, 3, "", [batch]) is None
        assert list((tmp_path / "postmortem").iterdir()) == []
        (tmp_path / "file").write_text("")
        assert save_batch(tmp_path / "file", 3, "", [batch]) is None
    assert save_batch(tmp_path, 3, "", [batch]) is not None
