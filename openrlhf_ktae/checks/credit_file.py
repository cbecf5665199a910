"""A user's own estimator of token credit: does its file import, and does it give finite credit to a sample batch?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from openrlhf_ktae.credit import CUSTOM

SECONDS = 60  # to import torch on a busy machine, and to compute a small batch
DONE = "the estimator works: "
# Runs in a process of its own: what the file does, and how it ends, stays there.
PROBE = f"""
import json, sys
from openrlhf_ktae.credit import load_estimator, wrong_with
try:
    one = load_estimator(sys.argv[1])
    unmet = "it needs values of continuations, which a run does not sample" if "values" in one.needs else ""
    wrong = unmet or wrong_with(one)
except Exception as error:
    wrong = f"{{type(error).__name__}}: {{error}}"
sys.exit(" ".join(wrong.split())) if wrong else print("\\n{DONE}" + json.dumps([one.name, one.needs]), flush=True)
"""


@dataclass(frozen=True)
class Tried:
    """What one call of an estimator came to."""

    problem: str = ""
    needs: tuple[str, ...] = ()


def credit_file_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield what is wrong with `--algo.credit.file`."""
    path = args.algo.credit.file
    if args.algo.credit.name != CUSTOM:
        return
    if not Path(path).is_file():
        yield f"--algo.credit.file {path}: no such file"
    elif problem := _tried(path).problem:
        yield f"--algo.credit.file {path}: {problem}; repair it (docs/estimators.md has an example)"


def credit_needs(args: SimpleNamespace) -> tuple[str, ...]:
    """Return what the run's estimator needs of the policy; a user's file says so when it is tried."""
    needs: tuple[str, ...] = args.algo.credit.needs
    return _tried(args.algo.credit.file).needs if args.algo.credit.name == CUSTOM else needs


@cache
def _tried(path: str) -> Tried:
    command = [sys.executable, "-c", PROBE, path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return Tried(f"does not import and credit a small batch within {SECONDS} s")
    lines = done.stdout.rstrip().splitlines() or [""]
    if done.returncode == 0 and lines[-1].startswith(DONE):
        return Tried(needs=tuple(json.loads(lines[-1].removeprefix(DONE))[1]))
    said = done.stderr.strip().splitlines() or [f"it ends the process with exit code {done.returncode}"]
    return Tried(said[-1])
