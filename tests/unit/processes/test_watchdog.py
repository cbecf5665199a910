"""The watchdog allows more time for startup than for a step, and stops the run even if it cannot write."""

from __future__ import annotations

import signal
import time
from types import SimpleNamespace

import pytest

from openrlhf_ktae.cli import train_ppo_ray as command
from openrlhf_ktae.processes import stacks, watchdog
from openrlhf_ktae.processes.watchdog import Watchdog
from openrlhf_ktae.record.metrics import RunRecord

LIMIT, START = 0.4, 2.0  # seconds


def test_the_start_may_take_longer_than_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "START_MINUTES", START / 60)
    barks, record = [], RunRecord(tmp_path)
    with Watchdog(tmp_path, LIMIT / 60, barks.append):
        time.sleep(1.2)
        assert barks == [], "startup has more time"
        time.sleep(1.4)
        assert len(barks) == 1
    with Watchdog(tmp_path, LIMIT / 60, barks.append):
        time.sleep(0.1)
        record.plan(3)
        time.sleep(1.2)
    assert len(barks) == 2, "after the first row the limit is a step's"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("broken", ["stacks", "record", "both"])
def test_a_watchdog_that_cannot_write_still_stops_the_run(broken, tmp_path, monkeypatch):
    """Even if SIGINT was blocked by the parent process."""

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(watchdog, "START_MINUTES", 0)
    monkeypatch.setenv(stacks.VARIABLE, str(tmp_path / "stacks"))
    monkeypatch.setattr(command.stacks, "dump", (lambda *_: 3) if broken == "record" else full)
    if broken != "stacks":
        monkeypatch.setattr(RunRecord, "stopped", full)
    monkeypatch.setattr(command, "train", lambda *_: time.sleep(15))
    args = SimpleNamespace(
        run=SimpleNamespace(dir=str(tmp_path), grace_seconds=1, watchdog_minutes=LIMIT / 60),
        ckpt=SimpleNamespace(path=str(tmp_path / "checkpoints")),
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    started = time.monotonic()
    reason = command._train_watched(args, None, SimpleNamespace(say=str))
    assert time.monotonic() - started < 10
    assert "--run.watchdog_minutes" in reason
    assert ("no stacks, OSError" in reason) == (broken != "record")
