"""Small checkpoints, and a process that dies while writing one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from openrlhf_ktae.checkpoint.write import begin, commit

TRAIN = {"train": {"seed": 1}}


def write(root: Path, step: int, best: bool = False, content: str = "weights", export: bool = False):
    """Write one checkpoint as the trainer and its ranks do."""
    tag = f"{'best_' if best else ''}global_step{step}"
    folder = begin(root, tag)
    parts = {f"_actor/{tag}/model.pt": f"{content} {step}", "_actor/latest": tag, "trainer.pt": "state"}
    parts |= {f"{tag}_hf/model.safetensors": content * 1000} if export else {}
    for name, text in parts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return commit(root, tag, step, {"config": TRAIN, "data": {}, "versions": {"packages": {"torch": "1"}}})


# Python raises an audit event before each file operation except fsync.
DYING = """
import os, signal, sys, threading
root, moment = sys.argv[1], int(sys.argv[2])
count, lock = 0, threading.Lock()
def maybe_die(what):
    global count
    with lock:
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
WATCHED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir"}
def hook(event, arguments):
    if event in WATCHED and any(root in str(a) for a in arguments):
        maybe_die(event)
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from written import write
from openrlhf_ktae.checkpoint.write import rotate
import openrlhf_ktae.checkpoint.files as files
fsync = os.fsync
def watched(descriptor):
    maybe_die("fsync")
    fsync(descriptor)
os.fsync = watched
sys.addaudithook(hook)
for word in sys.argv[4:]:
    write(Path(root), int(word), content="again")
    rotate(Path(root), 2, float("inf"))
print(count)
"""


def dies_while_writing(root: Path, moment: int, *steps: int) -> int | None:
    """Write checkpoints of `steps` in a process killed at its `moment`-th file operation.

    Returns the number of operations if it was not killed.
    """
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", textwrap.dedent(DYING), str(root), str(moment), here, *map(str, steps)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": _package()})
    if done.returncode == 0:
        return int(done.stdout)
    assert done.returncode == -9, done.stderr
    return None


def _package() -> str:
    import openrlhf_ktae

    return str(Path(next(iter(openrlhf_ktae.__path__))).parent)
