"""Does a user's estimator give finite credit to a sample batch, and can the run give the values it needs?"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.checks.user_code import Tried
from openrlhf_ktae.credit import CUSTOM

SECONDS = 120  # to import torch on a busy machine; compilation may take longer, which is not reported as a problem
LOADED, TRIED = "the estimator needs ", "the estimator's problem is "
OPTIONS = "--algo.credit.options: "
# Runs in a separate process, so that the file cannot affect this one. The file may print, so results have marks.
PROBE = f"""
import json, sys
from openrlhf_ktae.base.text import short
from openrlhf_ktae.credit import load_estimator, options_from, wrong_with
try:
    one = load_estimator(sys.argv[1])
    print("\\n{LOADED}" + json.dumps(one.needs), flush=True)
    try:
        options = options_from(one, sys.argv[2])
    except (ValueError, TypeError) as refusal:
        problem = ("{OPTIONS}" if sys.argv[2] else "its options refuse their defaults: ") + short(refusal)
    else:
        problem = wrong_with(one, options)
except Exception as error:
    problem = f"{{type(error).__name__}}: {{short(error, 300)}}"
print("\\n{TRIED}" + json.dumps(problem), flush=True)
"""


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
    """Return the names in `NEEDS` of the inputs of the run's estimator; a user's file is tried to find them out."""
    needs: tuple[str, ...] = args.algo.credit.needs
    credit = args.algo.credit
    return _tried(credit.file, credit.options).names if credit.name == CUSTOM else needs


@cache
def _tried(path: str, options: str) -> Tried:
    command = [sys.executable, "-c", PROBE, path, options]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=SECONDS)
    except subprocess.TimeoutExpired as late:
        needs = _printed(LOADED, late.stdout or b"")
        return Tried(f"does not import within {SECONDS} s") if needs is None else Tried(names=tuple(needs))
    problem = _printed(TRIED, done.stdout)
    if problem is None:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return Tried(f"it ends the process with exit code {done.returncode}{''.join(f' ({line})' for line in last)}")
    return Tried(problem, tuple(_printed(LOADED, done.stdout) or ()))


def _printed(mark: str, output: bytes) -> Any:
    """Return the JSON value that the probe printed after `mark`; None if it printed none."""
    lines = [line for line in output.decode(errors="replace").splitlines() if line.startswith(mark)]
    return json.loads(lines[-1].removeprefix(mark)) if lines else None


def value_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield the reasons if there can be no values; nothing if the estimator does not need them."""
    if "values" not in credit_needs(args):
        return
    path = args.algo.mc_value.file
    needs = f"the estimator of --advantage_estimator {args.algo.credit.name} needs values of prefixes"
    if args.train.replay:
        yield (
            f"--train.replay {args.train.replay}: {needs}, but a replay samples nothing; leave the option out, or give "
            "an estimator that needs none, such as tempo"
        )
    judged = args.verifier.enable or args.train.agent_func_path or args.reward.remote_url
    if args.reward.model_name_or_path and not judged:
        yield (
            f"--reward.model_name_or_path {args.reward.model_name_or_path}: {needs}, but a reward model scores only "
            "rollouts that are trained on; serve it at --reward.remote_url"
        )
    if path:
        yield from _file_problems(path)
        return
    out = "or give the values with --algo.mc_value.file"
    if args.train.async_enable:
        yield (
            f"--train.async_enable true: {needs} under the weights that sampled the rollouts, but the weights change "
            f"while continuations are sampled; give --train.async_enable false, {out}"
        )
    if not args.verifier.enable and args.train.agent_func_path:
        yield (
            f"--train.agent_func_path {args.train.agent_func_path}: {needs}, but continuations cover a single turn; "
            f"grade single turns with --reward.remote_url FILE.py, {out}"
        )


def _file_problems(path: str) -> Iterator[str]:
    flag = f"--algo.mc_value.file {path}"
    if not Path(path).is_file():
        yield f"{flag}: no such file"
        return
    try:
        body = ast.parse(Path(path).read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError) as error:
        yield f"{flag}: is not Python ({error}); fix it"
        return
    if not any(isinstance(node, ast.FunctionDef) and node.name == "values" for node in body):
        yield f"{flag}: defines no function values(prompt, prefixes, label); add one (docs/estimators.md)"
