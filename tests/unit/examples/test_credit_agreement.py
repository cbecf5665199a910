"""Benchmarks on chains: agreement figures by hand, stacked models against transformers, Adam against torch's."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from openrlhf_ktae.record.rollouts import COLUMNS, METADATA_KEY, NEEDED, schema_of


@pytest.fixture(scope="module")
def scripts(load_benchmarks):
    names = ("credit_agreement", "recorded_agreement", "credit_training", "stacked_qwen2", "ktae_changes", "credit_map")
    short = ("agreement", "recorded", "training", "stacked", "changes", "map")
    return dict(zip(short, load_benchmarks(*names), strict=True))


def test_agreement_by_hand(scripts):
    """Two rollouts of three tokens: ranks of credit 1 2 3 | 5 5 5 (a tie), of the control 1.5 1.5 3 | 5 4 6."""
    credit = np.array([1.0, 2, 3, 4, 4, 4])
    control = np.array([-1.0, -1, 0, 2, 1, 3])
    inside = scripts["agreement"].within(credit, control, np.array([0, 0, 0, 1, 1, 1]))
    pooled, within, sign, cosine = scripts["agreement"].agreement(credit, control, inside)
    centred = np.array([-2.5, -1.5, -0.5, 1.5, 1.5, 1.5]), np.array([-2.0, -2, -0.5, 1.5, 0.5, 2.5])
    assert pooled == pytest.approx(centred[0] @ centred[1] / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    assert within == pytest.approx((np.sqrt(3) / 2 + 0) / 2)  # ranks 1 2 3 and 1.5 1.5 3; the second is constant
    assert sign == pytest.approx(3 / 5)  # the token whose control is 0 does not count
    assert cosine == pytest.approx((-1 - 2 + 8 + 4 + 12) / np.sqrt(62 * 16))


def test_agreement_with_itself_and_with_its_opposite(scripts):
    control = np.random.default_rng(0).normal(size=30)
    rows = np.arange(30) // 6
    for sign, expected in ((1, (1, 1, 1, 1)), (-1, (-1, -1, 0, -1))):
        inside = scripts["agreement"].within(sign * control, control, rows)
        assert scripts["agreement"].agreement(sign * control, control, inside) == pytest.approx(expected)


@pytest.mark.parametrize("continued", [False, True])
def test_agreement_of_recorded_rollouts_by_hand(scripts, tmp_path, continued):
    """Four answers to one sum, three right: from the states of a chain, or from continuations if there are any.

    The right result adds 1 - 3/4 to the chance, the wrong one takes 3/4, other tokens nothing. Groups of two: the
    second has only right answers.
    """
    words = [word.strip() for word in scripts["recorded"].words_of.__globals__["WORDS"]]
    rows, nan = [], float("nan")
    for i, result in enumerate(("5", "6", "5", "5")):
        right = float(result == "5")
        row = {name: None for name in COLUMNS} | {"step": 1, "group": 0, "rollout": i, "prompt": "p", "response": "r"}
        ids = [258 + words.index(word) for word in ("+2", result, "so", "\\boxed{", result, "}")]
        row |= {"prompt_ids": [258 + words.index(word) for word in ("compute", "3", "+2", ":")], "token_ids": ids}
        row |= {"token_texts": [""] * 6, "action": [True] * 6, "score": right, "reward": right}
        row |= {name: [0.0] * 6 for name in (*NEEDED, "k", "advantages_without_k", "advantages")}
        rows.append(row | {"values": [0.75, *[right] * 4, nan] if continued else [nan] * 6})
    schema = schema_of(pa, list(NEEDED)).with_metadata({METADATA_KEY: json.dumps({"special_ids": []}).encode()})
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "step-000001.parquet")
    found = scripts["recorded"].measured(tmp_path, 2)
    assert (found["accuracy"], found["groups"], found["tokens"]) == (0.75, 1, 12)
    assert found["that matter"] == pytest.approx(2 / 12)
    assert found["estimators"]["GRPO"]["cosine"][0] == pytest.approx(1 / np.sqrt(12 * (1 + 9) / 16))
    assert found["estimators"]["GRPO"]["sign"][0] == 1
    assert found["estimators"]["ktae paper"]["within"][0] > 0.5 > found["estimators"]["GRPO"]["within"][0] == 0


def test_stacked_models_are_transformers_models(scripts, examples):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(examples / "quickstart/model")
    ids = torch.randint(2, 300, (2, 3, 12), generator=torch.Generator().manual_seed(0))
    ids[0, 1, :4] = 0
    forward = scripts["stacked"].Forward(model.config)
    ours = forward.log_probs(scripts["stacked"].stacked(model, 2), ids, 0)
    with torch.no_grad():
        for s in range(2):
            there = (ids[s] != 0).long()
            places = (there.cumsum(1) - 1).clamp(min=0)
            theirs = model(ids[s], attention_mask=there, position_ids=places).logits.log_softmax(-1)[:, :-1]
            known = there[:, :-1].bool()
            assert torch.allclose(ours[s][known], theirs[known], atol=1e-4)


def test_sampling_follows_the_models_probabilities(scripts, examples):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(examples / "quickstart/model")
    forward, weights = scripts["stacked"].Forward(model.config), scripts["stacked"].stacked(model, 1)
    start = torch.tensor([[260, 300, 301]]).repeat(4000, 1)[None]
    made = forward.sample(weights, start, 0, 1, 2, seed=0)[0]
    first = made[:, 3].mode().values.item()
    after = made[made[:, 3] == first]
    probs = forward.log_probs(weights, after[None, :1], 0)[0, 0].exp()
    assert (made[:, 3] == first).float().mean() == pytest.approx(probs[2, first].item(), abs=0.04)
    second = after[:, 4].mode().values.item()  # this one uses cached keys and values
    spread = (0.25 / len(after)) ** 0.5
    assert (after[:, 4] == second).float().mean() == pytest.approx(probs[3, second].item(), abs=4 * spread)


def test_adam_equals_torchs_with_a_rate_per_model(scripts):
    weights = {"w": torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))}
    theirs = [weights["w"][s].clone().requires_grad_() for s in range(2)]
    rates = torch.tensor([0.1, 0.01])
    optimizers = [
        torch.optim.Adam([w], lr=float(rate), betas=(0.9, 0.95)) for w, rate in zip(theirs, rates, strict=True)
    ]
    moments = {"w": (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))}
    for step in range(1, 4):
        gradient = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(step))
        scripts["training"].adam(weights, (gradient,), moments, rates, step)
        for s in range(2):
            theirs[s].grad = gradient[s].clone()
            torch.nn.utils.clip_grad_norm_([theirs[s]], 1.0)
            optimizers[s].step()
    assert torch.allclose(weights["w"], torch.stack([w.detach() for w in theirs]), atol=1e-5)


def small_batch(scores, groups):
    """Prompt 7 8, response 7 x 8 30 with x = 20 or 21; contexts: none, 7, 7, 8."""
    from openrlhf_ktae.credit import CreditBatch, tokens_in_prompt

    ids = torch.tensor([[7, 8, 7, 20 + i % 2, 8, 30] for i in range(len(scores))])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]]).expand(len(ids), -1)
    scores = torch.tensor(scores)
    inside = tokens_in_prompt(ids, mask)
    return CreditBatch.from_tables(ids, mask, scores, torch.tensor(groups), 2 * scores - 1, in_prompt=inside)


def test_keys_are_pairs_of_context_and_id(scripts):
    batch = small_batch([1.0, 0.0, 1.0, 0.0], [0, 0, 0, 0])
    keys = scripts["changes"].keys(batch, torch.zeros_like(batch.mask_N)).reshape(4, 4)
    assert (keys[0] == keys[2]).all() and (keys[1] == keys[3]).all()
    assert (keys[0] == keys[1]).tolist() == [True, False, True, True]
    assert len(set(keys.flatten().tolist())) == 5


def test_values_of_keys_by_hand(scripts):
    """20 is in both right rollouts and no wrong one, 21 the reverse: values 2.5 / 3 and 0.5 / 3, prior included.

    The spread of 20 and 21 is (2 - 1)^2 = 1, by chance 2 / 4 * 2 / 3 = 1 / 3, so w = 2 / 3; other ids are in every
    rollout. A one-sided group keeps its base.
    """
    batch = small_batch([1.0, 0.0, 1.0, 0.0, 1.0, 1.0], [0, 0, 0, 0, 1, 1])
    found = scripts["changes"].by_value(batch).view(6, 6)[:, 2:]
    change = 2 / 3 * (2.5 / 3 - 1 / 2)
    scale = 6 / 2  # of the base relative to scores
    assert torch.allclose(found[0], scale * torch.tensor([0, change, 0, 0.5 - change]))
    assert torch.allclose(found[1], -found[0])
    assert (found[4:] == 1).all()


def test_arms_are_added_to_an_existing_cell(scripts):
    one = {
        "member": "m",
        "explored": {},
        "rate": {"GRPO": 1},
        "over steps": {"GRPO": [1]},
        "final": {"GRPO": [2]},
        "seconds": 3,
    }
    other = one | {"rate": {"tempo": 2}, "over steps": {"tempo": [4]}, "final": {"tempo": [5]}}
    cells = []
    for found in (one, other, other | {"member": "n"}):
        scripts["training"].add(cells, {key: dict(v) if isinstance(v, dict) else v for key, v in found.items()})
    assert [cell["member"] for cell in cells] == ["m", "n"]
    assert cells[0]["final"] == {"GRPO": [2], "tempo": [5]} and cells[0]["seconds"] == 6


def test_differences_of_a_map(scripts):
    cell = {"over steps": {"GRPO": [1.0, 2, 3], "tempo": [2.0, 4, 6], "oracle": [1.0, 2, 4]}}
    found = scripts["map"].differences([cell], "over steps")
    assert found[0, "tempo"][:3] == pytest.approx((2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert found[0, "tempo"][3] == pytest.approx(2 * 0.0741799)  # Holm doubles the smaller of two p-values
    assert found[0, "oracle"][3] == pytest.approx(0.4226497)


def test_shuffled_scores_stay_in_their_group(scripts):
    batch = small_batch([1.0, 0.0, 0.0, 0.0, 1.0, 1.0], [0, 0, 0, 0, 1, 1])
    made = [scripts["training"].shuffled(small_batch(batch.scores_B.tolist(), [0] * 4 + [1] * 2)).scores_B]
    assert made[0][:4].sum() == 1 and made[0][4:].sum() == 2
