"""Planning deaths, finding victims among real processes, and checking a dead run's checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections import Counter

import pytest
from marks import SLOW

from openrlhf_ktae.checkpoint.write import begin, commit
from openrlhf_ktae.cli.selftest import victims_of
from openrlhf_ktae.processes import stacks
from openrlhf_ktae.processes.marks import VARIABLE, marked
from openrlhf_ktae.selftest import mortal_run
from openrlhf_ktae.selftest.killing import (
    AT_ANY_TIME,
    DRIVER,
    ENGINE,
    EVERYTHING,
    RANK,
    ROOM,
    VERIFIER,
    VICTIMS,
    WRITING,
    Death,
    planned,
    victims_among,
)
from openrlhf_ktae.selftest.mortal_run import MortalRun
from openrlhf_ktae.selftest.trial import STRAIGHT, Trial, TrialFailed

pytestmark = SLOW

TITLED = (
    "import sys, time, setproctitle; setproctitle.setproctitle(sys.argv[1]); print('up', flush=True); time.sleep(60)"
)
NAMES = {
    "ray::CpuPolicyModelActor.fit": RANK,
    "ray::PolicyModelActor": RANK,
    "ray::KTAEPolicyModelActor.broadcast_to_vllm": RANK,
    "ray::GuardedEngine.generate_responses": ENGINE,
    "VLLM::EngineCore": ENGINE,
    "ray::KTAEPPOTrainer.fit": None,
    "ray::IDLE": None,
}


def test_victims_take_turns_in_random_order_and_moments_are_spread_over_the_run():
    plans = [planned(12, VICTIMS, 50, seed) for seed in range(20)]
    for plan in plans:
        assert Counter(death.victim for death in plan) == dict.fromkeys(VICTIMS, 2)
        steps = [death.step for death in plan]
        assert steps == sorted(steps)
        assert 1 <= steps[0] <= 4
        assert 45 <= steps[-1] <= 50 - ROOM
        assert all(0 <= death.share < 1 for death in plan)
    assert len({tuple(death.victim for death in plan) for plan in plans}) > 15
    early = [death.victim for plan in plans for death in plan if death.at_start]
    assert set(early) == set(AT_ANY_TIME)
    assert 0.1 < len(early) / sum(map(len, plans)) < 0.25, "should be about a sixth"
    assert planned(3, VICTIMS, 12, 5) == planned(3, VICTIMS, 12, 5)


@pytest.mark.parametrize("seed", range(20))
def test_a_single_death_is_in_training(seed):
    (death,) = planned(1, (EVERYTHING,), 4, seed)
    assert death.step in (1, 2)
    assert not death.at_start


@pytest.fixture
def mark():
    value = uuid.uuid4().hex
    yield value
    for process in marked(value):
        process.kill()


def marked_process(mark, *command):
    environment = {**os.environ, VARIABLE: mark, "SPT_NOENV": "1"}  # as Ray does, or a title would overwrite it
    process = subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline()
    return process


def test_victims_are_found_by_their_titles_among_the_processes_of_one_run(mark):
    pytest.importorskip("setproctitle")
    processes = {name: marked_process(mark, "-c", TITLED, name) for name in NAMES}
    other = marked_process("another run", "-c", TITLED, "ray::PolicyModelActor")
    try:
        for victim in (RANK, ENGINE):
            found = {one.pid for one in victims_among(marked(mark), victim)}
            assert found == {processes[name].pid for name, of in NAMES.items() if of == victim}
    finally:
        for process in (*processes.values(), other):
            process.kill()
            process.wait()


def test_a_worker_of_the_verifier_is_found(mark):
    from openrlhf_ktae.verifier import Verifier, VerifierConfig

    os.environ[VARIABLE] = mark
    verifier = Verifier(VerifierConfig(workers=1))
    try:
        verifier.start()
        assert verifier.pool.wait_ready(), verifier.pool.start_failure
        workers = {process.pid for process in victims_among(marked(mark), VERIFIER)}
        assert workers == {worker.process.pid for worker in verifier.pool._workers}
        assert workers
    finally:
        verifier.close()
        del os.environ[VARIABLE]


@pytest.mark.parametrize(
    ("text", "names"), [("all", VICTIMS), ("driver,writing,driver", (DRIVER, WRITING)), (EVERYTHING, (EVERYTHING,))]
)
def test_victims_of_an_option(text, names):
    assert victims_of(text) == names


RUN = """
import os, subprocess, sys, time
from openrlhf_ktae.checkpoint.write import begin, commit
from openrlhf_ktae.processes.stacks import register
from openrlhf_ktae.record.metrics import RunRecord
folder, behaviour = sys.argv[1:]
child = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
child += "from setproctitle import setproctitle as s; s(sys.argv[1]); time.sleep(60)"
if behaviour != "alone":
    environment = {**os.environ, "SPT_NOENV": "1"}  # as Ray does
    subprocess.Popen([sys.executable, "-c", child, behaviour], start_new_session=True, env=environment)
register()
record = RunRecord(folder)
for step in range(1, 400):
    record.step(step, {}, {})
    if step % 2 == 0 and behaviour != "forgetful":
        tag = f"global_step{step}"
        part = begin(f"{folder}/checkpoints", tag) / "part"
        part.write_text(str(step))
        time.sleep(0.3)
        commit(f"{folder}/checkpoints", tag, step, {})
    time.sleep(0.02)
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A trial whose runs are a small script that records steps and writes real checkpoints, without Ray or a model."""
    monkeypatch.setattr(mortal_run, "LEFT_SECONDS", 0.5)
    (tmp_path / STRAIGHT).mkdir()
    rows = [{"kind": "step", "step": step, "time": 0.05 * step} for step in (1, 2)]
    (tmp_path / STRAIGHT / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    behaviour = []

    class Small(Trial):
        def command(self, name, resume):
            return [sys.executable, "-c", RUN, str(self.folder / name), behaviour[0]]

    def make(what):
        behaviour.append(what)
        return MortalRun(Small([], tmp_path, 16, save_steps=2), "killed", 0.1, seed=0)

    return make


@pytest.mark.parametrize("victim", [EVERYTHING, WRITING])
def test_after_everything_dies_checkpoints_are_verified(victim, small):
    run = small("lasting")
    text = run.inject(Death(victim, step=5, share=0.1))
    assert "every process" in text
    assert run.toll.wrong == []
    assert run.toll.checkpoints >= 1
    assert run.toll.lost <= 2
    assert run.toll.in_write == ("while a checkpoint was written" in text)
    assert run.toll.in_write or victim == EVERYTHING
    assert not marked(run._mark)


def test_processes_left_by_a_dead_command_are_counted_and_killed(small):
    run = small("lasting")
    run.inject(Death(DRIVER, step=3, share=0.0))
    assert run.toll.left == 1
    assert "did not end" in run.toll.wrong[0]
    assert not marked(run._mark)


def test_too_many_lost_steps_and_a_damaged_checkpoint_are_faults(small):
    run = small("forgetful")
    run.inject(Death(EVERYTHING, step=4, share=0.0))
    assert run.toll.lost >= 4
    assert "the newest checkpoint is of step 0" in run.toll.wrong[0]

    folder = begin(run.checkpoints, "global_step2")
    (folder / "part").write_text("whole")
    commit(run.checkpoints, "global_step2", 2, {})
    (run.checkpoints / "global_step2" / "part").write_text("other")
    run._examine(running=False)
    assert "global_step2: part changed after it was written" in run.toll.wrong[1]


def test_not_resuming_from_the_checkpoint_is_a_fault(small):
    """The script always starts from scratch, so its steps alone would not reveal it."""
    run = small("alone")
    run.inject(Death(EVERYTHING, step=5, share=0.0))
    assert run.toll.wrong == []
    run.inject(Death(EVERYTHING, step=3, share=0.0))
    assert "it resumed from step None; the newest checkpoint was of step 4" in run.toll.wrong[0]


def test_leftovers_of_an_earlier_death_do_not_count_as_a_write(small):
    run = small("alone")
    run.inject(Death(WRITING, step=5, share=0.1))
    assert any(run.checkpoints.glob(".writing-*"))
    process = run._start()
    assert not run._writes()
    process.kill()
    process.wait()


def test_stacks_are_saved_of_a_run_that_does_not_react_to_a_death(small, monkeypatch):
    """The script ignores the death of its "rank" instead of exiting with 4."""
    pytest.importorskip("setproctitle")
    monkeypatch.setenv(stacks.VARIABLE, stacks.folder())
    monkeypatch.setattr(mortal_run, "RECOVERY_SECONDS", 10.0)
    run = small("ray::PolicyModelActor")
    with pytest.raises(TrialFailed, match="exit code None instead of 4 after a rank's death"):
        run.inject(Death(RANK, step=3, share=0.0))
    text = (run.trial.folder / "killed" / "stacks.txt").read_text()
    assert 'File "<string>", line' in text
    assert not marked(run._mark)


def test_a_rank_killed_as_the_run_ends_does_not_count(small, monkeypatch):
    pytest.importorskip("setproctitle")
    monkeypatch.setitem(globals(), "RUN", RUN.replace("range(1, 400)", "range(1, 8)"))
    run = small("ray::PolicyModelActor")
    assert run.inject(Death(RANK, step=4, share=0.0)) is None
    assert run.inject(Death(EVERYTHING, step=4, share=0.0)) is None
    run.finish()
    assert (run.toll.deaths.total(), run.toll.wrong) == (0, [])


def test_a_death_during_startup_waits_no_longer_than_the_first_step(small):
    """An earlier start may have been ten times slower, under load."""
    run = small("alone")
    run._start_seconds = 1000.0
    began = time.monotonic()
    run.inject(Death(EVERYTHING, step=3, share=0.9, at_start=True))
    assert time.monotonic() - began < 60
    assert (run.toll.deaths.total(), run.toll.at_start) == (1, 0)


def test_a_run_that_fails_by_itself_does_not_count_as_a_death(small, monkeypatch):
    run = small("alone")
    monkeypatch.setattr("openrlhf_ktae.selftest.trial.Trial.last_words", lambda self, name, what: what)
    monkeypatch.setattr(type(run.trial), "command", lambda *_: [sys.executable, "-c", "raise SystemExit(2)"])
    with pytest.raises(TrialFailed, match="exit code 2"):
        run.inject(Death(EVERYTHING, step=5, share=0.0))
