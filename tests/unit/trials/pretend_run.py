"""Stands for a training run in tests of what follows a death: `python -m pretend_run AFTER --run.dir=DIR ...`.

It records a step every 0.1 s, dies when it is ordered to, and then goes on, ends with exit code AFTER, or hangs.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

from openrlhf_ktae.trials.watchers import FILE, ORDER_FILE

after = sys.argv[1]
directory = Path(next(word for word in sys.argv if word.startswith("--run.dir=")).partition("=")[2])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))


def append(name, row):
    with (directory / name).open("a") as file:
        file.write(json.dumps(row) + "\n")


step = 0
while True:
    time.sleep(0.1)
    order = directory / ORDER_FILE
    if order.exists() and (moment := order.read_text()):
        order.unlink()
        append(FILE, {"kind": "death", "moment": moment, "time": time.time()})
        print("an engine died", flush=True)
        if after == "hangs":
            time.sleep(60)
        if after != "goes-on":
            sys.exit(int(after))
    step += 1
    append("metrics.jsonl", {"kind": "step", "step": step, "time": time.time()})
