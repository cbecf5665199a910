"""The comparison of two runs finds the first difference, and none between equal runs."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from openrlhf_ktae.selftest.same import first_difference, first_different_weight

ROWS = [
    {"kind": "plan", "steps": 2, "time": 1.0},
    {"kind": "step", "step": 1, "reward": 0.5, "timing/generation": 0.2, "ktae/seconds": 0.1, "time": 2.0},
    {"kind": "step", "step": 2, "reward": 0.75, "kl": None, "key_tokens": {"highest": [{"k": 1.0}]}, "time": 3.0},
    {"kind": "eval", "when": "after", "step": 2, "eval_accuracy": 0.5, "time": 4.0},
]


def write(folder, rows):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def changed(row, **values):
    return [*ROWS[:row], {**ROWS[row], **values}, *ROWS[row + 1 :]]


def test_timings_notes_and_plans_do_not_count(tmp_path):
    other = changed(1, **{"timing/generation": 9.0, "ktae/seconds": 9.0, "verifier_seconds": 9.0, "time": 9.0})
    other.insert(2, {"kind": "resume", "step": 1, "checkpoint": "global_step1"})
    assert first_difference(write(tmp_path / "a", ROWS), write(tmp_path / "b", other)) is None


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (changed(1, reward=0.25), "step 1: reward is 0.5 in"),
        (changed(2, kl=0.0), "step 2: kl is None in"),
        (changed(2, key_tokens={"highest": [{"k": 1.5}]}), "step 2: key_tokens"),
        (changed(2, new=1.0), "step 2: new is None in"),
        (changed(3, eval_accuracy=0.4), "evaluation after step 2: eval_accuracy is 0.5"),
        (ROWS[:3], "evaluation after step 2: is not in"),
        ([ROWS[0], *ROWS[2:]], "step 1 in"),
    ],
)
def test_the_first_difference_is_named(tmp_path, rows, text):
    a, b = write(tmp_path / "a", ROWS), write(tmp_path / "b", rows)
    assert first_difference(a, b).startswith(text)
    assert first_difference(b, a) is not None


def test_weights_are_compared_bit_by_bit(tmp_path):
    weights = {"a": torch.zeros(3), "b": torch.ones(2)}
    for name, value in (("one", 0.0), ("same", 0.0), ("other", 1e-7)):
        (tmp_path / name).mkdir()
        save_file({**weights, "b": weights["b"] + value}, tmp_path / name / "model.safetensors")
    assert first_different_weight(tmp_path / "one", tmp_path / "same") is None
    assert first_different_weight(tmp_path / "one", tmp_path / "other").startswith("b differs by up to 1.19e-07")
    (tmp_path / "none").mkdir()
    assert "no weights" in first_different_weight(tmp_path / "one", tmp_path / "none")
