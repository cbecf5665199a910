"""Figures of the token-credit page against the mathematics: K per token, its mean, TF."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from recorded_groups import group

from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.report.credit_data import MEASURES, VARIANTS, configs_of, group_data, step_settings, values_of
from openrlhf_ktae.report.rescoring import Arm, arms_of, key_token_values, recorded_arm, tensors


def partly_known(about=None):
    """Two right rollouts, two wrong and one with an unknown verdict; the first contains a tool's token."""
    right, wrong = [" it", " gives", " gives", " 7"], [" it", " maybe", " 8"]
    made = group([(1, right), (1, right), (0, wrong), (0, wrong), (None, right + wrong)], about=about)
    made.rows[0]["action"][1] = False
    return made


def figure_of(data, variant, text, name):
    return dict(zip(MEASURES, data["variants"][variant]["measures"][data["texts"].index(text)], strict=True))[name]


@pytest.mark.parametrize("options", [{}, {"centre": True}, {"excluded_ids": (3,), "centre": True}])
def test_mean_k_is_as_in_training(options):
    one = partly_known({"ktae": {"variant": "paper", **options}})
    data, arrays = group_data(one), tensors(one)
    for variant, config in configs_of(one.about).items():
        k_GT = key_token_values(arrays, Arm(variant, config))
        for row, (mean, size) in enumerate(data["variants"][variant]["means"]):
            acted = k_GT[row][arrays.mask_GT[row]]
            assert mean == pytest.approx(acted.mean(), rel=1e-3, abs=1e-9)
            assert size == pytest.approx(np.abs(acted).mean(), rel=1e-3, abs=1e-9)
    assert data["variants"]["paper"]["means"][-1] == [0.0, 0.0], "unknown verdicts get no K"


@pytest.mark.parametrize("centre", [False, True])
def test_k_of_the_recorded_variant_has_the_credit_weight(centre):
    about = {"ktae": {"variant": "paper", "centre": centre}}
    one, weighted = (
        partly_known({**about, "credit": {"name": "ktae", "weight": weight, "options": {}}}) for weight in (1.0, 0.25)
    )
    expected, found = values_of(one), values_of(weighted)
    assert expected["paper"].any()
    np.testing.assert_array_equal(found["paper"], key_token_values(tensors(weighted), recorded_arm(weighted.about)))
    np.testing.assert_allclose(found["paper"], 0.25 * expected["paper"])
    np.testing.assert_array_equal(found["reference"], expected["reference"])
    data, plain = group_data(weighted)["variants"], group_data(one)["variants"]
    assert data["paper"]["weight"] == 0.25 * plain["paper"]["weight"]
    assert data["paper"]["means"][0] == pytest.approx([0.25 * mean for mean in plain["paper"]["means"][0]], rel=1e-3)
    assert (data["paper"]["shifts"] is None) is not centre
    ranges = [step_settings(made.about)["range"] for made in (one, weighted)]
    assert ranges[1] == {**ranges[0], "paper": 0.25 * ranges[0]["paper"]}


def test_a_run_with_ktae_shows_every_estimator_whose_inputs_were_recorded():
    one = partly_known()
    assert step_settings(one.about)["others"] == ["lambda_grpo", "tempo"]
    for row in one.rows:
        row["values"] = [0.75, *[np.nan] * (len(row["token_ids"]) - 1)]
    names = step_settings(one.about, ["values"])["others"]
    assert names == ["lambda_grpo", "mc_value", "tempo"]
    data = group_data(one)
    assert [set(row["credit"]) for row in data["rollouts"]] == [set(names)] * 5
    assert any(data["rollouts"][0]["credit"]["mc_value"])


def test_subtracted_means_are_distinguished_from_k_of_tokens():
    one = group([(1, [" it", " a", " b"]), (0, [" it", " a", " c"])], about={"special_ids": [2]})
    one.about["ktae"] = {"variant": "paper", "centre": True}
    data = group_data(one)
    assert figure_of(data, "paper", " it", "value") is None, "special tokens get no K"
    assert data["variants"]["paper"]["shifts"][0] == pytest.approx(figure_of(data, "paper", " b", "value") / 2)


def test_tf_is_as_in_the_formula():
    one = group([(1, [" a", " b", " b", " c"])] * 2 + [(1, [" c"])] + [(0, [" a", " b", " d", " d", " d"])] * 2)
    data = group_data(one)
    for variant in VARIANTS:
        config = KTAEConfig(variant=variant)
        h3, epsilon = config.number("h3"), config.number("ratio_epsilon")
        for measures in data["variants"][variant]["measures"]:
            m = dict(zip(MEASURES, measures, strict=True))
            right, wrong = m["tf_correct"], m["tf_wrong"]
            if variant == "calibrated":
                ratio = min(1.0, right / wrong if m["presence"] > 0 else wrong / right) ** h3
            else:
                ratio = h3 * (right / (wrong + epsilon) - wrong / (right + epsilon))
            if m["strength"]:
                assert m["frequency"] == pytest.approx(ratio, rel=2e-3, abs=1e-3)
    assert 0 < figure_of(data, "paper", " b", "tf_correct") != figure_of(data, "calibrated", " b", "tf_correct")


def test_missing_texts_are_empty():
    one = group([(1, [" a", " b"]), (0, [" a", " c"])])
    one.rows[0]["label"] = None
    one.rows[0]["token_texts"][1] = None
    data = group_data(one)
    assert (data["label"], data["texts"]) == ("", [" a", "", " c"])


def test_the_recorded_threshold_holds_for_every_arm():
    """Also for a score at the threshold: 0.3 in float32 is more than 0.3."""
    recorded = {"ktae": {"variant": "paper", "correct_threshold": 0.3}}
    right, wrong = [" it", " gives", " 7"], [" it", " maybe", " 8"]
    rows = [(1, right), (1, right), (0.30000001192092896, wrong), (0.30000001192092896, wrong)]
    one = group(rows, about=recorded)
    plain = group([(1, right), (1, right), (0, wrong), (0, wrong)])
    for row in one.rows + plain.rows:
        row["in_prompt"] = [1.0, 0.0, 0.0]
    assert tensors(one).mixed
    found, expected = group_data(one), group_data(plain)
    assert [row["verdict"] for row in found["rollouts"]] == [row["verdict"] for row in expected["rollouts"]]
    assert found["sides"] == expected["sides"] and found["variants"] == expected["variants"]
    for arm in arms_of(recorded_arm(one.about), True, {"mine": {"h1": 2.0}}, ["in_prompt"]):
        if arm.estimator is None or arm.estimator.by_verdict:
            config = replace(arm.config, correct_threshold=0.0)
            k_GT = key_token_values(tensors(one), arm)
            np.testing.assert_array_equal(k_GT, key_token_values(tensors(plain), replace(arm, config=config)))
