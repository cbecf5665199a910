"""Runs with any estimator: recorded inputs, exact rescoring, and their pages."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from rollout_batches import batched, by_rollout, maker, rollouts

from openrlhf_ktae.cli.rescore import main
from openrlhf_ktae.credit import NEEDS, estimators
from openrlhf_ktae.record.recorded import read_groups
from openrlhf_ktae.record.rollouts import RolloutRecorder
from openrlhf_ktae.report.credit_data import group_data, step_settings
from openrlhf_ktae.report.credit_parts import parts

NAMES = [name for name, one in estimators().items() if "values" not in one.needs]


def recorded(module, tokenizer, folder, name, *words):
    """Compute one step with invented entropies and probabilities, and record it."""
    from openrlhf_ktae.trainer.ppo_utils.token_figures import PLACE
    from openrlhf_ktae.trainer.recording import recorded_credit

    one = maker(module, "--advantage_estimator", name, *words)
    one.tokenizer, one.keep_credit = tokenizer, True
    generator = torch.Generator().manual_seed(0)
    batch = batched(rollouts(), 5)
    for e in batch:
        e.sequences[:, 0] = 10  # answers have the prompt's first id
        e.action_log_probs = -torch.rand(e.action_mask.shape, generator=generator)
        names = [need for need in one.args.algo.credit.needs if need != "log_probs"]
        setattr(e, PLACE, {need: torch.rand(e.action_mask.shape, generator=generator) for need in names})
    experiences = one.compute_advantages_and_returns(batch)
    credit, options = recorded_credit(one.args.algo.credit), one.args.algo.credit
    about = {"ktae": asdict(one.args.algo.ktae.config), "ktae_enabled": name == "ktae", "credit": credit}
    about |= {"shadow": options.shadow, "estimator": one.args.algo.advantage.estimator}
    path = RolloutRecorder(folder, 1, 10, 0, about).write(1, one.credit, tokenizer)
    return path, by_rollout(experiences)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_credit_is_reproduced(module, tokenizer, name, tmp_path):
    path, advantages = recorded(module, tokenizer, tmp_path, name, "--algo.credit.weight", "0.5")
    rows = [row for group in read_groups([path]) for row in group.rows]
    assert any(k for row in rows for k in row["k"])
    for row, expected in zip(rows, (advantages[i] for i in sorted(advantages)), strict=True):
        assert torch.equal(torch.tensor(row["advantages"]), expected)
        base = torch.tensor(row["advantages_without_k"]) + torch.tensor(row["k"])
        torch.testing.assert_close(base, expected, atol=1e-6, rtol=0)
    assert {need for need in NEEDS if need in rows[0]} == set(estimators()[name].needs)
    for row in rows if "in_prompt" in rows[0] else ():
        assert row["in_prompt"] == [float(i in row["prompt_ids"]) for i in row["token_ids"]]
    assert main([str(path), "--output", str(tmp_path / "o")]) == 0
    result = json.loads((tmp_path / "o/rescore.json").read_text())
    assert result["reproduced"] < 1e-6
    assert result["arms"]["recorded"]["mean_abs_k"]["value"] > 0
    usable = [
        other for other in NAMES if other != "ktae" and set(estimators()[other].needs) <= set(estimators()[name].needs)
    ]
    assert [arm for arm in result["arms"] if arm in estimators()] == [
        other for other in estimators() if other in usable
    ]
    if not estimators()[name].across_groups and name != "ktae":
        halved = result["arms"]["recorded"]["mean_abs_k"]["value"]
        assert result["arms"][name]["mean_abs_k"]["value"] == pytest.approx(2 * halved, rel=1e-5)


@pytest.mark.parametrize("words", [("--algo.credit.shadow", "true"), ("--algo.credit.weight", "0")])
@pytest.mark.parametrize("name", NAMES)
def test_shadow_and_weight_zero_are_the_base_bit_for_bit(module, tokenizer, name, words, tmp_path):
    path, advantages = recorded(module, tokenizer, tmp_path, name, *words)
    plain = maker(module, "--advantage_estimator", "group_norm")
    expected = by_rollout(plain.compute_advantages_and_returns(batched(rollouts(), 5)))
    assert advantages.keys() == expected.keys()
    assert all(torch.equal(advantages[i], expected[i]) for i in advantages)
    stored = [k for group in read_groups([path]) for row in group.rows for k in row["k"]]
    assert any(stored) == (words[1] == "true"), "shadow must record its credit"


def test_the_page_shows_the_runs_credit_and_other_estimators(module, tokenizer, tmp_path):
    path, _ = recorded(module, tokenizer, tmp_path, "prob_reweight")
    group = next(iter(read_groups([path])))
    settings = step_settings(group.about, ["log_probs"])
    assert settings["trained"] == "prob_reweight"
    assert settings["others"] == ["prob_reweight", "lambda_grpo", "tempo"]
    data = group_data(group)
    for rollout, row in zip(data["rollouts"], group.rows, strict=True):
        assert rollout["credit"]["prob_reweight"] == pytest.approx(row["k"], rel=1e-3)
        assert set(rollout["credit"]) == set(settings["others"])
    cut = [json.loads(part) for part in parts(data, 1500)]
    pieces = [rollout for part in cut for rollout in part["rollouts"]]
    assert len(pieces) > len(data["rollouts"])
    for name in settings["others"]:
        whole = [k for rollout in data["rollouts"] for k in rollout["credit"][name]]
        assert [k for piece in pieces for k in piece["credit"][name]] == whole


def test_pages_of_ktae_and_of_grpo_offer_estimators_without_needs(module, tokenizer, tmp_path):
    for number, words in enumerate((("ktae",), ("group_norm",))):
        path, _ = recorded(module, tokenizer, tmp_path / str(number), *words)
        about = next(iter(read_groups([path]))).about
        assert step_settings(about)["others"] == ["lambda_grpo", "tempo"]
        assert step_settings(about)["enabled"] is (words[0] == "ktae")
