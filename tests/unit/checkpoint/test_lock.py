"""Only one run at a time writes below a `--ckpt.path`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from openrlhf_ktae.checkpoint.lock import hold
from openrlhf_ktae.checkpoint.write import staging

HOLDER = """
import sys, time
from openrlhf_ktae.checkpoint.lock import hold
hold(sys.argv[1])
print("holds", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_run(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run" / "checkpoints")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_until_the_first_is_dead(other_run, tmp_path):
    from openrlhf_ktae.base.errors import Refusal
    from openrlhf_ktae.cli.options import parse_command_line
    from openrlhf_ktae.launch.resuming import choose_checkpoint

    checkpoints = tmp_path / "run" / "checkpoints"
    half = staging(checkpoints, "global_step2")
    half.mkdir()
    words = f"--pretrain m --prompt_data d --vllm_num_engines 1 --label_key label --run.dir {tmp_path}/run"
    with pytest.raises(Refusal) as refusal:
        choose_checkpoint(parse_command_line(words.split()), "cpu")
    assert f"--ckpt.path {checkpoints}: another run (process {other_run.pid} on " in str(refusal.value)
    assert "give another --ckpt.path" in str(refusal.value)
    assert half.is_dir()
    other_run.kill()
    other_run.wait()
    hold(checkpoints)
    hold(checkpoints)
    assert str(os.getpid()) in (checkpoints / ".lock").read_text()


def test_a_file_system_without_locks_does_not_stop_the_run(tmp_path, monkeypatch):
    import errno
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    hold(tmp_path / "checkpoints")
    (tmp_path / "file").write_text("")
    hold(tmp_path / "file" / "checkpoints")
