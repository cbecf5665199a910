"""Faults in a real run: agents that raise or hang, infinite rewards, dying processes, SIGTERM, a full disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from marks import RARELY, SLOW
from run_processes import ASYNCHRONOUS, mark_of, processes_of, steps, wait_for

from openrlhf_ktae.checkpoint.folder import STAGING, listed, verify
from openrlhf_ktae.checkpoint.write import read_latest
from openrlhf_ktae.record.metrics import read_record, stop_reason
from openrlhf_ktae.selftest.killing import title

pytestmark = SLOW

COMMAND = "openrlhf_ktae.cli.train_ppo_ray"
OTHERS_SECONDS = 120  # another test's run may hold a dead engine's semaphore; it sweeps it when it ends


def notes(directory):
    return " | ".join(row["text"] for row in read_record(directory) if row["kind"] == "note")


def resumed(directory):
    return [row["step"] for row in read_record(directory) if row["kind"] == "resume"]


def of_run(process, name):
    """Return the run's descendants whose command line begins with `name`."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "".join(child.cmdline()).startswith(name)]


def listens(connection):
    return connection.status == psutil.CONN_LISTEN


def in_use(files):
    """Return those of `files` that a live process maps."""
    maps = ""
    for path in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            maps += path.read_text()
    return {file for file in files if str(file) in maps}


def test_a_run_survives_its_faults_and_ends_cleanly(start, root, tmp_path):
    """Errors and infinite scores first; then an engine, the reference model, a rank and the host's `train` die."""
    semaphores = set(Path("/dev/shm").iterdir())
    agent = str(root / "tests/e2e/faulty_agent.py")
    words = ["--train.agent_func_path", agent, "--run.eval_edges", "false", "--ckpt.save_steps", "5"]
    words += ["--faults.max_failed_share", "0.5", "--data.max_samples", "3200", "--algo.kl.init_coef", "0.001"]
    words += ["--run.restarts", "2"]
    run = start(*words)
    wait_for(lambda: len(steps(tmp_path)) >= 3, run)
    first = steps(tmp_path)[:3]
    assert [step["faults/failed_rollouts"] for step in first] == [pytest.approx(1 / 8), 0, 0], "one prompt of eight"
    assert [step["faults/skipped_updates"] for step in first] == [0, 0, 1]
    assert "step 3: the update is skipped, a score is infinite" in notes(tmp_path)
    batch = torch.load(tmp_path / "postmortem/step-000003.pt", weights_only=True)
    assert any(micro["scores"].isinf().any() for micro in batch["micro_batches"])

    (core,) = of_run(run, "VLLM::EngineCor")
    core.kill()
    wait_for(lambda: "an engine died and was restarted" in notes(tmp_path), run)
    at = len(steps(tmp_path))
    wait_for(lambda: len(steps(tmp_path)) >= at + 4, run)
    later = steps(tmp_path)[-3:]
    assert all(step["rollout/num_samples"] == 64 for step in later), "lost prompts must be generated again"

    divergence = steps(tmp_path)[-1]["kl"]
    (reference,) = of_run(run, "ray::ReferenceModelActor")
    reference.kill()
    wait_for(lambda: "a process of the reference model died and was restarted" in notes(tmp_path), run)
    at = len(steps(tmp_path))
    wait_for(lambda: len(steps(tmp_path)) >= at + 2, run)
    assert steps(tmp_path)[-1]["kl"] == pytest.approx(divergence, abs=0.1), "another reference model"
    assert all(step["kl"] is not None for step in steps(tmp_path) if "kl" in step), "empty rollouts have none"

    wait_for(lambda: read_latest(tmp_path / "checkpoints"), run)
    (rank,) = of_run(run, "ray::CpuPolicyModelActor")
    wait_for(lambda: "broadcast_to_vllm" in title(rank), run, every=0.001)  # must not be mistaken for an engine's death
    rank.kill()
    wait_for(lambda: resumed(tmp_path), run)
    at = resumed(tmp_path)[0]
    wait_for(lambda: steps(tmp_path)[-1]["step"] >= at + 2, run)
    (driver,) = [child for child in psutil.Process(run.pid).children() if COMMAND in child.cmdline()]
    assert "/vllm/" not in Path(f"/proc/{driver.pid}/maps").read_text(), "a fork has imported it already"
    (host_run,) = of_run(run, "ray::HostRun")
    host_run.kill()
    wait_for(lambda: len(resumed(tmp_path)) == 2, run)
    again = resumed(tmp_path)[1]
    wait_for(lambda: of_run(run, "ray::HostRun") and steps(tmp_path)[-1]["step"] >= again + 2, run)

    mark = mark_of(tmp_path)
    listeners = {(one.pid, c.laddr.port) for one in processes_of(mark) for c in one.net_connections() if listens(c)}
    assert listeners
    began = time.monotonic()
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=90)
    assert run.returncode == 130, output
    assert time.monotonic() - began < 45
    last = steps(tmp_path)[-1]["step"]
    assert f"checkpoint of step {last}" in output
    newest = read_latest(tmp_path / "checkpoints")
    assert newest.name == f"global_step{last}"
    verify(newest)
    assert not processes_of(mark)
    left = set(Path("/dev/shm").iterdir()) - semaphores
    left = {one for one in left if one.name.startswith(("sem.mp", "psm_"))} - in_use(left)
    end = time.monotonic() + OTHERS_SECONDS
    while any(one.exists() for one in left) and time.monotonic() < end:
        time.sleep(1)
    assert not {one for one in left if one.exists()}
    assert not listeners & {(c.pid, c.laddr.port) for c in psutil.net_connections("tcp") if listens(c)}
    assert "Traceback" not in output
    assert output.count("error: a process of the run died: ") == 2
    # Ray reports "unavailable" until it knows how the process ended.
    assert "the process of CpuPolicyModelActor ended" in output or " is unavailable" in output
    assert f"the newest checkpoint is {tmp_path}/checkpoints/global_step{at}" in output
    assert "restart 2 of 2, from the last checkpoint" in output


def test_a_run_that_hangs_is_stopped_with_all_stacks(start, root, tmp_path):
    agent = str(root / "tests/e2e/faulty_agent.py")
    words = ["--train.agent_func_path", agent, "--run.eval_edges", "false", "--faults.max_failed_share", "0.5"]
    run = start(*words, "--run.watchdog_minutes", "0.25", KTAE_TEST_HANG="1")
    output, _ = run.communicate(timeout=200)
    assert run.returncode == 3, output
    assert "stopped early: --run.watchdog_minutes 0.25" in output
    assert len(steps(tmp_path)) == 2
    stacks = (tmp_path / "stacks.txt").read_text()
    for part in (
        "ray::HostRun",
        "ray::KTAEPPOTrainer",
        "ray::GuardedEngine",
        "VLLM::EngineCor",
        "generate_samples",
        "raylet",
    ):
        assert part in stacks, part
    assert not processes_of(mark_of(tmp_path))


DISK_BYTES = 64 * 2**20
PIECE_BYTES = 2**15  # less than the reported free space
NO_ROOM = "the disk had 0.0 MiB free when the write failed"


@pytest.fixture
def disk(tmp_path):
    """Mount a small file system for this test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if shutil.which("mount") is None:
        pytest.skip("there is no `mount` here")
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a file system is not allowed here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk):
    """Fill the disk while others write.

    In small pieces: a failed allocation is freed completely, so a writer could fail and the disk still have that space.
    """
    path = disk / "filler"
    with path.open("ab") as file:
        while free := shutil.disk_usage(disk).free:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), min(free, PIECE_BYTES))
    return path


def fill_during_a_write(run, disk, checkpoints, seconds=120):
    """Fill the disk at the start of each checkpoint until one fails; return the last complete one and the filler."""
    give_up = time.monotonic() + seconds
    while True:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < give_up, "no checkpoint failed"
        kept = read_latest(checkpoints)
        if any(checkpoints.glob(f"{STAGING}*")):
            filler, end = fill(disk), time.monotonic() + 30
            while any(checkpoints.glob(f"{STAGING}*")) and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(0.5)
            if read_latest(checkpoints) == kept:
                return kept, filler
            filler.unlink()  # that checkpoint completed just before the disk was full
        time.sleep(0.003)


SAVES = "--ckpt.save_steps 2 --ckpt.max_num 1 --run.eval_edges false --data.max_samples 3200"


@RARELY
@pytest.mark.parametrize("freed", [True, False])
def test_a_disk_that_fills_under_everything(start, disk, freed):
    """Checkpoints, record and logs are all on the full disk, as by default."""
    checkpoints = disk / "checkpoints"
    run = start("--run.dir", str(disk), *SAVES.split())
    wait_for(lambda: read_latest(checkpoints), run, seconds=300)
    kept, filler = fill_during_a_write(run, disk, checkpoints)
    verify(kept)
    at, end = len(steps(disk)), time.monotonic() + 8
    while time.monotonic() < end:  # many steps and failed checkpoints
        fill(disk)  # including leftovers of a failed checkpoint
        time.sleep(0.2)
    assert run.poll() is None, run.communicate()[0]
    assert len(steps(disk)) < at + 4, "rows cannot be written either"
    assert [one.path for one in listed(checkpoints)[0]] == [kept]
    if freed:
        filler.unlink()
        wait_for(lambda: read_latest(checkpoints) != kept, run)
        assert len(steps(disk)) >= at + 4
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=90)
    assert run.returncode == 130, output
    assert "Traceback" not in output
    newest = read_latest(checkpoints)
    last = verify(newest).step
    if not freed:
        assert newest == kept
        assert f"the newest checkpoint is {kept}" in output
        return
    assert not kept.exists(), "rotated out by the newer one"
    assert [step["step"] for step in steps(disk)] == list(range(1, last + 1)), "no row may be lost"
    assert "rows of metrics.jsonl were written late" in notes(disk)
    assert "the last complete one is kept" in notes(disk)
    assert NO_ROOM in notes(disk)
    assert "a checkpoint takes" in notes(disk), "no checkpoint is started without space for it"


@RARELY
def test_a_full_disk_stops_the_run_even_if_the_reason_cannot_be_written(start, disk):
    checkpoints = disk / "checkpoints"
    run = start("--run.dir", str(disk), *SAVES.split(), "--ckpt.on_failure", "stop")
    wait_for(lambda: read_latest(checkpoints), run, seconds=300)
    fill(disk)
    end = time.monotonic() + 90
    while run.poll() is None and time.monotonic() < end:
        fill(disk)
        time.sleep(0.02)
    output, _ = run.communicate(timeout=10)
    assert run.returncode == 3, output
    assert "stopped early: no checkpoint" in output
    unwritten = "metrics.jsonl cannot be written: [Errno 28] No space left on device" in output
    assert unwritten or stop_reason(disk), "neither an error nor a row (the file's last page may have had room)"
    assert "Traceback" not in output
    verify(read_latest(checkpoints))


@RARELY
@pytest.mark.parametrize("how", ["", ASYNCHRONOUS])
def test_a_disk_that_fills_during_a_checkpoint_can_stop_the_run(start, disk, tmp_path, how):
    run = start(*SAVES.split(), *how.split(), "--ckpt.path", str(disk), "--ckpt.on_failure", "stop")
    wait_for(lambda: read_latest(disk), run, seconds=300)
    kept, _ = fill_during_a_write(run, disk, disk)
    assert [one.path for one in listed(disk)[0]] == [kept]
    output, _ = run.communicate(timeout=90)
    assert run.returncode == 3, output
    assert "stopped early: no checkpoint global_step" in output
    assert "(--ckpt.on_failure stop)" in output
    assert "Traceback" not in output
    assert NO_ROOM in notes(tmp_path)
    verify(kept)
