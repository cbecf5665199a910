"""A run that trained no step says so and does not exit with 0."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from openrlhf_ktae.cli import train_ppo_ray as command
from openrlhf_ktae.launch.console import summary
from openrlhf_ktae.record.metrics import RunRecord
from openrlhf_ktae.verifier.config import VerifierConfig

MESSAGE = "NO STEP WAS TRAINED: the data ran out or every group was filtered"


@pytest.fixture
def args(tmp_path):
    return SimpleNamespace(
        run=SimpleNamespace(dir=str(tmp_path), plan=False, restarts=0, resume_step=0),
        ckpt=SimpleNamespace(path=str(tmp_path / "none"), output_dir=str(tmp_path / "model")),
        logger=SimpleNamespace(tensorboard_dir=None),
        verifier=SimpleNamespace(config=VerifierConfig()),
        algo=SimpleNamespace(credit=SimpleNamespace(name="", file=None, needs=(), config=None)),
        backend="cpu",
    )


def test_the_summary_says_that_no_step_was_trained(args):
    record = RunRecord(args.run.dir)
    record.evaluation("before", 0, {"eval_accuracy": 0.5})
    assert summary(args).startswith(MESSAGE)
    record.step(1, {}, {})
    assert MESSAGE not in summary(args)


@pytest.mark.parametrize(("steps", "resumed", "code"), [(0, 0, 3), (1, 0, 0), (0, 5, 0)])
def test_exit_code(args, steps, resumed, code, monkeypatch, capsys):
    """A run resumed after its last step has nothing left to do and succeeds."""
    args.run.resume_step = resumed

    def train(*_):
        record = RunRecord(args.run.dir)
        record.plan(4)
        for step in range(steps):
            record.step(step + 1, {}, {})

    backend = SimpleNamespace(name="cpu", adapt=lambda _: [], preloads=None)
    for name, stand_in in {
        "check_host": lambda: None,
        "parse_command_line": lambda _: args,
        "resolve": lambda _: backend,
        "preflight": lambda *_: [],
        "log_keys": lambda _: (),
        "choose_checkpoint": lambda *_: [],
        "_train_watched": train,
    }.items():
        monkeypatch.setattr(command, name, stand_in)
    monkeypatch.setattr(command.directory, "prepare", lambda *_: None)
    assert command.main([]) == code
    said = capsys.readouterr()
    assert (MESSAGE in said.out) == (steps == 0)
    assert ("stopped early: the data ran out" in said.err) == (code == 3)
