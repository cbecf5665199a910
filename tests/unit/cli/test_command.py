"""How commands end."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from openrlhf_ktae.cli.command import run_command
from openrlhf_ktae.selftest.trial import Trial


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_and_the_run_it_started(number, tmp_path, monkeypatch, capsys):
    started = []
    trial = Trial([], tmp_path, 8, 2)
    monkeypatch.setattr(Trial, "command", lambda *_: ["sleep", "60"])

    def run(argv):
        started.append(trial.start("straight"))
        # Sent by another process: our own could arrive between a check for signals and the wait.
        subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -{int(number)} {os.getpid()}"])
        trial.wait("straight", started[0])

    before = signal.getsignal(signal.SIGTERM)
    interrupts = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    began = time.monotonic()
    try:
        assert run_command(run, []) == 130
    finally:
        signal.signal(signal.SIGINT, interrupts)
    assert time.monotonic() - began < 20
    assert started[0].poll() is not None
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
