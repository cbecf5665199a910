"""Resuming a command: its checkpoint, its options, and a record that continues at the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.checkpoint.write import begin, commit
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.cli.train_ppo_ray import Supervised
from openrlhf_ktae.launch.resuming import choose_checkpoint
from openrlhf_ktae.record import directory
from openrlhf_ktae.record.metrics import RunRecord, read_record

WORDS = (
    "--pretrain examples/quickstart/model --vllm_num_engines 1 --actor.num_gpus_per_node 1 --label_key label "
    "--n_samples_per_prompt 4 --advantage_estimator ktae"
)


@pytest.fixture
def parsed(tmp_path, monkeypatch, root):
    monkeypatch.chdir(root)
    (tmp_path / "data.jsonl").write_text('{"input": "1", "label": "1"}\n')

    def parse(*words, data="data.jsonl"):
        places = ["--run.dir", str(tmp_path / "run"), "--prompt_data", str(tmp_path / data)]
        return parse_command_line([*WORDS.split(), *places, *words])

    return parse


def save(args, step, best=False):
    choose_checkpoint(args, "cpu")
    tag = f"{'best_' if best else ''}global_step{step}"
    folder = begin(args.ckpt.path, tag)
    (folder / "_actor").mkdir()
    (folder / "_actor" / "latest").write_text(tag)
    return commit(args.ckpt.path, tag, step, args.run.about)


@pytest.mark.parametrize("words", [["--resume", "auto"], ["--ckpt.load_enable"], ["--load_checkpoint"]])
def test_the_hosts_options_and_ours_choose_the_same_checkpoint(parsed, words):
    checkpoint = save(parsed(), 20)
    args = parsed(*words)
    lines = choose_checkpoint(args, "cpu")
    assert args.run.resume_from == str(checkpoint.path)
    assert args.run.resume_step == 20
    assert args.ckpt.load_enable is True
    assert "global_step20 (step 20, the only one)" in lines[0]


def test_checkpoints_are_ignored_without_the_option(parsed):
    save(parsed(), 20)
    args = parsed()
    assert choose_checkpoint(args, "cpu") == []
    assert not args.run.resume_from
    assert args.ckpt.load_enable is False


def test_a_run_from_scratch_keeps_other_runs_checkpoints(parsed):
    save(parsed(), 20)
    args = parsed()
    choose_checkpoint(args, "cpu")
    directory.prepare(args, "cpu")
    args = parsed("--resume", "auto")
    assert "a later run started from scratch" in choose_checkpoint(args, "cpu")[0]
    assert args.run.resume_from is None
    new = save(parsed(), 2)
    args = parsed("--resume", "auto")
    choose_checkpoint(args, "cpu")
    directory.prepare(args, "cpu")
    again = parsed("--resume", "auto")
    choose_checkpoint(again, "cpu")
    assert again.run.resume_from == str(new.path)


def go_on(parsed, *words):
    """Start a command that dies before writing a checkpoint; return the step it resumes from."""
    args = parsed(*words)
    choose_checkpoint(args, "cpu")
    directory.prepare(args, "cpu")
    return args.run.resume_step


def test_a_rolled_back_run_does_not_resume_from_superseded_checkpoints(parsed):
    first, *_ = [save(parsed(), step) for step in (10, 20, 30)]
    assert go_on(parsed, "--resume", str(first.path)) == 10
    assert go_on(parsed, "--resume", "auto") == 10, "the previous start wrote no checkpoint"
    text = "\n".join(choose_checkpoint(parsed("--resume", "auto"), "cpu"))
    assert "skipped global_step30: a later run went back to an earlier checkpoint; --resume " in text
    args = parsed()
    assert "the newest checkpoint is" in directory.newest_checkpoint(args)
    assert "global_step10" in directory.newest_checkpoint(args)
    save(parsed(), 12)
    assert go_on(parsed, "--resume", "auto") == 12
    (Path(args.ckpt.path) / "global_step12" / "_actor" / "latest").write_text("torn")
    assert go_on(parsed, "--resume", "auto") == 10, "its own checkpoint is damaged, so the one before it counts"
    assert go_on(parsed, "--resume", str(Path(args.ckpt.path) / "global_step30")) == 30, "the user may choose otherwise"
    assert go_on(parsed, "--resume", "auto") == 30


def test_a_resumed_run_keeps_older_checkpoints_as_fallback(parsed):
    for step in (10, 20, 30):
        save(parsed(), step)
    assert go_on(parsed, "--resume", "auto") == 30
    args = parsed()
    assert not (Path(args.ckpt.path) / "anew").exists()
    (Path(args.ckpt.path) / "global_step30" / "_actor" / "latest").write_text("torn")
    assert go_on(parsed, "--resume", "auto") == 20


def test_a_run_resumed_from_elsewhere_keeps_checkpoints_here(parsed, tmp_path):
    checkpoint = save(parsed("--ckpt.path", str(tmp_path / "elsewhere")), 10)
    save(parsed(), 30)
    assert go_on(parsed, "--resume", str(checkpoint.path)) == 10
    args = parsed("--resume", str(checkpoint.path))
    choose_checkpoint(args, "cpu")
    assert directory.newest_checkpoint(args).endswith(f"the same --resume starts again from {checkpoint.path}")
    args = parsed("--resume", "auto")
    assert "skipped global_step30: a later run started from scratch here" in choose_checkpoint(args, "cpu")[0]
    assert args.run.resume_from is None


def test_a_run_from_scratch_names_no_checkpoint_of_another_run(parsed):
    save(parsed(), 20)
    assert go_on(parsed) == 0
    assert directory.newest_checkpoint(parsed()) == "no checkpoint was written (--ckpt.save_steps)"


def test_the_first_start_of_a_command_that_resumes(parsed):
    args = parsed("--resume", "auto")
    assert "starting from scratch" in choose_checkpoint(args, "cpu")[0]
    assert args.ckpt.load_enable is False


def test_another_learning_rate_is_refused_unless_accepted(parsed):
    save(parsed(), 20)
    words = ["--resume", "auto", "--actor_learning_rate", "1e-4"]
    with pytest.raises(Refusal, match=r"--actor\.adam\.lr: 1e-06 -> 0\.0001.*--run\.accept_changes actor\.adam\.lr"):
        choose_checkpoint(parsed(*words), "cpu")
    choose_checkpoint(parsed(*words, "--run.accept_changes", "actor.adam.lr"), "cpu")


def test_data_may_move_and_must_not_change(parsed, tmp_path):
    save(parsed(), 20)
    (tmp_path / "data.jsonl").rename(tmp_path / "moved.jsonl")
    choose_checkpoint(parsed("--resume", "auto", data="moved.jsonl"), "cpu")
    (tmp_path / "moved.jsonl").write_text('{"input": "2", "label": "2"}\n')
    with pytest.raises(Refusal, match=r"--data\.prompt_dataset"):
        choose_checkpoint(parsed("--resume", "auto", data="moved.jsonl"), "cpu")


def test_checkpoints_contain_no_key(parsed):
    checkpoint = save(parsed("--use_wandb", "secret-key"), 20)
    assert "secret-key" not in (checkpoint.path / "manifest.json").read_text()


def record(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "st')


def kinds(folder):
    return [(row["kind"], row.get("when"), row.get("step")) for row in read_record(folder)]


@pytest.mark.parametrize(("best", "kept"), [(False, 1), (True, 2)])
def test_the_record_continues_at_the_checkpoint(parsed, tmp_path, best, kept):
    """An evaluation at the checkpoint's step is repeated unless it came before the checkpoint."""
    save(parsed(), 2, best)
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    rows = [{"kind": "plan", "steps": 4}, {"kind": "eval", "when": "before", "step": 0}]
    for step in (1, 2, 3):
        rows += [{"kind": "step", "step": step}, {"kind": "eval", "when": "during", "step": step}]
    record(run, [*rows, {"kind": "eval", "when": "after", "step": 3}])
    args = parsed("--resume", "auto")
    choose_checkpoint(args, "cpu")
    directory.prepare(args, "cpu")
    found = kinds(run)
    assert found[:3] == [("plan", None, None), ("eval", "before", 0), ("step", None, 1)]
    assert [row for row in found if row[0] == "step"] == [("step", None, 1), ("step", None, 2)]
    assert [row[2] for row in found if row[:2] == ("eval", "during")] == [1, 2][:kept]
    assert found[-1] == ("resume", None, 2)
    gone = [json.loads(line) for line in (run / "metrics.abandoned.jsonl").read_text().splitlines()]
    assert len(gone) + len(found) - 1 == len(rows) + 1
    RunRecord(run).step(3, {}, {})
    assert kinds(run)[-1] == ("step", None, 3), "the dead run's torn line must be gone"


def rollouts(run, *steps, folder="rollouts"):
    (run / folder).mkdir(parents=True, exist_ok=True)
    for step in steps:
        (run / folder / f"step-{step:06d}.parquet").write_text("of an earlier run")


def steps_in(folder):
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("*.parquet"))


def test_recorded_rollouts_of_an_earlier_run_are_set_aside_with_its_metrics(parsed, tmp_path):
    run = tmp_path / "run"
    for steps in ((10, 20), (15,)):  # both within a second; neither may overwrite the other
        rollouts(run, *steps)
        record(run, [{"kind": "step", "step": steps[-1]}])
        directory.prepare(parsed(), "cpu")
        assert not (run / "rollouts").exists()
        assert not (run / "metrics.jsonl").exists()
    stamps = [path.name.split(".")[1] for path in run.glob("metrics.*.jsonl")]
    assert sorted(f"rollouts.{stamp}" for stamp in stamps) == sorted(path.name for path in run.glob("rollouts.*"))
    assert sorted(map(steps_in, run.glob("rollouts.*"))) == [[10, 20], [15]]


def test_rollouts_of_a_run_without_metrics_are_set_aside_too(parsed, tmp_path):
    rollouts(tmp_path / "run", 10)
    directory.prepare(parsed(), "cpu")
    assert [steps_in(folder) for folder in (tmp_path / "run").glob("rollouts*")] == [[10]]
    assert not (tmp_path / "run" / "rollouts").exists()


def test_recorded_rollouts_of_lost_steps_are_set_aside(parsed, tmp_path):
    save(parsed(), 20)
    run = tmp_path / "run"
    rollouts(run, 30, folder="rollouts.abandoned")
    rollouts(run, 10, 20, 25, 30)
    args = parsed("--resume", "auto")
    choose_checkpoint(args, "cpu")
    directory.prepare(args, "cpu")
    assert steps_in(run / "rollouts") == [10, 20]
    assert steps_in(run / "rollouts.abandoned") == [25, 30]


@pytest.mark.parametrize("first", [[], ["--resume", "auto"]])
@pytest.mark.parametrize(
    ("words", "step"),
    [([], 0), (["--resume", "never"], 0), (["--resume", "auto"], 20), (["--load_checkpoint"], 20)],
)
def test_written_options_repeat_the_run_or_resume_it(parsed, tmp_path, first, words, step):
    save(parsed(), 20)
    args = parsed(*first)
    choose_checkpoint(args, "cpu")
    directory.prepare(args, "cpu")
    (tmp_path / "run" / "checkpoints" / "anew").unlink(missing_ok=True)
    again = parse_command_line(["--config", str(tmp_path / "run" / "config.yaml"), *words])
    choose_checkpoint(again, "cpu")
    assert again.run.resume_step == step


def test_a_supervisor_resumes_from_this_runs_checkpoints_once_they_exist(parsed):
    """Until then it keeps the user's choice: another run's checkpoint, or an older one in this folder."""
    args = parsed()
    save(args, 40)
    options = Supervised(3, Path(args.ckpt.path))
    assert list(options.resume_words()) == []
    save(args, 22)
    assert list(options.resume_words()) == ["--resume", "auto"]


def test_changed_package_versions_are_reported_on_resume(parsed):
    args = parsed()
    choose_checkpoint(args, "cpu")
    args.run.about["versions"]["packages"]["torch"] = "0.1"
    begin(args.ckpt.path, "global_step2")
    (Path(args.ckpt.path) / ".writing-global_step2" / "_actor").mkdir()
    (Path(args.ckpt.path) / ".writing-global_step2" / "_actor" / "latest").write_text("global_step2")
    commit(args.ckpt.path, "global_step2", 2, args.run.about)
    assert "torch 0.1 -> " in choose_checkpoint(parsed("--resume", "auto"), "cpu")[-1]


def test_a_changed_model_is_refused(parsed, tmp_path, root):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(root / "examples/quickstart/model", model)
    save(parsed("--pretrain", str(model)), 2)
    moved = shutil.move(model, tmp_path / "moved")
    choose_checkpoint(parsed("--resume", "auto", "--pretrain", str(moved)), "cpu")
    (tmp_path / "moved" / "chat_template.jinja").write_text("other")
    with pytest.raises(Refusal, match=r"--actor\.model_name_or_path"):
        choose_checkpoint(parsed("--resume", "auto", "--pretrain", str(moved)), "cpu")
