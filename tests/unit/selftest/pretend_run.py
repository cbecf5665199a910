"""Stand-in for a training run in tests of deaths and signals: `python -m pretend_run AFTER --run.dir=DIR`.

It records a step every 0.1 s. When a death is ordered it logs one, then goes on, exits with code AFTER, or `hangs`. On
SIGTERM it writes a checkpoint (unless AFTER is `forgets`) and exits; `leaves` makes it leave its marked worker behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from openrlhf_ktae.checkpoint.write import begin, commit
from openrlhf_ktae.processes.marks import VARIABLE, mark
from openrlhf_ktae.selftest.watchers import FILE, ORDER_FILE

after = sys.argv[1]
directory = Path(next(word for word in sys.argv if word.startswith("--run.dir=")).partition("=")[2])
worker = subprocess.Popen(["sleep", "60"], env={**os.environ, VARIABLE: mark()}, start_new_session=True)
step = 0


def append(name, row):
    with (directory / name).open("a") as file:
        file.write(json.dumps(row) + "\n")


def end(*_):
    if after != "forgets":
        (begin(directory / "checkpoints", f"global_step{step}") / "part").write_text("whole")
        commit(directory / "checkpoints", f"global_step{step}", step, {})
    if after != "leaves":
        worker.kill()
        worker.wait()
    os._exit(130)


while True:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, end)
    time.sleep(0.1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    order = directory / ORDER_FILE
    if order.exists() and (moment := order.read_text()):
        order.unlink()
        append(FILE, {"kind": "death", "moment": moment, "time": time.time()})
        print("an engine died", flush=True)
        if after == "hangs":
            time.sleep(60)
        if after.isdigit():
            worker.kill()
            os._exit(int(after))
    append("metrics.jsonl", {"kind": "step", "step": step + 1, "time": time.time()})
    step += 1
