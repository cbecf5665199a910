"""A user's own estimator of token credit: does its file import, and does it give finite credit to a sample batch?"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from openrlhf_ktae.credit import CUSTOM

SECONDS = 120  # to import torch on a busy machine; compiling what an estimator calls may take as long again
LOADED, DONE = "the estimator is there: ", "the estimator works"
OPTIONS = "--algo.credit.options: "
# Runs in a separate process, so that nothing the file does affects this one.
PROBE = f"""
import json, sys
from openrlhf_ktae.credit import load_estimator, options_from, wrong_with
try:
    one = load_estimator(sys.argv[1])
    print("\\n{LOADED}" + json.dumps(one.needs), flush=True)
    try:
        options = options_from(one, sys.argv[2])
    except (ValueError, TypeError) as refusal:
        sys.exit("{OPTIONS}" + " ".join(str(refusal).split()))
    wrong = wrong_with(one, options)
except Exception as error:
    wrong = f"{{type(error).__name__}}: {{error}}"
sys.exit(" ".join(wrong.split())) if wrong else print("{DONE}", flush=True)
"""


@dataclass(frozen=True)
class Tried:
    """The outcome of trying an estimator."""

    problem: str = ""
    needs: tuple[str, ...] = ()


def credit_file_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield the faults of `--algo.credit.file` and of the options for it."""
    path, options = args.algo.credit.file, args.algo.credit.options
    if args.algo.credit.name != CUSTOM:
        return
    if not Path(path).is_file():
        yield f"--algo.credit.file {path}: no such file"
        return
    problem = _tried(path, options).problem
    if problem.startswith(OPTIONS):
        yield f"--algo.credit.options {options}: {problem.removeprefix(OPTIONS)}; correct it, or leave the option out"
    elif problem:
        yield f"--algo.credit.file {path}: {problem}; fix it (docs/estimators.md has an example)"


def credit_needs(args: SimpleNamespace) -> tuple[str, ...]:
    """Return what the run's estimator needs from the policy; a user's file is tried to find out."""
    needs: tuple[str, ...] = args.algo.credit.needs
    credit = args.algo.credit
    return _tried(credit.file, credit.options).needs if credit.name == CUSTOM else needs


@cache
def _tried(path: str, options: str) -> Tried:
    command = [sys.executable, "-c", PROBE, path, options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as late:
        said = bytes(late.stdout or b"").decode(errors="replace")
        return Tried(needs=_needs(said)) if LOADED in said else Tried(f"does not import within {SECONDS} s")
    if done.returncode == 0 and done.stdout.rstrip().endswith(DONE):
        return Tried(needs=_needs(done.stdout))
    if done.returncode != 1:  # an error of the file or of ours exits with 1; its last line says what is wrong
        return Tried(f"it ends the process with exit code {done.returncode}")
    return Tried(done.stderr.strip().splitlines()[-1])


def _needs(output: str) -> tuple[str, ...]:
    """Return the needs that the estimator printed: the last such line, since its file may print, too."""
    line = [line for line in output.splitlines() if line.startswith(LOADED)][-1]
    return tuple(json.loads(line.removeprefix(LOADED)))
