"""Comparing arms over seeds: outcomes of handmade records, tests, tables and pages."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import threading
import time

import numpy as np
import pytest

from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.cli.compare import main
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.compare import runs as arm_runs
from openrlhf_ktae.compare.comparison import compare_arms, rival
from openrlhf_ktae.compare.run_outcomes import Budget, common_budget, outcomes, read_run
from openrlhf_ktae.compare.runs import DONE, LOG, STARTED, TrainingProcess, execute, execute_all, plan
from openrlhf_ktae.record.metrics import RunRecord

STEPS = 10


def recorded(directory, gain=0.05, noise=0.0, steps=STEPS, length=20.0):
    """Write and read a run whose reward and held-out accuracy rise by `gain` per step from 0.2."""
    record = RunRecord(directory)
    record.evaluation("before", 0, {"eval_accuracy": 0.2, "eval_response_length_mean": length})
    for step in range(1, steps + 1):
        reward = 0.2 + gain * step + noise
        metrics = {"rollout/reward_mean": reward, "rollout/num_samples": 64, "rollout/response_length_mean": length}
        record.step(step, metrics, {})
    accuracy = 0.2 + gain * steps + noise
    record.evaluation("after", steps, {"eval_accuracy": accuracy, "eval_response_length_mean": length})
    return read_run(directory)


def test_outcomes_of_one_run(tmp_path):
    run = recorded(tmp_path)
    found = outcomes(run, threshold=0.4, budget=Budget(10, 64 * 20 * 10))
    assert found["final_accuracy"] == pytest.approx(0.7)
    assert found["auc_accuracy"] == pytest.approx(0.45)
    assert found["auc_reward"] == pytest.approx(0.2 + 0.05 * 5.5)
    assert found["response_length"] == 20
    assert found["steps_to_threshold"] == 6, "the mean of steps 2 to 6 is 0.4"
    assert outcomes(run, 0.9, Budget(10, 1))["steps_to_threshold"] == 11, "never reached: steps plus one"


def test_runs_are_compared_at_common_steps_and_tokens(tmp_path):
    short, long = recorded(tmp_path / "a"), recorded(tmp_path / "b", steps=20, length=40.0)
    budget = common_budget([short, long])
    assert budget == Budget(10, 64 * 20 * 10)
    found = outcomes(long, 0.4, budget)
    assert found["final_accuracy"] == pytest.approx(0.7), "interpolated at step 10"
    assert found["accuracy_at_tokens"] == pytest.approx(0.45), "the token budget ends at step 5"
    assert found["auc_reward_tokens"] == pytest.approx(0.2 + 0.05 * 3)


def test_a_run_without_evaluations_has_no_accuracy(tmp_path):
    record = RunRecord(tmp_path)
    record.step(1, {"rollout/reward_mean": 0.5}, {})
    found = outcomes(read_run(tmp_path), 0.7, Budget(1, 0))
    assert math.isnan(found["final_accuracy"])
    assert found["auc_reward"] == 0.5


def test_tokens_include_groups_dropped_by_dynamic_sampling(tmp_path):
    record = RunRecord(tmp_path)
    kept = {"rollout/num_samples": 64, "rollout/response_length_mean": 20.0}
    for step, drawn in enumerate((8.0, 12.0), start=1):
        record.step(step, {**kept, "dynamic_sampling/prompts_drawn": drawn}, {})
    assert read_run(tmp_path).tokens().tolist() == [64 * 20, 2 * 64 * 20], "the group size is unknown without options"
    (tmp_path / "config.yaml").write_text("rollout: {n_samples_per_prompt: 8}\n")
    assert read_run(tmp_path).tokens().tolist() == [64 * 20, (64 + 96) * 20]


def test_each_arm_is_compared_with_the_one_it_extends():
    arms = ["dapo", "dapo_ktae", "grpo", "grpo_ktae", "grpo_ktae_paper"]
    assert {arm: rival(arm, arms, "grpo") for arm in arms} == {
        "dapo": "grpo",
        "dapo_ktae": "dapo",
        "grpo": None,
        "grpo_ktae": "grpo",
        "grpo_ktae_paper": "grpo_ktae",
    }


def test_pairing_over_seeds_sees_a_small_gain(tmp_path):
    """Seeds differ by 10 points, arms by 2, which only a paired test detects."""
    spread = np.random.default_rng(0).normal(0, 0.1, size=8)
    arms = {
        arm: {seed: recorded(tmp_path / arm / f"seed-{seed}", noise=noise + gain) for seed, noise in enumerate(spread)}
        for arm, gain in (("grpo", 0.0), ("grpo_x", 0.02), ("grpo_y", 0.0))
    }
    result = compare_arms(arms, "grpo", 0.7)
    tests = {(test["outcome"], test["arm"]): test for test in result["tests"]}
    better = tests["final_accuracy", "grpo_x"]
    assert better["difference"] == pytest.approx(0.02)
    assert better["p"] == pytest.approx(2 / 2**8)
    assert better["p_holm"] == pytest.approx(4 / 2**8), "Holm over two pairs"
    assert tests["final_accuracy", "grpo_y"]["p"] == 1
    intervals = [result["arms"][arm]["final_accuracy"]["ci95"] for arm in arms]
    assert intervals[0][1] > intervals[1][0], "unpaired intervals overlap"


def comparison_of(tmp_path, root, seeds=2):
    configs = []
    for arm, gain in (("grpo", 0.04), ("grpo_k", 0.05)):
        path = tmp_path / f"{arm}.yaml"
        path.write_text(f"include: {root}/configs/compare/base/quickstart.yaml\nactor: {{adam: {{lr: {gain}}}}}\n")
        configs.append(path)
    for run in plan(configs, range(1, seeds + 1), tmp_path / "out", ["--x"]):
        recorded(run.directory, gain=0.04 if run.arm == "grpo" else 0.05, noise=run.seed / 100)
        (run.directory / "arm.json").write_text(json.dumps(run.settings))
        (run.directory / "done.json").write_text("{}")
    return [*map(str, configs), "--seeds", str(seeds), "--output", str(tmp_path / "out")]


def test_earlier_seeds_are_reported_together_with_the_new_ones(tmp_path, root, capsys):
    words = [*comparison_of(tmp_path, root, seeds=4), "--report_only"]
    report = tmp_path / "out" / "comparison.json"

    def result(*more):
        assert main([*words, *more, "--", "--x"]) == 0
        return json.loads(report.read_text())

    whole = result()
    first = result("--seeds", "2")
    assert [figures["seeds"] for figures in first["arms"].values()] == [[1, 2], [1, 2]]
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(first))
    last = ("--first_seed", "3", "--seeds", "2", "--add", str(earlier))
    assert result(*last) == whole
    first["runs"]["grpo"]["2"]["accuracy_at_tokens"] = None
    earlier.write_text(json.dumps(first))
    counts = {test["outcome"]: test["seeds"] for test in result(*last)["tests"]}
    assert (counts["final_accuracy"], counts["accuracy_at_tokens"]) == (4, 3), "a seed without a figure is not counted"
    capsys.readouterr()
    for file, seeds, reason in (
        (earlier, "2", "has seed 2 too; choose other seeds with --first_seed"),
        (tmp_path / "grpo.yaml", "3", "not a comparison.json of this command"),
        (tmp_path / "none.json", "3", "not a comparison.json of this command"),
    ):
        assert main([*words, "--first_seed", seeds, "--add", str(file)]) == 2
        error = capsys.readouterr().err
        assert str(file) in error
        assert reason in error
    first["runs"] = {"other": first["runs"]["grpo"]}
    earlier.write_text(json.dumps(first))
    assert main([*words, *last]) == 2
    assert "none of the arms grpo, grpo_k" in capsys.readouterr().err


def test_a_finished_comparison_trains_nothing_and_writes_its_tables(tmp_path, root, capsys):
    words = comparison_of(tmp_path, root)
    assert main([*words, "--", "--x"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("already done") == 4
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert result["arms"]["grpo_k"]["final_accuracy"]["mean"] == pytest.approx(0.7 + 0.015)
    assert (tmp_path / "out" / "comparison.md").read_text() in shown
    html = (tmp_path / "out" / "comparison.html").read_text()
    assert "Paired tests" in html
    assert "grpo_k (2 seeds)" in html
    assert {(test["arm"], test["against"]) for test in result["tests"]} == {("grpo_k", "grpo")}
    assert main([*words, "--pair", "grpo:grpo_k", "--", "--x"]) == 0
    tests = json.loads((tmp_path / "out" / "comparison.json").read_text())["tests"]
    difference = {(test["arm"], test["against"]): test["difference"] for test in tests[:2]}
    assert difference["grpo", "grpo_k"] == pytest.approx(-difference["grpo_k", "grpo"]) != 0


def test_what_one_seed_does_not_determine_is_null(tmp_path, root):
    words = comparison_of(tmp_path, root, seeds=1)
    assert main([*words, "--", "--x"]) == 0
    text = (tmp_path / "out" / "comparison.json").read_text()
    result = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert result["arms"]["grpo"]["final_accuracy"]["ci95"] == [None, None]


def test_runs_of_other_settings_are_not_mixed(tmp_path, root, capsys):
    words = comparison_of(tmp_path, root)
    assert main([*words, "--", "--y"]) == 2
    assert "other settings" in capsys.readouterr().err
    config = tmp_path / "grpo.yaml"
    config.write_text(config.read_text().replace("0.04", "0.03"))
    assert main([*words, "--", "--x"]) == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{tmp}/none.yaml"], "no such file"),
        (["{tmp}/grpo.yaml", "--seeds", "0"], "--seeds: '0' must be"),
        (["{tmp}/grpo.yaml", "--baseline", "dapo"], "--baseline dapo"),
        (["{tmp}/grpo.yaml", "--pair", "grpo:dapo"], "--pair grpo:dapo"),
        (["{tmp}/grpo.yaml", "--pair", "grpo"], "--pair grpo"),
        (["{tmp}/grpo.yaml", "{tmp}/../{name}/grpo.yaml"], "two configurations are called grpo.yaml"),
        (["{tmp}/grpo.yaml", "--output", "{tmp}/new", "--report_only"], "no run of the baseline grpo"),
    ],
)
def test_refused(words, message, tmp_path, root, capsys):
    comparison_of(tmp_path, root)
    argv = [word.replace("{tmp}", str(tmp_path)).replace("{name}", tmp_path.name) for word in words]
    assert main([*argv, *([] if "--output" in argv else ["--output", str(tmp_path / "out2")])]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "out2").exists()
    assert error.count("\n") == 1


@pytest.mark.parametrize(("folder", "least", "evaluated"), [("compare", 9, 10), ("compare/llm", 3, 4)])
def test_every_shipped_arm_parses(folder, least, evaluated, root, monkeypatch):
    monkeypatch.chdir(root)
    arms = sorted((root / "configs" / folder).glob("*.yaml"))
    assert len(arms) >= least
    for path in arms:
        args = parse_command_line(["--config", str(path), "--run.dir", "x"])
        assert args.eval.steps == evaluated
        assert (args.algo.credit.name == "ktae") == ("ktae" in path.stem)
        assert args.algo.credit.shuffle_labels == ("shuffled" in path.stem)
        assert args.algo.dynamic_filtering_enable == path.stem.startswith("dapo")


@pytest.fixture
def one(tmp_path):
    (tmp_path / "grpo.yaml").write_text("train: {max_epochs: 1}\n")
    return plan_one(tmp_path)


def plan_one(tmp_path):
    return plan([tmp_path / "grpo.yaml"], [1], tmp_path / "out", [])[0]


def training(monkeypatch, code):
    """Replace the training process by a program that answers its first order with `code`, or dies by signal -`code`."""
    program = "import json, os, sys; order = json.loads(sys.stdin.readline())"
    program += f"; open(order['log'], 'a').write('error: option'); print({code}, flush=True)"
    if code < 0:
        program = f"import os; os.kill(os.getpid(), {-code})"
    monkeypatch.setattr(arm_runs, "TRAIN", [sys.executable, "-c", program])


def test_leftovers_of_an_interrupted_attempt_are_removed(one, monkeypatch):
    training(monkeypatch, 0)
    (one.directory / "rollouts").mkdir(parents=True)
    (one.directory / "metrics.jsonl").write_text("{}\n")
    (one.directory / DONE).write_text("{}")
    assert execute(one, TrainingProcess()) == 0
    assert sorted(path.name for path in one.directory.iterdir()) == sorted([STARTED, DONE, LOG])


@pytest.mark.parametrize("moment", ["made", "half written", "written", "cleaned"])
def test_a_kill_at_any_moment_does_not_block_the_next_attempt(moment, one, tmp_path, monkeypatch):
    if moment == "cleaned":  # a later attempt was killed while removing the first one's leftovers
        training(monkeypatch, 1)
        execute(one, TrainingProcess())
        (one.directory / "rollouts").mkdir()
        monkeypatch.setattr(arm_runs.shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            execute(one, TrainingProcess())
        monkeypatch.undo()
    else:
        one.directory.mkdir(parents=True)
        if moment == "half written":
            (one.directory / f".{STARTED}.part").write_text('{"opt')
        if moment == "written":
            (one.directory / STARTED).write_text(json.dumps(one.settings))
    training(monkeypatch, 0)
    assert execute(plan_one(tmp_path), TrainingProcess()) == 0


@pytest.mark.parametrize("content", [b'{"options": {', b"\xff\xfe\x00", b"", b"[" * 100_000])
def test_a_truncated_or_binary_arm_json_is_refused_in_one_line(content, one, tmp_path):
    one.directory.mkdir(parents=True)
    (one.directory / STARTED).write_bytes(content)
    with pytest.raises(Refusal, match=r"arm.json: cannot be read; delete .*seed-1"):
        plan_one(tmp_path)


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (3, 1), (130, 130), (-15, 130), (2, 2)])
def test_exit_codes_of_failed_interrupted_and_refused_runs(code, expected, tmp_path, root, monkeypatch, capsys):
    """Three runs are done; the last one fails, is interrupted or refused."""
    words = comparison_of(tmp_path, root)
    (tmp_path / "out" / "grpo_k" / "seed-2" / DONE).unlink()
    training(monkeypatch, code)
    assert main([*words, "--", "--x"]) == expected
    shown = capsys.readouterr()
    assert ("FAILED with exit code" in shown.out) == (expected == 1)
    assert ("interrupted" in shown.err) == (expected == 130)
    assert not (tmp_path / "out" / "grpo_k" / "seed-2" / DONE).exists()


def test_a_process_that_ends_without_an_answer_has_failed(one, monkeypatch):
    monkeypatch.setattr(arm_runs, "TRAIN", ["true"])
    assert execute(one, TrainingProcess()) == 1
    assert not one.done


def programmed(tmp_path, monkeypatch, program, seeds):
    """Replace the training process by a program; return the runs of one arm."""
    (tmp_path / "grpo.yaml").write_text("train: {max_epochs: 1}\n")
    monkeypatch.setattr(arm_runs, "TRAIN", [sys.executable, "-c", program])
    return plan([tmp_path / "grpo.yaml"], range(1, seeds + 1), tmp_path / "out", [])


def test_two_stacks_train_all_runs_and_a_failure_starts_another_process(tmp_path, monkeypatch):
    """Processes answer every order with 0, except that run 2 fails."""
    program = (
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    order = json.loads(line)\n"
        "    seed = order['words'][order['words'].index('--train.seed') + 1]\n"
        "    open(order['log'], 'w').write(f'{os.getpid()} {os.environ.get(\"OMP_NUM_THREADS\")}')\n"
        "    print(1 if seed == '2' else 0, flush=True)\n"
    )
    monkeypatch.setattr(arm_runs.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runs = programmed(tmp_path, monkeypatch, program, seeds=5)
    said = []
    assert execute_all(runs, said.append) == [runs[1]]
    before, after = {logged(runs[0])[0]}, {logged(run)[0] for run in runs[2:]}
    assert logged(runs[1])[0] in before, "runs share a process"
    assert len(after) == 1, "runs share a process"
    assert not before & after, "a failed run must end its process"
    assert said[0].endswith("min left")
    assert "min left" not in said[-1]
    shutil.rmtree(tmp_path / "out")
    assert execute_all(runs, said.append, stacks=2) == [runs[1]]
    assert {logged(run)[1] for run in runs} == {"1"}, "each stack must get one of two cores"


def test_a_run_that_a_used_stack_fails_is_repeated_in_a_new_one(tmp_path, monkeypatch):
    """A stack whose engine was killed between two runs fails the next one at its start."""
    program = (
        "import json, os, sys\n"
        "for number, line in enumerate(sys.stdin):\n"
        "    open(json.loads(line)['log'], 'w').write(str(os.getpid()))\n"
        "    print(4 if number == 1 else 0, flush=True)\n"
    )
    runs = programmed(tmp_path, monkeypatch, program, seeds=3)
    assert execute_all(runs, lambda text: None) == []
    assert len({logged(run)[0] for run in runs}) == 3


@pytest.mark.parametrize("stacks", [1, 2])
def test_sigterm_to_the_comparison_alone_ends_the_runs_it_has_begun(stacks, tmp_path, monkeypatch, capsys):
    """A scheduler or `kill` signals one process, unlike Ctrl-C in a terminal. The runs would take 60 s."""
    program = "import json, sys, time; open(json.loads(sys.stdin.readline())['log'], 'w').write('!'); time.sleep(60)"
    runs = programmed(tmp_path, monkeypatch, program, seeds=3)
    logs = [run.directory / LOG for run in runs[:stacks]]

    def signal_when_begun():
        while not all(log.exists() and log.read_text() == "!" for log in logs):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=signal_when_begun).start()
    started = time.monotonic()
    words = [str(tmp_path / "grpo.yaml"), "--seeds", "3", "--stacks", str(stacks), "--output", str(tmp_path / "out")]
    assert main(words) == 130
    assert time.monotonic() - started < 30
    assert "interrupted" in capsys.readouterr().err
    assert not runs[2].directory.exists(), "no run may begin after the signal"


def logged(run):
    return (run.directory / LOG).read_text().split()
