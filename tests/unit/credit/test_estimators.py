"""Each estimator against plain loops, and on the examples worked by hand in docs/estimators.md."""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from credit_batches import LITERAL, batch, known, of_rollouts, rollouts

from openrlhf_ktae.credit import CreditBatch, estimators, load_estimator, sample_batch, tokens_in_prompt, wrong_with
from openrlhf_ktae.ktae import KTAEConfig, compute_key_token_values

CASES = [(name, {}) for name in LITERAL] + [
    ("entropy_mask", {"share": 0.5}),
    ("entropy_bonus", {"alpha": 2.0, "kappa": 4.0}),
    ("prob_reweight", {"alpha": 0.9}),
    ("gtpo", {"alpha": 0.7}),
    ("gtpo", {"alpha": 0.7, "form": "paper"}),
]


def credit(name, given, **options):
    one = estimators()[name]
    return one(given, one.options(**options))


def test_every_estimator_has_a_literal_version():
    assert set(estimators()) == {*LITERAL, "ktae"}


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("seed", range(8))
def test_estimators_match_literal_loops(name, options, seed):
    made = rollouts(seed=seed)
    given = batch(made)
    added = of_rollouts(credit(name, given, **options).added_N, made, given)
    assert any(np.abs(one).max(initial=0) > 0.01 for one in added)
    for found, rollout in zip(added, made, strict=True):
        expected = LITERAL[name](rollout, made, **options) if known(rollout) else np.zeros(len(found))
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("variant", ["paper", "reference", "calibrated"])
def test_ktae_as_an_estimator_is_bit_identical(variant):
    made = rollouts(size=16, seed=3)
    given, config = batch(made), KTAEConfig(variant=variant, p_max=1.0 if variant == "calibrated" else None)
    labels = given.scores_B, given.groups_B, config, given.special_ids
    expected = compute_key_token_values(given.token_ids_N, given.mask_N, *labels, row_edges=given.edges_B)
    found = estimators()["ktae"](given, config).added_N
    assert expected.any()
    assert torch.equal(found, expected)


def table(**needs):
    """Three rollouts of one prompt: A B C is right, A B D and A E are wrong; advantages 1, -1/2, -1/2."""
    ids = [[0, 1, 2], [0, 1, 3], [0, 4, 9]]
    mask = [[1, 1, 1], [1, 1, 1], [1, 1, 0]]
    return CreditBatch.from_tables(ids, mask, [1.0, 0.0, 0.0], [5, 5, 5], [1.0, -0.5, -0.5], **needs)


ENTROPIES = {"entropies": [[0.0, 0.5, 1.0], [0.0, 0.5, 1.0], [0.0, 0.5, 0.0]]}
LOG_PROBS = {"log_probs": np.log([[1.0, 0.5, 0.5], [1.0, 0.5, 0.5], [1.0, 0.5, 0.1]])}
WORKED = [
    # A is shared by all (mean 0), B by two (mean 1/4), C, D and E by one.
    ("tempo", {}, [[1, 1.25, 1.75], [-0.5, -0.25, -1.25], [-0.5, -1, 0]]),
    ("lambda_grpo", {}, [[1 / 3, 1 / 2, 1], [-1 / 6, -1 / 4, -1 / 2], [-1 / 6, -1 / 2, 0]]),
    # 20 % of 8 tokens are 2 (rounded up): those with 1 nat.
    ("entropy_mask", ENTROPIES, [[0, 0, 1], [0, 0, -0.5], [0, 0, 0]]),
    # min(0.4 H, |A| / 2)
    ("entropy_bonus", ENTROPIES, [[1, 1.2, 1.4], [-0.5, -0.3, -0.25], [-0.5, -0.3, 0]]),
    # 0.2 pi + 0.8 is 1 and 0.9
    ("prob_reweight", LOG_PROBS, [[1, 0.9, 0.9], [-0.5, -0.45, -0.45], [-0.5, -0.45, 0]]),
    # Weight of a token: 1 - 2 pi + sum of squares, summed from the start. At the second position 1/2 for the right
    # rollout and 1/4 for the wrong ones: baseline (1/2 - 1/8 - 1/8) / 1 = 1/4. At the third 1 and 1/2 remain:
    # (1 - 1/4) / (3/2) = 1/2.
    (
        "otb",
        LOG_PROBS | {"sum_squares": [[1, 0.5, 0.5], [1, 0.25, 0.25], [1, 0.25, 0]]},
        [[1, 0.75, 0.5], [-0.5, -0.75, -1], [-0.5, -0.75, 0]],
    ),
    # At the second position both wrong rollouts have 1 / H = 2, so shares are even; a rollout alone has share 1.
    ("gtpo", ENTROPIES, [[1, 1, 1], [-0.5, -0.5, -0.5], [-0.5, -0.5, 0]]),
    # The mean score is 1/3, and 1/2 after B in the first rollout. |Centred scores| sum to 4/3, |advantages| to 2, so
    # the scale is 3/2.
    (
        "mc_value",
        {"values": [[np.nan, 0.5, 1], [np.nan, np.nan, 0], [np.nan, 0, np.nan]]},
        [[0.25, 0.25, 0.75], [-0.5, -0.5, -0.5], [-0.5, -0.5, 0]],
    ),
]


@pytest.mark.parametrize(("name", "needs", "advantages"), WORKED)
def test_worked_examples(name, needs, advantages):
    given = table(**needs)
    found = (given.base_N * given.mask_N + credit(name, given).added_N).view(3, 3)
    np.testing.assert_allclose(found.numpy(), advantages, atol=1e-6)


def test_context_distinguishes_uses_of_one_id():
    """Prompt P Q; P x Q y is right, P y Q x wrong. Both contain x and y. End and prompt tokens get no K."""
    p, q, x, y, end = range(5)
    rows, mask = [[p, q, p, x, q, y, end], [p, q, p, y, q, x, end]], [[0, 0, 1, 1, 1, 1, 1]] * 2
    inside = tokens_in_prompt(torch.tensor(rows), torch.tensor(mask))
    assert inside.tolist() == [[1, 1, 1, 0, 1, 0, 0]] * 2
    given = CreditBatch.from_tables(rows, mask, [1, 0], [0, 0], [1.0, -1.0], special_ids=(end,), in_prompt=inside)
    assert not credit("ktae", given).added_N.any()
    found = credit("ktae_by_context", given).added_N.view(2, 7)
    k = float(found[0, 3])
    assert k > 0.1
    # A token's context is the last prompt token before it: x follows P in the right rollout and Q in the wrong one; Q
    # follows P in both.
    np.testing.assert_allclose(found, [[0, 0, 0, k, 0, k, 0], [0, 0, 0, -k, 0, -k, 0]], atol=1e-6)


def test_gtpo_gives_uncertain_tokens_of_right_rollouts_more():
    """At a position where two right rollouts have 3 and 1 nat, their shares are 3/2 and 1/2."""
    given = CreditBatch.from_tables(
        [[0], [1], [2]], [[1], [1], [1]], [1, 1, 0], [0, 0, 0], [1.0, 1.0, -2.0], entropies=[[3.0], [1.0], [0.2]]
    )
    found = given.base_N + credit("gtpo", given, alpha=0.5).added_N
    np.testing.assert_allclose(found.numpy(), [1.25, 0.75, -2.0], atol=1e-6)


def test_a_tools_answer_is_part_of_prefixes_and_gets_no_credit():
    """Both write 1 and 3, but a tool returns 7 or 8 in between, so their states differ from there on."""
    given = CreditBatch.from_tables([[1, 7, 3], [1, 8, 3]], [[1, 0, 1]] * 2, [1, 0], [0, 0], [1.0, -1.0])
    assert credit("lambda_grpo", given).figures["shared_by"].view(2, 3).tolist() == [[2, 1, 1]] * 2
    assert credit("tempo", given).added_N.tolist() == [0, 0, 0] * 2


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("entropy_mask", {"share": 0.0}, "share=0.0"),
        ("entropy_bonus", {"alpha": -1.0}, "alpha=-1.0"),
        ("entropy_bonus", {"kappa": 1.0}, "kappa=1.0"),
        ("prob_reweight", {"alpha": 1.5}, "alpha=1.5"),
        ("gtpo", {"alpha": float("nan")}, "alpha=nan"),
        ("gtpo", {"form": "other"}, "form='other'"),
    ],
)
def test_options_out_of_range_are_named(name, options, words):
    with pytest.raises(ValueError, match=words):
        estimators()[name].options(**options)


def test_a_missing_input_is_named():
    with pytest.raises(ValueError, match="entropies"):
        credit("gtpo", table())
    with pytest.raises(ValueError, match=r"scores has shape \(2,\)"):
        CreditBatch.from_tables([[1], [2], [3]], [[1]] * 3, [1.0, 0.0], [0] * 3, [0.0] * 3)


DOCS = (Path(__file__).resolve().parents[3] / "docs/estimators.md").read_text()


def doc_row(name, after):
    """Return the cells of an estimator's row in the first table after the text `after`."""
    text = DOCS[DOCS.index(after) :]
    (line,) = [line for line in text[: text.index("\n\n", text.index("|---"))].splitlines() if f"| `{name}` |" in line]
    return [cell.strip() for cell in line.replace("\\|", "").strip("|").split("|")]


@pytest.mark.parametrize(("name", "needs", "advantages"), WORKED)
def test_the_documented_worked_examples(name, needs, advantages):
    for cell, row in zip(doc_row(name, "## A worked example")[2:], advantages, strict=True):
        assert [float(Fraction(number)) for number in cell.split(", ")] == pytest.approx(row[: cell.count(",") + 1])


@pytest.mark.parametrize("name", estimators())
def test_the_documented_table_lists_every_estimator_option_and_need(name):
    _, _, options, needs, sorts = doc_row(name, "# Estimators")
    one = estimators()[name]
    written = {
        "log_probs": "log pi",
        "entropies": "H",
        "sum_squares": "sum pi²",
        "values": "V",
        "in_prompt": "in prompt",
    }
    assert needs == ", ".join(written[need] for need in one.needs)
    assert 0 < float(sorts) < 3
    if one.options is not KTAEConfig:
        assert options == ", ".join(
            f"`{field.name}` {field.default:g}"
            if isinstance(field.default, float)
            else f"`{field.name}` {'none' if field.default in (None, '') else field.default}"
            for field in fields(one.options)
        )


def test_the_documented_estimator_works(tmp_path):
    block = DOCS[DOCS.index("## Your own") :].split("```python\n")[1].split("```")[0]
    (tmp_path / "surprise.py").write_text(block)
    one = load_estimator(tmp_path / "surprise.py")
    assert wrong_with(one) == ""
    assert one(sample_batch()).added_N.any()


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("name", ["ktae", "ktae_by_context", "gtpo"])
def test_a_score_at_the_threshold_is_wrong(name, threshold):
    """Scores are float32, and 0.1 in float32 is more than 0.1. The batch's threshold holds for every estimator."""
    needs = {"entropies": [[1.0, 2.0]] * 4, "in_prompt": [[0.0, 0.0]] * 4}
    rows, mask = [[1, 2], [1, 3], [4, 2], [1, 4]], [[1, 1]] * 4

    def of(scores, at):
        return credit(
            name, CreditBatch.from_tables(rows, mask, scores, [0] * 4, [1.0, -1.0, 1.0, -1.0], (), at, **needs)
        )

    expected = of([1.0, 0.0, 1.0, 0.0], 0.0)
    assert name == "gtpo" or expected.added_N.any()
    found = of([1.0, threshold, 1.0, threshold], threshold)
    assert torch.equal(found.added_N, expected.added_N)
    assert all(torch.equal(found.figures[figure], expected.figures[figure]) for figure in expected.figures)


def test_ktae_by_context_excludes_ids_as_ktae_does():
    """Excluded and special ids get no K, are no context, and do not count in the mean that centring subtracts."""
    made = rollouts(size=8, seed=4)
    given = batch(made)
    found = credit("ktae_by_context", given, excluded_ids=(1,), centre=True).added_N
    assert torch.equal(found, credit("ktae_by_context", replace(given, special_ids=(1, 2)), centre=True).added_N)
    excluded_N = torch.isin(given.token_ids_N, torch.tensor([1, 2]))
    assert found.any() and not found[excluded_N].any()
    plain = credit("ktae_by_context", given, excluded_ids=(1,)).added_N
    for start, end in zip(given.edges_B[:-1], given.edges_B[1:], strict=True):
        valued = given.mask_N[start:end] & ~excluded_N[start:end]
        shift = plain[start:end][valued] - found[start:end][valued]
        torch.testing.assert_close(
            shift, torch.full_like(shift, float(plain[start:end][valued].mean()) if len(shift) else 0)
        )
