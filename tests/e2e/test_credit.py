"""All token-credit estimators on real rollouts, in one run of a user's file that asks for every input they need."""

from __future__ import annotations

import math

from marks import RARELY

from openrlhf_ktae.credit import estimators
from openrlhf_ktae.record.recorded import find, read_groups

EVERYONE = '''
from dataclasses import dataclass
from openrlhf_ktae.credit import NEEDS, TokenCredit, estimators, register

@dataclass(frozen=True)
class Options:
    divisor: float = 0.0

@register("everyone", options=Options, needs=NEEDS)
def everyone(batch, options):
    """Train on the mean of all; each estimator's own credit is a figure."""
    credits = {name: one(batch).added_N for name, one in estimators().items()}
    sizes = {f"{name}_size": added.abs() for name, added in credits.items()}
    mean_N = sum(credits.values()) / (options.divisor or len(credits))
    return TokenCredit(mean_N, {**credits, **sizes})
'''


@RARELY  # arithmetic: tests/unit/credit; inputs of estimators: tests/unit/trainer/test_token_figures.py
def test_all_named_estimators_run_on_the_real_stack(train, tmp_path):
    (tmp_path / "everyone.py").write_text(EVERYONE)
    words = f"--advantage_estimator custom --algo.credit.file {tmp_path}/everyone.py --ktae.record_rollouts 1"
    words += " --algo.mc_value.every 4 --algo.mc_value.samples 2 --data.max_samples 16 --run.eval_edges false"
    run = train(tmp_path / "run", *words.split(), "--algo.credit.options", '{"divisor": 20.0}')
    assert run.code == 0, run.output
    assert len(run.steps) == 2
    assert len(estimators()) == 10
    for name in estimators():
        sizes = [step[f"credit/{name}_size"] for step in run.steps]
        assert all(math.isfinite(size) for size in sizes), name
        assert max(sizes) > 0, name
    assert all(step["credit/continuation_tokens"] >= step["credit/continuations"] > 0 for step in run.steps)
    values = []
    for group in read_groups(find([run.directory])):
        assert (group.about["credit"]["name"], group.about["credit"]["options"]) == ("custom", {"divisor": 20.0})
        for row in group.rows:
            acted = [i for i, acted in enumerate(row["action"]) if acted]
            values += [value for value in row["values"] if not math.isnan(value)]
            assert all(row["log_probs"][i] <= 0 <= row["entropies"][i] for i in acted)
            assert all(math.exp(2 * row["log_probs"][i]) <= row["sum_squares"][i] + 1e-5 <= 1.001 for i in acted)
    assert set(values) == {0.0, 0.5, 1.0}
