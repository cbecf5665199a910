"""Which judge decides on a stored response."""

from __future__ import annotations

import json

import pytest

from openrlhf_ktae.report.credit_data import group_data, step_settings
from openrlhf_ktae.report.stored_groups import stored_groups


def stored(tmp_path, rows):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"benchmark": "a", "id": 1, "gold": "7", **row}) + "\n" for row in rows))
    return path


def shown(tmp_path, rows):
    groups = list(stored_groups(stored(tmp_path, rows)))
    verdicts = [one["verdict"] for made in groups for one in group_data(made)["rollouts"]]
    return verdicts, step_settings(groups[0].about).get("judged")


RIGHT, WRONG = {"response": "\\boxed{7}"}, {"response": "\\boxed{8}"}
JUDGED = {
    "a verdict that is true": ([{"verdict": True}, {"verdict": False}], ["correct", "wrong"], "verdict"),
    "a verdict in words": ([{"verdict": "Correct"}, {"verdict": "unknown"}], ["correct", "unknown"], "verdict"),
    "the verdict before the score": ([{"verdict": False, "score": 1}], ["wrong"], "verdict"),
    "the score before accuracy": ([{"score": 0.0, "accuracy": 1}], ["wrong"], "score"),
    "accuracy before the reward": ([{"accuracy": 1.0, "reward": 0}], ["correct"], "accuracy"),
    "correct": ([{"correct": True}, {"correct": 0}], ["correct", "wrong"], "correct"),
    "a published reward of 0 and 1": (
        [{"published_reward": 0.0}, {"published_reward": 1.0}],
        ["wrong", "correct"],
        None,
    ),
    "nulls": ([{"verdict": None, "score": None, "reward": 1}], ["correct"], "reward"),
}


@pytest.mark.parametrize(("rows", "verdicts", "by"), JUDGED.values(), ids=JUDGED)
def test_judge_of_a_stored_response(rows, verdicts, by, tmp_path):
    found, judged = shown(tmp_path, [{**WRONG, **row} for row in rows])
    assert found == verdicts
    assert judged == f"{by or 'published_reward'} in the file"


def test_a_shaped_reward_is_not_a_verdict(tmp_path):
    rows = [{**RIGHT, "reward": -0.3}, {**WRONG, "reward": 1.0}, {**WRONG, "reward": -1.3}]
    verdicts, judged = shown(tmp_path, rows)
    assert verdicts == ["correct", "wrong", "wrong"], "must be graded instead of using the shaped reward"
    assert judged == "this project's verifier"


def test_several_judges_are_counted(tmp_path):
    _, judged = shown(tmp_path, [{**RIGHT, "score": 1}, {**WRONG, "score": 0}, RIGHT])
    assert judged == "score in the file (2), this project's verifier (1)"
