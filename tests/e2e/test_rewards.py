"""One run with rewards of every kind: constant, negative, fractional, NaN. It trains and reports excluded rollouts.

It uses two ranks and two engines.
"""

from __future__ import annotations

import json
import math

from marks import RARELY, SLOW

from openrlhf_ktae.record.recorded import find, read_groups

pytestmark = SLOW
REWARDS = """
import hashlib
KINDS = {kinds}

def reward_func(queries, prompts, labels, **kwargs):
    kind = KINDS[prompts[0]]
    right = int(hashlib.sha256(queries[0].encode()).hexdigest(), 16) % 2
    value = {{"constant": 1.0, "negative": -1.0 - right, "fraction": 0.25 + right / 3, "nan": float("nan")}}[kind]
    return {{"rewards": [value], "scores": [value]}}
"""
NAMES = ("constant", "negative", "fraction", "nan")


def test_every_kind_of_reward_on_two_ranks_and_two_engines_with_a_dynamic_batch(train, root, tmp_path):
    rows = [json.loads(line) for line in (root / "examples/quickstart/data/train.jsonl").read_text().splitlines()[:36]]
    kinds = {row["input"]: NAMES[i % 4] for i, row in enumerate(rows)}
    assert len(kinds) == 36
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "reward.py").write_text(REWARDS.format(kinds=kinds))
    words = f"--data.prompt_dataset {tmp_path}/prompts.jsonl --reward.remote_url {tmp_path}/reward.py"
    words += " --verifier.max_unknown_share 1 --run.eval_edges false --ktae.record_rollouts 1"
    words += " --actor.num_gpus_per_node 2 --vllm.num_engines 2 --train.dynamic_batch_enable"
    words += " --train.max_tokens_per_gpu 1024 --rollout.max_tokens_per_gpu 1024"
    words += " --rollout.micro_batch_size 32 --train.micro_batch_size 32"
    run = train(tmp_path / "run", *words.split())
    assert run.code == 0, run.output
    assert len(run.steps) == 4, "36 prompts make 4 steps of 8; the last 4 prompts are not trained on"
    for step in run.steps:
        assert step["rollout/num_samples"] == 64
        assert all(math.isfinite(value) for value in step.values() if isinstance(value, float))
    unknown = sum(step["verifier_unknown"] for step in run.steps) / 4
    assert 5 / 32 <= unknown <= 9 / 32, "9 of 36, some of which may be among the last 4"
    assert credited_kinds(run.directory, kinds) == {"negative", "fraction"}


@RARELY
def test_constant_rewards_are_noted_after_two_steps(train, root, tmp_path):
    rows = [json.loads(line) for line in (root / "examples/quickstart/data/train.jsonl").read_text().splitlines()[:24]]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "reward.py").write_text(REWARDS.format(kinds={row["input"]: "constant" for row in rows}))
    words = f"--data.prompt_dataset {tmp_path}/prompts.jsonl --reward.remote_url {tmp_path}/reward.py"
    run = train(
        tmp_path / "run", *words.split(), "--run.eval_edges", "false", "--algo.advantage.estimator", "group_norm"
    )
    assert run.code == 0, run.output
    assert [step["group_reward_std"] for step in run.steps] == [0, 0, 0]
    assert run.output.count("rewards are equal in every group") == 1


def credited_kinds(directory, kinds):
    """Return the kinds of reward whose rollouts have non-zero advantages."""
    rows = [row for group in read_groups(find([directory])) for row in group.rows]
    return {kinds[row["prompt"]] for row in rows if any(abs(value) > 1e-6 for value in row["advantages"])}
