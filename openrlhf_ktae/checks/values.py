"""Can the run give its estimator values of prefixes, by sampling continuations or from a file?"""

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from openrlhf_ktae.checks.credit_file import credit_needs


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
